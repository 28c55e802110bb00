"""The Dual Layer Aggregator as `dla.safetensors` and `dla_config.json`, this project's own format.

A tensor's name is its parameter path ("text/lap/blocks/to_q/kernel") and its layout is unchanged: kernels [in, out],
with a leading axis of layers.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mllmsubj.convert.engine import Entry, TensorFiles, convert, read_config, sizes
from mllmsubj.errors import CheckpointError
from mllmsubj.models.dla import DLAConfig, DualLayerAggregator
from mllmsubj.models.layers import abstract_params
from mllmsubj.tree import flatten
from mllmsubj.typing import Params

FILE, CONFIG_FILE = "dla.safetensors", "dla_config.json"


def save_dla(folder: Path, config: DLAConfig, params: Params) -> None:
    """Writes both files into an existing folder."""
    save_file({path: np.ascontiguousarray(leaf) for path, leaf in flatten(params).items()}, folder / FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=2) + "\n")


def load_dla(folder: str | Path) -> tuple[DLAConfig, Params]:
    """Returns exactly what `save_dla` wrote; raises UserError if files, keys or tensors are missing or do not fit."""
    raw = read_config(folder, CONFIG_FILE)
    for field in fields(DLAConfig):
        if _kind(value := raw[field.name]) != field.type:
            raise CheckpointError(f"{Path(folder) / CONFIG_FILE}: {field.name} is {value!r}, which is of another type")
    config = sizes(DLAConfig, raw)
    expected = abstract_params(DualLayerAggregator(config))
    table = [Entry(path, path) for path in flatten(expected)]
    return config, convert(TensorFiles(Path(folder) / FILE), table, expected, str(folder))


def _kind(value: Any) -> Any:
    """Returns the type of a JSON value; for a list, the type of the tuple that it represents."""
    return tuple[*map(type, value)] if isinstance(value, list) else type(value)
