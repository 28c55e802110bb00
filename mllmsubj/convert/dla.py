"""The Dual Layer Aggregator as `dla.safetensors` and `dla_config.json`: this project's own form.

A tensor's name is its path in our tree ("text/lap/blocks/to_q/kernel"), its layout is ours: kernels [in, out], layers
stacked in front.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mllmsubj.convert.engine import Entry, TensorFiles, convert, read_config, sizes
from mllmsubj.errors import UserError
from mllmsubj.models.dla import DLAConfig, DualLayerAggregator
from mllmsubj.models.layers import abstract_params
from mllmsubj.tree import flatten
from mllmsubj.typing import Params

FILE, CONFIG_FILE = "dla.safetensors", "dla_config.json"


def save_dla(folder: Path, config: DLAConfig, params: Params) -> None:
    """Writes both files."""
    save_file({path: np.ascontiguousarray(leaf) for path, leaf in flatten(params).items()}, folder / FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=2) + "\n")


def load_dla(folder: str | Path) -> tuple[DLAConfig, Params]:
    """What `save_dla` wrote, bit for bit; raises UserError if it is not whole."""
    raw = read_config(folder, CONFIG_FILE)
    for field in fields(DLAConfig):
        if _kind(value := raw[field.name]) != field.type:
            raise UserError(f"{Path(folder) / CONFIG_FILE}: {field.name} is {value!r}, which is of another type")
    config = sizes(DLAConfig, raw)
    expected = abstract_params(DualLayerAggregator(config))
    table = [Entry(path, path) for path in flatten(expected)]
    return config, convert(TensorFiles(Path(folder) / FILE), table, expected, str(folder))


def _kind(value: Any) -> Any:
    """Its type; of a list, all that JSON has, that of the tuple which it stands for."""
    return tuple[*map(type, value)] if isinstance(value, list) else type(value)
