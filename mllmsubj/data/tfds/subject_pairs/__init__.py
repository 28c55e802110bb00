"""The TensorFlow Dataset `subject_pairs`: `tfds build mllmsubj/data/tfds/subject_pairs`."""
