"""Identities, scenes and their rendering."""
