"""Probe: the network that classifies the attributes of toyworld pictures."""
