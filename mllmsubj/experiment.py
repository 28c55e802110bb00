"""A config file or a checkpoint's config, as ConfigDict, and the same typed and checked as `Experiment`."""

import dataclasses
import runpy
import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mllmsubj.data.images import ReferenceConfig
from mllmsubj.data.prompts import PromptConfig
from mllmsubj.data.settings import DataConfig
from mllmsubj.diffusion.schedule import ShiftConfig
from mllmsubj.diffusion.settings import SamplingConfig
from mllmsubj.errors import UserError, nearest
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectConfig
from mllmsubj.ops.attention import Implementation
from mllmsubj.ops.target import platform
from mllmsubj.pretrain.settings import PretrainConfig
from mllmsubj.train.settings import CheckpointConfig, EvalsConfig, LogConfig, TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class ComputeConfig:
    """How the model runs; see `models.layers.Compute`."""

    dtype: Literal["auto", "float32", "bfloat16"]
    remat: bool
    attention: Implementation
    layers: Literal["auto", "scan", "unrolled"]
    offload: bool

    def resolve(self) -> Compute:
        """Where it says "auto": bfloat16 and scanned layers on accelerators, float32 and unrolled layers on CPUs."""
        on_cpu = platform() == "cpu"
        dtype = ("float32" if on_cpu else "bfloat16") if self.dtype == "auto" else self.dtype
        scan = not on_cpu if self.layers == "auto" else self.layers == "scan"
        return Compute(jnp.dtype(dtype), self.remat, self.attention, scan)


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one may be -1."""

    data: int
    fsdp: int
    tensor: int


@dataclass(frozen=True)
class Experiment:
    """Every key of an experiment's config; see configs/base.py for units."""

    seed: int
    model: SubjectConfig
    compute: ComputeConfig
    mesh: MeshConfig
    prompt: PromptConfig
    reference: ReferenceConfig
    shift: ShiftConfig
    sampling: SamplingConfig
    data: DataConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    log: LogConfig
    evals: EvalsConfig
    pretrain: PretrainConfig | None

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Experiment":
        """Raises UserError for an unknown, missing or mistyped key, and for sizes that do not fit together."""
        experiment = typed(cls, config, "config")
        _check(experiment.model)
        return experiment


def load_config(spec: str) -> ConfigDict:
    """`get_config(variant)` of the file in "FILE" or "FILE:variant"; raises UserError if it cannot be loaded."""
    name, _, variant = spec.partition(":")
    if not Path(name).is_file():
        raise UserError(f"config file {name!r} is not there")
    return from_file(Path(name), f"config file {spec!r}", lambda file: file["get_config"](variant).lock())


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
        raise UserError(f"{shown} fails to load: {type(error).__name__}: {reason}") from None
    finally:
        sys.path.remove(str(root))


def typed(cls: type[T], config: Mapping[str, Any] | ConfigDict, path: str) -> T:
    """A frozen dataclass from a mapping with exactly its fields, nested dataclasses included.

    Raises UserError naming the key, and the nearest one that exists, where a key is unknown, missing or of
    another type.
    """
    fields = typing.get_type_hints(cls)
    unknown = [key for key in config if key not in fields]
    if unknown:
        raise UserError(f"unknown config key {path}.{unknown[0]}{nearest(unknown[0], fields)}")
    missing = [name for name in fields if name not in config]
    if missing:
        raise UserError(f"missing config key {path}.{missing[0]}")
    return cls(**{name: _value(kind, config[name], f"{path}.{name}") for name, kind in fields.items()})


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
    raise UserError(f"config key {path} is {value!r}; expected {expected}")


def _check(model: SubjectConfig) -> None:
    dla, mllm, dit = model.dla, model.mllm, model.transformer
    for name, value, other, want in (
        ("dla.num_states", dla.num_states, "mllm.text.num_hidden_layers + 1", mllm.text.num_hidden_layers + 1),
        ("dla.input_dim", dla.input_dim, "mllm.text.hidden_size", mllm.text.hidden_size),
        ("dla.context_dim", dla.context_dim, "transformer.joint_attention_dim", dit.joint_attention_dim),
        ("transformer.in_channels", dit.in_channels, "4 * vae.latent_channels", 4 * model.vae.latent_channels),
        ("transformer.pooled_projection_dim", dit.pooled_projection_dim, "clip.hidden_size", model.clip.hidden_size),
        ("transformer.attention_head_dim", dit.attention_head_dim, "sum of axes_dims_rope", sum(dit.axes_dims_rope)),
    ):
        if value != want:
            raise UserError(f"config key model.{name} is {value} but {other} is {want}; make them equal")
