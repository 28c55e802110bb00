"""The config of an imported checkpoint: an experiment's config with the sizes of the imported models."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from mllmsubj.config.schema import Experiment
from mllmsubj.errors import CheckpointError


def with_sizes(config: ConfigDict, models: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of `config` with the sizes in `models` (component -> dataclass) and a DLA that fits them.

    Raises UserError if the sizes are inconsistent.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        model = config.model
        for role, sizes in models.items():
            model[role] = ConfigDict(asdict(sizes))
        text = models["mllm"].text
        if model.dla.input_dim != text.hidden_size:
            _scale(model.dla, text.hidden_size, text.num_attention_heads)
        states = text.num_hidden_layers + 1
        if model.dla.states == (0, model.dla.num_states):  # all states before, so all states of the new MLLM
            model.dla.states = (0, states)
        model.dla.num_states = states
        model.dla.context_dim = models["transformer"].joint_attention_dim
    Experiment.from_config(config)
    return config.lock()


def _scale(dla: ConfigDict, width: int, heads: int) -> None:
    """Adapts the DLA to an MLLM's width: its own width is scaled in proportion, unless it is a bottleneck."""
    if dla.width == dla.input_dim:
        if width % heads or width // heads % 2:
            raise CheckpointError(
                f"an MLLM of width {width} with {heads} heads leaves no whole head for the DLA's attention"
            )
        dla.intermediate_size = -(-dla.intermediate_size * width // dla.width)
        dla.update(width=width, num_heads=heads, num_kv_heads=heads)
    dla.input_dim = width
