"""Two LAPs, for text and for image tokens (the DLA), or one for all tokens. The paper's Table 6.

    mllmsubj sweep --config=configs/tiny.py --sweep=configs/sweeps/lap.py --workdir=runs/lap

The paper (DreamBench DINO-I / CLIP-I / CLIP-T): DLA .7482/.8443/.3010, single LAP .7524/.8502/.2878. Its two other
rows, the last layer alone and that blended with the ViT's, are `layers.py`'s (last) and not here. Both begin with
random numbers, since there is a trained start for the DLA alone.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, grid


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """DLA, single LAP."""
    del config
    return grid({"train.warm_start": [False], "model.dla.shared": [False, True]})
