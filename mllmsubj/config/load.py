"""Config files by path or name, and mappings as frozen dataclasses whose types are checked."""

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
"""The shipped configs: in an installed package among its assets, in a checkout at its top."""


def load_config(spec: str) -> ConfigDict:
    """`get_config(variant)` of the config file in "NAME", "NAME:variant" or "FILE.py:variant"; see `find_config`.

    Raises UserError if it cannot be loaded.
    """
    name, _, variant = spec.partition(":")
    return from_file(find_config(name), f"config file {spec!r}", lambda file: file["get_config"](variant).lock())


def find_config(name: str, folder: str = "") -> Path:
    """A config file by its path, or a shipped one by its name: "paper" is configs/paper.py.

    `folder`: of the shipped ones within `configs`, such as "sweeps". Raises UserError if there is none.
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
    """What `make` makes of the names that a Python file defines; raises UserError, on the file as `shown`, if it fails.

    The file imports others as `configs.…`, from the folder that holds `configs`.
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
    """Dotted key -> value of all of a config's keys."""
    return flatten_dict(config.to_dict(), sep=".")


def typed(cls: type[T], config: Mapping[str, Any] | ConfigDict, path: str) -> T:
    """A frozen dataclass from a mapping of its fields, nested dataclasses included; a missing key has its default.

    Raises UserError naming the key, and the nearest one that exists, where a key is unknown, missing or of
    another type.
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
