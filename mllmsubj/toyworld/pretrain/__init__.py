"""Pretraining of the tiny model's components on toyworld: VAE, probe, MLLM, text-to-image transformer and DLA."""
