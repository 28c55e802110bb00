"""Parts of the tiny model as files: `NAME.safetensors`, 16-bit floats by parameter path, and `NAME.json`, where they
come from. `mllmsubj pretrain` writes them into its workdir; the ones in `assets/tiny` are shipped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from mllmsubj.errors import CheckpointError
from mllmsubj.io import replacing
from mllmsubj.tree import flatten
from mllmsubj.typing import Params

PARTS = ("vae", "probe", "mllm", "dit", "dla")
"""Those that come before the method, in the order in which they can be made."""
SUBJECT = "subject"
"""What the method trains on top of them: the DLA and the adapters."""


def path(folder: Path, name: str) -> Path:
    """Of a part's parameters."""
    return folder / f"{name}.safetensors"


def write(folder: Path, name: str, params: Params, provenance: Mapping[str, Any]) -> None:
    """Both files of a part. Raises UserError where a number has no place in 16 bits."""
    with np.errstate(over="ignore"):  # looked for below
        arrays = {key: np.asarray(leaf, np.float16) for key, leaf in flatten(params).items()}
    if broken := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"part {name}: {broken[0]} has numbers beyond 16 bits; train it again, with a lower rate")
    with replacing(path(folder, name)) as partial:
        partial.write_bytes(safetensors.numpy.save(arrays))
    with replacing(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(provenance, indent=2) + "\n")


def read(folder: Path, names: tuple[str, ...] = PARTS) -> dict[str, np.ndarray]:
    """Path -> float32 array of all parameters in those parts that are there. Raises UserError for a damaged file."""
    found: dict[str, np.ndarray] = {}
    for file in (path(folder, name) for name in names):
        if file.is_file():
            try:
                found |= safetensors.numpy.load_file(file)
            except (OSError, safetensors.SafetensorError) as error:
                raise CheckpointError(
                    f"{file} is damaged: {' '.join(str(error).split())}; make or copy it again"
                ) from error
    return {key: array.astype(np.float32) for key, array in found.items()}


def provenance(folder: Path, name: str) -> dict[str, Any]:
    """Where a part comes from. Raises UserError where nobody wrote that down."""
    file = folder / f"{name}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {file}, which says where part {name} comes from: {why}") from error
