"""What `mllmsubj evaluate` can judge a checkpoint by."""

BENCHMARKS = {"heldout": "the config's held-out data: training loss by condition mode, and sample pictures"}
"""Name -> what it is."""
