"""How wide the DLA is: as the MLLM, half of it, a quarter. Heads keep their size, so there are fewer of them.

    mllmsubj sweep --config=configs/tiny.py --sweep=configs/sweeps/width.py --workdir=runs/width

The paper gives no table; most of the DLA's parameters are its blocks', so a quarter has a tenth of them.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, listed, product, zipped

SIZES = ("width", "num_heads", "num_kv_heads", "intermediate_size")


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """The config's own width, then parts of it."""
    dla = config.model.dla
    widths = zipped({f"model.dla.{size}": [dla[size] // part for part in (1, 2, 4)] for size in SIZES})
    return product(listed("train.warm_start", [False]), widths)
