"""How a run is called, and how its overrides are written on a command line."""

import hashlib
import json
import re
from collections.abc import Collection
from typing import Any

import numpy as np

from mllmsubj.config.overrides import Overrides

BASE = "base"
"""The run without overrides."""
LONGEST = 120
"""Characters of a name; file systems take 255 bytes, and paths go on below."""
DIGITS = 8


def run_name(overrides: Overrides, keys: Collection[str]) -> str:
    """Such as "dla.width=64,tau1=0.9": a folder's name, the same whenever the overrides are.

    `keys`: all of the config's; a key is shortened to the ending that no other has. What cannot be said in a few
    characters that file systems take is cut, and told apart by a hash of all.
    """
    if not overrides:
        return BASE
    plain = {key: as_plain(value) for key, value in sorted(overrides.items())}
    text = ",".join(f"{short_key(key, keys)}={_text(value)}" for key, value in plain.items())
    name = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if len(name) <= LONGEST and all(map(_said_whole, plain.values())):
        return name
    digest = hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:DIGITS]
    return f"{name[: LONGEST - DIGITS - 1]}-{digest}"


def short_key(key: str, keys: Collection[str]) -> str:
    """The shortest ending of a dotted key that no other key of the config has."""
    parts = key.split(".")
    for start in reversed(range(len(parts))):
        ending = ".".join(parts[start:])
        if not any(other != key and f".{other}".endswith(f".{ending}") for other in keys):
            return ending
    return key


def word(key: str, value: Any) -> str:
    """The override as every command takes it."""
    value = as_plain(value)
    return f"--config.{key}={str(value).lower() if isinstance(value, bool) else value}"


def as_plain(value: Any) -> Any:
    """numpy's numbers as Python's, lists as tuples, which is what a config has."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(as_plain, value)) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_text, value)) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _said_whole(value: Any) -> bool:
    """Whether another value of the same key has another text."""
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(item, int | float) for item in value)
    return not isinstance(value, str) or re.fullmatch(r"[\w.+-]+", value, re.ASCII) is not None
