"""Which of the MLLM's states the DLA pools: all, the last alone, or a third of them. The paper's ablation of layers.

    mllmsubj sweep --config=configs/tiny.py --sweep=configs/sweeps/layers.py --workdir=runs/layers

At full size the thirds are the states 0–9, 10–19 and 20–28; smaller models are cut in proportion. All begin with a
random DLA, since there is a trained start for that of all states alone.
"""

from ml_collections import ConfigDict

from mllmsubj.sweeps import Overrides, grid


def get_sweep(config: ConfigDict) -> list[Overrides]:
    """All, last, early, middle, late."""
    states = config.model.dla.num_states
    middle, late = (-(-states * start // 29) for start in (10, 20))
    ranges = ((0, states), (states - 1, states), (0, middle), (middle, late), (late, states))
    return grid({"train.warm_start": [False], "model.dla.states": ranges})
