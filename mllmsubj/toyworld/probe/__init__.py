"""The network that reads attributes off pictures of toyworld."""
