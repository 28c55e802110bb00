"""Makes the parts of the tiny model on toyworld: the VAE, the MLLM, the text-to-image transformer, and the probe."""
