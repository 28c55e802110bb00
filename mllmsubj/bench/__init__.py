"""Speed against peers: one module per `mllmsubj bench --what=…`, each alternating, medians and ratios in one run."""
