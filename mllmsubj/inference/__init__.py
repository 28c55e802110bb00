"""Generation of images from a checkpoint."""
