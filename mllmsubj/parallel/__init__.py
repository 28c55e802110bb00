"""Meshes, shardings, multi-process runs, chips and TPU topologies."""
