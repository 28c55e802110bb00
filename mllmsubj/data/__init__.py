"""Input pipeline: from images and prompts to batches of fixed shapes; it never imports a model's parameters."""
