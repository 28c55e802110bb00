"""Benchmarks of speed: one module per `mllmsubj bench --what=…`; comparisons with peers alternate within one run."""
