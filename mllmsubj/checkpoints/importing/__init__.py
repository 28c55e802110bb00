"""Hugging Face folders -> a checkpoint, tensor by tensor: memory does not grow with the model."""
