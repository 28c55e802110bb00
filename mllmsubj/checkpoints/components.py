"""Files of the tiny model's components.

Each component has two: `NAME.safetensors` with float16 parameters by path, and `NAME.json` with their provenance.
`mllmsubj pretrain` writes them to its workdir; those in `assets/tiny` are shipped with the package.
"""

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

COMPONENTS = ("vae", "probe", "mllm", "dit", "dla")
"""Components that are trained before the method's stages, in an order in which they can be made."""
SUBJECT = "subject"
"""Component that the method trains on top of them: the DLA and the LoRA adapters."""


def path(folder: Path, name: str) -> Path:
    """Returns the path of a component's parameters."""
    return folder / f"{name}.safetensors"


def write(folder: Path, name: str, params: Params, provenance: Mapping[str, Any]) -> None:
    """Writes both files of a component; raises UserError if a value overflows float16 or is not finite."""
    with np.errstate(over="ignore"):  # overflows are reported below
        arrays = {key: np.asarray(leaf, np.float16) for key, leaf in flatten(params).items()}
    if broken := [key for key, array in arrays.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"part {name}: {broken[0]} has numbers beyond 16 bits; train it again, with a lower rate")
    with replacing(path(folder, name)) as partial:
        partial.write_bytes(safetensors.numpy.save(arrays))
    with replacing(folder / f"{name}.json") as partial:
        partial.write_text(json.dumps(provenance, indent=2) + "\n")


def read(folder: Path, names: tuple[str, ...] = COMPONENTS) -> dict[str, np.ndarray]:
    """Returns path -> float32 array for the components that exist; raises UserError for a damaged file."""
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
    """Returns the contents of a component's `NAME.json`; raises UserError if it cannot be read."""
    file = folder / f"{name}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {file}, which says where part {name} comes from: {why}") from error
