"""Builders of TensorFlow Datasets, for `tfds build`."""
