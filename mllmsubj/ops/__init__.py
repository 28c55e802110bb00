"""Array operations without parameters: attention, patchify and rotary embeddings."""
