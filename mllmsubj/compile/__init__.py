"""Programs compiled ahead of time for TPU slices that are not here: whether they fit and how fast they can be."""
