"""With which conditions the second stage trains: all that the sampler uses, or fewer.

    mllmsubj sweep --config=configs/tiny.py --sweep=configs/sweeps/modes.py --workdir=runs/modes

The paper does not give its mix. Its Table 7 asks the neighbouring question: trained with both conditions alone, in one
stage, the staged sampler collapses (DINO-I .5763 instead of .7482).
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides

MODES = ("both", "mllm", "vae", "none")


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """Our mix; without the empty condition; an even one; both conditions alone."""
    del config
    mixes = ((0.6, 0.15, 0.15, 0.1), (0.7, 0.15, 0.15, 0.0), (0.3, 0.3, 0.3, 0.1), (1.0, 0.0, 0.0, 0.0))
    return [{f"train.stage2.modes.{mode}": share for mode, share in zip(MODES, mix, strict=True)} for mix in mixes]
