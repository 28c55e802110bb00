"""Checkpoint folders: their format, initial weights, import of published models, and export."""
