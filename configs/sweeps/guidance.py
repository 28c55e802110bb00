"""How strong the distilled guidance is. The paper's Table C has 2.5 and 4; nothing is trained anew.

    mllmsubj sweep --checkpoint=runs/tiny --sweep=configs/sweeps/guidance.py --workdir=runs/guidance

The paper (DreamBench DINO-I / CLIP-I / CLIP-T): 2.5 .7482/.8443/.3010, 4 .7431/.8381/.3012. 1 is what training feeds.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, listed


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """From training's scale to FLUX's usual ones."""
    del config
    return listed("sampling.guidance", (1.0, 2.5, 4.0))
