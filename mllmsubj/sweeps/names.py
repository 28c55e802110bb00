"""Names of runs, and their overrides in command-line form."""

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from mllmsubj.config.overrides import Overrides

BASE = "base"
"""Name of the run without overrides."""
MAX_LENGTH = 120
"""Maximum length of a name in characters; file systems allow 255 bytes."""
DIGITS = 8


def run_name(overrides: Overrides, keys: Collection[str]) -> str:
    """Returns a folder name such as "dla.width=64,tau1=0.9", which is the same for the same overrides.

    `keys`: all keys of the config; a key is shortened to its shortest unique ending. Names that are too long or
    ambiguous are cut and end in a hash of all overrides.
    """
    if not overrides:
        return BASE
    plain = {key: as_plain(value) for key, value in sorted(overrides.items())}
    text = ",".join(f"{short_key(key, keys)}={_text(value)}" for key, value in plain.items())
    name = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if len(name) <= MAX_LENGTH and all(map(_is_unambiguous, plain.values())):
        return name
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:DIGITS]
    return f"{name[: MAX_LENGTH - DIGITS - 1]}-{digest}"


def short_key(key: str, keys: Collection[str]) -> str:
    """Returns the shortest ending of a dotted key that no other key of the config has."""
    parts = key.split(".")
    for start in reversed(range(len(parts))):
        ending = ".".join(parts[start:])
        if not any(other != key and f".{other}".endswith(f".{ending}") for other in keys):
            return ending
    return key


def word(key: str, value: Any) -> str:
    """Returns the override in command-line form, `--config.KEY=VALUE`."""
    value = as_plain(value)
    return f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}"


def as_plain(value: Any) -> Any:
    """Converts NumPy scalars to Python's and lists to tuples, the types that a config contains."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(as_plain, value)) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_text, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _is_unambiguous(value: Any) -> bool:
    """Returns whether the text in the name identifies the value among those of the same key."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(item, int | float) for item in value)
    return not isinstance(value, str) or re.fullmatch(r"[\w.+-]+", value, re.ASCII) is not None
