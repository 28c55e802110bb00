"""What the comparisons with PyTorch share: random weights that do something, and one bound.

torch is imported where it is needed, so that `pytest -m "not parity"` runs without it.
"""

from pathlib import Path

import numpy as np


def randomise(module, seed: int = 0):
    """Gives every parameter, zero-initialised ones too, random values that keep activations near one."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter.shape[1:].numel() if parameter.ndim > 1 else 0
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * fan_in**-0.5 if fan_in else parameter + 0.1 * noise)
    return module.eval()


def save(module, folder: Path) -> Path:
    """The module in a folder, as its own library writes it."""
    module.save_pretrained(folder)
    return folder


def assert_close(ours, theirs, bound: float = 1e-4) -> None:
    """max |ours − theirs| ≤ bound · max |theirs|; either may be a torch tensor."""
    ours, theirs = (np.asarray(x.detach() if hasattr(x, "detach") else x) for x in (ours, theirs))
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= bound * scale, f"{np.abs(ours - theirs).max() / scale:.2e} of the scale"
