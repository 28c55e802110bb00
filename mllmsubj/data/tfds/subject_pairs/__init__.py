"""`tfds build mllmsubj/data/tfds/subject_pairs`."""
