"""Exports the trained weights for use with diffusers.

mllmsubj export --checkpoint=DIR --output=DIR

Writes pytorch_lora_weights.safetensors (the LoRA, for diffusers' load_lora_weights), dla.safetensors and
dla_config.json, and a model card. The frozen weights are neither needed nor read.
"""

from pathlib import Path

from absl import flags

from mllmsubj.config.overrides import parse
from mllmsubj.errors import UserError


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("checkpoint", None, "a training run's workdir, or a checkpoint folder", flag_values=values)
    flags.DEFINE_string("output", None, "folder to write, which must not exist", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Writes the folder, completely or not at all."""
    parse(values, argv)
    for name in ("checkpoint", "output"):
        if not values[name].value:
            raise UserError(f"no {name}; export with --checkpoint=DIR --output=DIR")
    output = Path(values.output).expanduser()
    if output.exists():
        raise UserError(f"output {values.output!r} exists already; give another folder or delete it first")

    from mllmsubj.checkpoints.export import export

    export(values.checkpoint, output)
    print(output)
