"""What the comparisons with PyTorch share: random weights that do something, and one bound."""

from pathlib import Path

import numpy as np
import torch


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter, zero-initialised ones too, random values that keep activations near one."""
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
    """max |ours − theirs| ≤ bound · max |theirs|."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.isfinite(ours).all()
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= bound * scale, f"{np.abs(ours - theirs).max() / scale:.2e} of the scale"
