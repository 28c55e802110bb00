"""mllmsubj bench --what=sampler [--json=FILE] [--width=768 --tokens=256 --steps=8 --repeats=7]
mllmsubj bench --what=train [--json=FILE] [--sizes=tiny,medium --repeats=7]
mllmsubj bench --what=toyworld [--json=FILE] [--size=64 --seconds=3]
mllmsubj bench --what=data [--json=FILE] [--size=512 --seconds=3]
mllmsubj bench --what=import [--json=FILE] [--gigabytes=24 --folder=DIR]

Prints the result as JSON and, with --json, writes it.
"""

import json
from pathlib import Path

from absl import flags

from mllmsubj.app.cli import parse
from mllmsubj.app.files import replacing
from mllmsubj.errors import UserError

WHAT = ("sampler", "train", "toyworld", "data", "import")


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_enum("what", None, WHAT, "what to measure", flag_values=values)
    flags.DEFINE_string("json", None, "file to write the result to", flag_values=values)
    flags.DEFINE_string(
        "folder", None, "where import has its files, unless in the temporary folder", flag_values=values
    )
    flags.DEFINE_list("sizes", "tiny,medium", "what train measures: tiny, medium", flag_values=values)
    for name, default, what in (
        ("width", 768, "width of the transformer"),
        ("tokens", 256, "image tokens, a square number"),
        ("steps", 8, "denoising steps"),
        ("repeats", 7, "rounds; every contestant runs once in each"),
        ("size", None, "pixels of a picture's side; unless told, 64 for toyworld and 512 for data"),
        ("gigabytes", 24, "of the transformer that is imported; twice that is written"),
        ("seconds", 3, "how long to draw toyworld, or a round of reading data"),
    ):
        flags.DEFINE_integer(name, default, what, lower_bound=1, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Measures and prints."""
    parse(values, argv)
    if values.what is None:
        raise UserError(f"nothing to measure; give --what=…, one of: {', '.join(WHAT)}")
    if values.json and not Path(values.json).absolute().parent.is_dir():
        raise UserError(f"cannot write {values.json!r}: its folder is not there")

    text = json.dumps(_measure(values), indent=2)
    print(text)
    if values.json:
        with replacing(Path(values.json)) as partial:
            partial.write_text(text + "\n")


def _measure(values: flags.FlagValues) -> dict[str, object]:
    if values.what == "toyworld":
        from mllmsubj.bench import toyworld

        return toyworld.run(values.size or 64, values.seconds)
    if values.what == "data":
        from mllmsubj.bench import data

        return data.run(values.size or 512, values.seconds)
    if values.what == "import":
        from mllmsubj.bench import importing

        return importing.run(values.gigabytes, values.folder)
    if values.what == "train":
        from mllmsubj.bench import train

        return train.run(values.sizes, values.repeats)
    from mllmsubj.bench import sampler  # starts JAX: only after the flags are right

    return sampler.run(values.width, values.tokens, values.steps, values.repeats)
