"""mllmsubj demo [--workdir=demo] [--reference=IMG] [--prompt=TEXT]

The main job on this machine: a photograph (scikit-image's cat, unless you give one) and a prompt go in, a new
picture comes out, with the checkpoint that is shipped. Writes reference.png and picture.png into WORKDIR.
"""

import sys
import time
from pathlib import Path

from absl import flags

from mllmsubj.app.cli import parse
from mllmsubj.app.files import write_png
from mllmsubj.errors import UserError


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("workdir", "demo", "folder to write to", flag_values=values)
    flags.DEFINE_string("reference", None, "picture of the subject, instead of the cat", flag_values=values)
    flags.DEFINE_string("prompt", "the cat in the picture, on the moon", "what to draw", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Draws one picture and says what was done."""
    parse(values, argv)
    workdir = Path(values.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {values.workdir!r} is a file; name a folder")

    from mllmsubj.app.pipeline import Pipeline  # starts JAX: only after the flags are right
    from mllmsubj.data.images import open_image

    start = time.perf_counter()
    photograph = open_image(values.reference) if values.reference else _cat()
    pipeline = Pipeline.load("tiny")
    result = pipeline.generate(photograph, values.prompt, progress=sys.stderr.isatty())
    result.save(workdir / "picture.png")
    write_png(photograph, workdir / "reference.png")
    print(f"reference  {workdir / 'reference.png'}")
    print(f"prompt     {values.prompt}")
    print(f"picture    {workdir / 'picture.png'}, in {time.perf_counter() - start:.0f} s")


def _cat():
    from PIL import Image

    try:
        from skimage import data
    except ImportError:
        raise UserError("the demo's photograph comes with scikit-image: install it, or give --reference=IMG") from None
    return Image.fromarray(data.chelsea())
