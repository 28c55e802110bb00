"""Whether the sampler's last stage keeps the MLLM's text tokens beside the VAE's. Nothing is trained anew.

    mllmsubj sweep --checkpoint=runs/tiny --sweep=configs/sweeps/last_stage.py --workdir=runs/last_stage

The paper does not say which it does, and gives no table.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, listed


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """Dropped, kept."""
    del config
    return listed("sampling.last_stage", ("drop_all", "keep_text"))
