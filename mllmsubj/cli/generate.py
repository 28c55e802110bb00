"""Generates images of a subject from reference images and a prompt.

mllmsubj generate --checkpoint=DIR|tiny --reference=IMG [--reference=IMG …] --prompt=TEXT --output=PNG

Settings that are not given are the checkpoint's; any key of its config can be replaced with --config.KEY=VALUE.
Several images are written as OUTPUT-0.png, OUTPUT-1.png, …
"""

import math
import sys
from pathlib import Path

from absl import flags

from mllmsubj.cli.files import png_path
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError

SETTINGS = {
    **{name: f"sampling.{name}" for name in ("height", "width", "steps", "tau1", "tau2")},
    **{name: f"sampling.{name}" for name in ("guidance", "text_guidance", "reference_guidance")},
    "frozen_dtype": "model.frozen_dtype",
    "offload": "compute.offload",
}
"""Flag -> config key that it replaces."""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""

    def text(name: str, default: str | None, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def number(name: str, default: int | None, what: str, low: int | None = None, high: int | None = None) -> None:
        flags.DEFINE_integer(name, default, what, low, high, flag_values=values)

    text("checkpoint", "tiny", "checkpoint folder, or 'tiny', the one that is shipped")
    flags.DEFINE_multi_string("reference", [], "image of the subject; may be repeated", flag_values=values)
    flags.DEFINE_multi_string(
        "lora", [], "LoRA for the transformer, file or folder, PATH[:WEIGHT]; may be repeated", flag_values=values
    )
    text("prompt", None, "text of the image to generate")
    text("output", None, "PNG to write")
    number("num_images", 1, "number of images", low=1)
    number("seed", 0, "random seed; image i depends on (seed, i) alone", low=0, high=2**32 - 1)
    number("height", None, "pixels, multiple of 16")
    number("width", None, "pixels, multiple of 16")
    number("steps", None, "denoising steps")
    for name, what in (
        ("tau1", "condition on the MLLM alone while t >= tau1; t = 1 is noise"),
        ("tau2", "condition on MLLM and VAE while tau2 <= t < tau1, then on the VAE alone"),
        ("guidance", "distilled guidance scale, for guidance-distilled models such as FLUX.1-dev"),
        ("text_guidance", "classifier-free guidance scale of the prompt, as the MLLM reads it; 1: off"),
        ("reference_guidance", "classifier-free guidance scale of the VAE's reference; 1: off"),
    ):
        flags.DEFINE_float(name, None, what, flag_values=values)
    text("frozen_dtype", None, "int8: frozen projections in 8 bits, half of bfloat16's memory")
    what = (
        "keep parameters in host memory and copy them to the device group by group, for models larger than its memory"
    )
    flags.DEFINE_boolean("offload", None, what, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Generates and writes the images; nothing is written unless all of them were generated."""
    argv, overrides = split_overrides(argv)
    parse(values, argv)
    outputs = output_paths(values.output, values.num_images)
    loras = [lora_of(text) for text in values.lora]
    if not (values.prompt or "").strip():
        raise UserError('no prompt; give one with --prompt="…"')
    given = {key: values[name].value for name, key in SETTINGS.items() if values[name].value is not None}
    overrides += [f"--config.{key}={value}" for key, value in given.items()]

    from mllmsubj.data.images import open_image  # imports JAX, so it comes after the checks of the flags

    for path in values.reference:  # checked before the slow imports
        open_image(path)

    from mllmsubj.checkpoints.format import folder_of, read_config
    from mllmsubj.config.schema import Experiment
    from mllmsubj.inference.pipeline import Pipeline
    from mllmsubj.inference.request import RequestReader

    request = (values.reference, values.prompt, values.num_images, values.seed)
    folder = folder_of(values.checkpoint)
    config = apply_overrides(read_config(folder), overrides)
    RequestReader(Experiment.from_config(config), folder)(*request)  # raises its errors before weights are read
    result = Pipeline.load(values.checkpoint, config, loras).generate(*request, progress=sys.stderr.isatty())
    for i, path in enumerate(outputs):
        result.save(path, i)
        print(path)


def output_paths(output: str | None, num_images: int) -> list[Path]:
    """Returns the files of the images; raises UserError if they cannot be written."""
    path = png_path(output)
    return [path] if num_images == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(num_images)]


def lora_of(text: str) -> tuple[Path, float]:
    """Returns path and weight (1 by default) in a value of `--lora`; raises UserError for a wrong path or weight."""
    name, colon, number = text.rpartition(":")
    path, weight = Path(text).expanduser(), 1.0
    if colon and not path.exists():
        try:
            path, weight = Path(name).expanduser(), float(number)
        except ValueError as error:
            raise UserError(
                f"lora {text!r}: no such file, and {number!r} is not a weight; give PATH or PATH:0.8"
            ) from error
    if not path.exists():
        raise UserError(f"lora {str(path)!r} does not exist; give a .safetensors file or a folder with one")
    if not math.isfinite(weight):
        raise UserError(f"lora {text!r}: the weight must be a finite number, such as 0.8")
    return path, weight
