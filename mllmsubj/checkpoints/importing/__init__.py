"""Streaming import of Hugging Face folders into a checkpoint, tensor by tensor, in bounded memory."""
