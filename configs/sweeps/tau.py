"""Where the sampler's stages change. The paper's Table C; nothing is trained anew.

    mllmsubj sweep --checkpoint=runs/tiny --sweep=configs/sweeps/tau.py --workdir=runs/tau

The paper (DreamBench DINO-I / CLIP-I / CLIP-T): .95, .85 .7482/.8443/.3010; .97, .90 .7490/.8466/.2963;
.85, .70 .7282/.8376/.3034; 0, 0 (the MLLM alone at every step) .6905/.8225/.3044.
"""

from ml_collections import ConfigDict

from mllmsubj.diffusion.schedule import equivalent_timestep
from mllmsubj.sweeps import Overrides, zipped


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """The paper's choice first, each moved to where the config's pictures are as uncertain."""

    def moved(*taus: float) -> list[float]:
        return [round(equivalent_timestep(tau, config.sampling.height, config.sampling.width), 2) for tau in taus]

    return zipped({"sampling.tau1": moved(0.95, 0.97, 0.85, 0.0), "sampling.tau2": moved(0.85, 0.9, 0.7, 0.0)})
