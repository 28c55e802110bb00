"""mllmsubj generate --checkpoint=DIR|tiny --reference=IMG [--reference=IMG …] --prompt=TEXT --output=PNG

Settings that are not given are the checkpoint's; any key of its config can be replaced with --config.KEY=VALUE.
Several pictures are written as OUTPUT-0.png, OUTPUT-1.png, …
"""

import os
import sys
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from mllmsubj.app.cli import parse
from mllmsubj.errors import UserError

SETTINGS = ("height", "width", "steps", "tau1", "tau2", "guidance")


def define(values: flags.FlagValues) -> None:
    """The command's flags."""

    def text(name: str, default: str | None, what: str) -> None:
        flags.DEFINE_string(name, default, what, flag_values=values)

    def number(name: str, default: int | None, what: str) -> None:
        flags.DEFINE_integer(name, default, what, flag_values=values)

    text("checkpoint", "tiny", "checkpoint folder, or 'tiny', the one that is shipped")
    flags.DEFINE_multi_string("reference", [], "picture of the subject; may be repeated", flag_values=values)
    text("prompt", None, "what to draw")
    text("output", None, "PNG to write")
    number("num_images", 1, "pictures to draw")
    number("seed", 0, "0 to 4294967295; picture i depends on (seed, i) alone")
    number("height", None, "pixels, multiple of 16")
    number("width", None, "pixels, multiple of 16")
    number("steps", None, "denoising steps")
    for name, what in (
        ("tau1", "the MLLM alone leads while t >= tau1; t = 1 is noise"),
        ("tau2", "MLLM and VAE while tau2 <= t < tau1, then the VAE alone"),
        ("guidance", "distilled guidance scale"),
    ):
        flags.DEFINE_float(name, None, what, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Draws and writes; nothing is written unless every picture was made."""
    overrides = [arg for arg in argv[1:] if arg.startswith("--config.")]
    parse(values, [arg for arg in argv if arg not in overrides])
    outputs = output_paths(values.output, values.num_images)
    if values.prompt is None:
        raise UserError('no prompt; say what to draw with --prompt="…"')

    from mllmsubj.app.pipeline import TINY, Pipeline  # starts JAX: only after the flags are right
    from mllmsubj.checkpoint import read_config
    from mllmsubj.data.images import open_image

    references = [open_image(path) for path in values.reference]
    config = overridden(read_config(TINY if values.checkpoint == "tiny" else values.checkpoint), overrides)
    pipeline = Pipeline.load(values.checkpoint, config)
    given = {name: values[name].value for name in SETTINGS if values[name].value is not None}
    result = pipeline.generate(
        references, values.prompt, values.num_images, values.seed, progress=sys.stderr.isatty(), **given
    )
    for i, path in enumerate(outputs):
        result.save(path, i)
        print(path)


def output_paths(output: str | None, num_images: int) -> list[Path]:
    """Where the pictures go; raises UserError before any work if they could not be written there."""
    if not output:
        raise UserError("no output; name the PNG to write with --output=FILE.png")
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise UserError(f"output {output!r} is no .png file; metadata is kept in PNGs only")
    if path.is_dir():
        raise UserError(f"output {output!r} is a folder; name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write output {output!r}: {folder} is not a folder that can be written to")
    if num_images < 1:
        raise UserError(f"num_images is {num_images}; it must be at least 1")
    return [path] if num_images == 1 else [path.with_name(f"{path.stem}-{i}{path.suffix}") for i in range(num_images)]


def overridden(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """The config with `--config.KEY=VALUE` applied; raises UserError for a key that does not exist."""
    values, argv = flags.FlagValues(), ["mllmsubj", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        parse(values, argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"config override: {' '.join(str(error).split())}") from None
    return values.config
