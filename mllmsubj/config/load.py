"""Loading of config files by path or name, and conversion of mappings to type-checked frozen dataclasses."""

import dataclasses
import runpy
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from mllmsubj.errors import ConfigError, nearest

T = TypeVar("T")

_PACKAGE = Path(__file__).parents[1]
_INSTALLED = _PACKAGE / "assets" / "configs"
CONFIGS = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "configs"
"""Folder of the shipped configs: in the assets of an installed package, or at the top of a checkout."""


def load_config(spec: str) -> ConfigDict:
    """Returns the locked config of "NAME", "NAME:variant" or "FILE.py:variant", from `get_config(variant)` of its file.

    Raises UserError if it cannot be found (see `find_config`) or loaded.
    """
    name, _, variant = spec.partition(":")
    return from_file(find_config(name), f"config file {spec!r}", lambda file: file["get_config"](variant).lock())


def find_config(name: str, folder: str = "") -> Path:
    """Returns the path of a config file, given its path or the name of a shipped one: "paper" is configs/paper.py.

    `folder`: subfolder of `configs` with the shipped files, such as "sweeps". Raises UserError if there is none.
    """
    if Path(name).expanduser().is_file():
        return Path(name).expanduser()
    shipped = {path.stem: path for path in sorted((CONFIGS / folder).glob("*.py"))}
    short = name.removeprefix(str(Path("configs", folder)) + "/").removesuffix(".py")
    if short in shipped:
        return shipped[short]
    kind = folder.removesuffix("s") or "config"
    beside = [str(path) for path in Path(name).parent.glob("*.py")]
    raise ConfigError(
        f"{kind} file {name!r} is not there{nearest(name, [*shipped, *beside])}; give a file, or a shipped one's name: "
        f"{', '.join(shipped)}"
    )


def from_file(path: Path, shown: str, make: Callable[[Mapping[str, Any]], T]) -> T:
    """Runs a Python file and returns `make` of the names that it defines.

    The file imports others as `configs.…`, from the folder that contains `configs`. Raises UserError if it fails;
    `shown`: how the message names the file.
    """
    root = next((parent.parent for parent in path.resolve().parents if parent.name == "configs"), path.resolve().parent)
    sys.path.insert(0, str(root))
    try:
        return make(runpy.run_path(str(path)))
    except Exception as error:  # a config is a program: it can raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{shown} fails to load: {type(error).__name__}: {reason}") from error
    finally:
        sys.path.remove(str(root))


def flat(config: ConfigDict) -> dict[str, Any]:
    """Returns all keys of a config as dotted key -> value."""
    return flatten_dict(config.to_dict(), sep=".")


def typed(cls: type[T], config: Mapping[str, Any] | ConfigDict, path: str) -> T:
    """Returns a frozen dataclass from a mapping of its fields, including nested ones; missing keys get their defaults.

    `path`: dotted key of the mapping, for messages. Raises UserError naming the key if one is unknown, missing without
    a default, or of another type; for an unknown key also the nearest known one.
    """
    fields = typing.get_type_hints(cls)
    unknown = [key for key in config if key not in fields]
    if unknown:
        raise ConfigError(f"unknown config key {path}.{unknown[0]}{nearest(unknown[0], fields)}")
    required = {each.name for each in dataclasses.fields(cls) if each.default is dataclasses.MISSING}  # type: ignore
    missing = [name for name in fields if name in required and name not in config]
    if missing:
        raise ConfigError(f"missing config key {path}.{missing[0]}")
    given = {name: kind for name, kind in fields.items() if name in config}
    return cls(**{name: _value(kind, config[name], f"{path}.{name}") for name, kind in given.items()})


def _value(kind: Any, value: Any, path: str) -> Any:
    if isinstance(value, np.generic):  # a number out of a numpy array, as in a sweep over np.linspace
        value = value.item()
    if isinstance(kind, types.UnionType):
        if value is None and types.NoneType in kind.__args__:
            return None
        kind = next(arg for arg in kind.__args__ if arg is not types.NoneType)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping | ConfigDict):
        return typed(kind, value, path)
    origin = typing.get_origin(kind)
    if origin is FrozenDict and isinstance(value, Mapping | ConfigDict):
        return FrozenDict(value.to_dict() if isinstance(value, ConfigDict) else value)
    if origin is tuple and isinstance(value, tuple | list):
        kinds = typing.get_args(kind)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(_value(kinds[i], item, f"{path}[{i}]") for i, item in enumerate(value))
    if origin is Literal and value in kind.__args__:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    expected = " or ".join(map(repr, kind.__args__)) if origin is Literal else getattr(kind, "__name__", str(kind))
    raise ConfigError(f"config key {path} is {value!r}; expected {expected}")
