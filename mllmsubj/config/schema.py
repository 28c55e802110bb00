"""Config: every key with its type, default and unit; large sections are defined in the other files of this package.

`--config.KEY=VALUE` sets a key; `mllmsubj config` prints all of them.
"""

from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, Literal

import jax.numpy as jnp
from flax.core import FrozenDict
from ml_collections import ConfigDict

from mllmsubj.config.data import DataConfig, PromptConfig, ReferenceConfig
from mllmsubj.config.load import typed
from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.config.train import CheckpointConfig, EvalsConfig, LogConfig, TrainConfig
from mllmsubj.diffusion.schedule import ShiftConfig
from mllmsubj.errors import ConfigError
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectConfig
from mllmsubj.ops.attention import Implementation
from mllmsubj.parallel.target import platform


@dataclass(frozen=True)
class ComputeConfig:
    """Numerics and execution of the model; see `models.layers.Compute`."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of activations and frozen weights; "auto": bfloat16 on accelerators, float32 on CPUs."""
    remat: bool = True
    """Whether blocks are recomputed in the backward pass."""
    attention: Implementation = "auto"
    """Attention implementation: "xla", "heads" (CPUs), "cudnn" (NVIDIA) or "splash" (TPUs); "auto" chooses one."""
    layers: Literal["auto", "scan", "unrolled"] = "auto"
    """"scan": one compiled block in a loop; "unrolled": every block compiled, for small models on CPUs."""
    offload: bool = False
    """Whether parameters are kept in host memory while images are generated; only the parameter group of the running
    program is on the devices."""

    def resolve(self) -> Compute:
        """Resolves "auto" to bfloat16 and scanned layers on accelerators, and float32 and unrolled layers on CPUs."""
        on_cpu = platform() == "cpu"
        dtype = ("float32" if on_cpu else "bfloat16") if self.dtype == "auto" else self.dtype
        scan = not on_cpu if self.layers == "auto" else self.layers == "scan"
        return Compute(jnp.dtype(dtype), self.remat, self.attention, scan)


@dataclass(frozen=True)
class MeshConfig:
    """Number of devices along each mesh axis; one may be -1, for all remaining devices."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """All keys of a config. `model`, the sizes of every component, is the only section without defaults."""

    seed: int = 0
    """Seed of initial parameters, data order, noise and timesteps."""
    model: SubjectConfig
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    prompt: PromptConfig = PromptConfig()
    reference: ReferenceConfig = ReferenceConfig()
    shift: ShiftConfig = ShiftConfig()
    sampling: SamplingConfig = SamplingConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evals: EvalsConfig = EvalsConfig()
    pretrain: FrozenDict[str, Any] | None = None
    """Pretraining of toyworld's components, read by `toyworld.pretrain`; None: not possible with this config."""

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Experiment":
        """Returns the type-checked config.

        Raises UserError for an unknown, missing or mistyped key, and for sizes that do not fit together.
        """
        experiment = typed(cls, config, "config")
        _check(experiment.model)
        return experiment


def default_config() -> ConfigDict:
    """Returns the defaults of all keys, which config files change; `model` has only the keys with a default."""
    config = ConfigDict(_defaults(Experiment))
    config.model = ConfigDict(_defaults(SubjectConfig))
    return config


def _defaults(cls: Any) -> dict[str, Any]:
    """Returns the fields of a dataclass that have a default, with sections as dicts."""
    found = {each.name: each.default for each in fields(cls) if each.default is not MISSING}
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in found.items()
    }


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
            raise ConfigError(f"config key model.{name} is {value} but {other} is {want}; make them equal")
