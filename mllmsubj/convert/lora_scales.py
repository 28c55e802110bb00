"""Scales, alpha / rank, of the adapters in a LoRA file, which may store alpha in three places."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mllmsubj.convert.engine import TensorFiles
from mllmsubj.errors import CheckpointError

HEADER_KEY, CONFIG_FILE = "lora_adapter_metadata", "adapter_config.json"
"""Location of PEFT's config in diffusers' header, and PEFT's own file."""


class Scales:
    """Callable that returns alpha / rank of a module (alpha / √rank with rsLoRA), or 1 if no alpha is given."""

    def __init__(self, tensors: TensorFiles, file: Path) -> None:
        """Reads the config; raises UserError if it is invalid, or not of a plain LoRA."""
        self._config = _config(tensors, file)
        for key in ("use_dora", "lora_bias"):
            if self._config.get(key):
                raise CheckpointError(f"{file}: {key} is on; only plain LoRA can be loaded")

    def __call__(self, module: str, rank: int, alpha: float | None) -> float:
        """Returns the scale; `alpha`, from a tensor, overrides the config, and `module` is the name in the file."""
        config = self._config
        for said in (self._pattern(module), config.get("lora_alpha")):
            alpha = said if alpha is None else alpha
        if alpha is None:
            return 1.0
        return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)

    def _pattern(self, module: str) -> float | None:
        """Returns alpha from `alpha_pattern`, whose keys are regexes of a module's name or its end, as in PEFT."""
        patterns = self._config.get("alpha_pattern") or {}
        return next((alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), None)


def _config(tensors: TensorFiles, file: Path) -> dict[str, Any]:
    for where, text in _texts(tensors, file):
        try:
            raw = json.loads(text)
            return {key.removeprefix("transformer."): value for key, value in raw.items()}
        except (AttributeError, ValueError) as error:
            raise CheckpointError(f"{where} is not a valid LoRA config: {error}") from error
    return {}


def _texts(tensors: TensorFiles, file: Path) -> Iterator[tuple[str, str]]:
    if HEADER_KEY in tensors.metadata:
        yield f"{file}: {HEADER_KEY}", tensors.metadata[HEADER_KEY]
    beside = file.with_name(CONFIG_FILE)
    if beside.is_file():
        yield str(beside), beside.read_text()
