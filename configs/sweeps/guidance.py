"""How strong guidance is: the distilled one, or the true one to the prompt where that is on; nothing is trained anew.

    mllmsubj sweep --checkpoint=runs/tiny --sweep=configs/sweeps/guidance.py --workdir=runs/guidance

The paper (DreamBench DINO-I / CLIP-I / CLIP-T): distilled 2.5 .7482/.8443/.3010, 4 .7431/.8381/.3012. 1 is what
training feeds, and no guidance at all.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, listed


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """From none to FLUX's usual scales."""
    kind = "guidance" if config.sampling.text_guidance == 1.0 else "text_guidance"
    return listed(f"sampling.{kind}", (1.0, 2.5, 4.0))
