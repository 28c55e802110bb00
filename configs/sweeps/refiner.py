"""Whether pooled tokens look at each other before the connector: no refiner, or UniFusion's two blocks.

    mllmsubj sweep --config=configs/tiny.py --sweep=configs/sweeps/refiner.py --workdir=runs/refiner

The paper does not say which it uses, and gives no table.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, grid


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """0 and 2 blocks."""
    del config
    return grid({"train.warm_start": [False], "model.dla.num_refiner_blocks": [0, 2]})
