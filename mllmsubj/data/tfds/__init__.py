"""Data sets that `tfds build` makes."""
