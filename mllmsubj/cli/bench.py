"""Measures speed, compared with a peer where there is one.

mllmsubj bench --what=sampler [--width=768 --tokens=256 --steps=8 --repeats=7]
mllmsubj bench --what=train [--sizes=tiny,medium --repeats=7]
mllmsubj bench --what=toyworld [--size=64 --seconds=3]
mllmsubj bench --what=data [--size=512 --seconds=3]
mllmsubj bench --what=import [--gigabytes=24 --folder=DIR]
mllmsubj bench --what=int8 [--width=512 --steps=8]

Prints the result as JSON and, with --json=FILE, writes it.
"""

import importlib
import json
from pathlib import Path

from absl import flags

from mllmsubj.config.overrides import parse
from mllmsubj.errors import UserError
from mllmsubj.io import writing

BENCHMARKS: dict[str, tuple[str, dict[str, object]]] = {
    "sampler": ("sampler", dict(width=768, tokens=256, steps=8, repeats=7)),
    "train": ("train", dict(sizes=["tiny", "medium"], repeats=7)),
    "toyworld": ("toyworld", dict(size=64, seconds=3)),
    "data": ("data", dict(size=512, seconds=3)),
    "import": ("importing", dict(gigabytes=24, folder=None)),
    "int8": ("int8", dict(width=512, steps=8)),
}
"""Value of --what -> module of `mllmsubj.bench`, and the flags that its `run` takes, with their defaults."""


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_enum("what", None, list(BENCHMARKS), "what to measure", flag_values=values)
    flags.DEFINE_string("json", None, "file to write the result to", flag_values=values)
    flags.DEFINE_string("folder", None, "folder for import's files, by default a temporary one", flag_values=values)
    flags.DEFINE_list("sizes", None, "model sizes that train measures: tiny, medium", flag_values=values)
    for name, what in (
        ("width", "width of the transformer"),
        ("tokens", "image tokens, a square number"),
        ("steps", "denoising steps"),
        ("repeats", "rounds; every implementation runs once in each"),
        ("size", "side of an image in pixels"),
        ("gigabytes", "size of the imported transformer; twice that is written"),
        ("seconds", "duration of rendering toyworld, or of a round of reading data"),
    ):
        flags.DEFINE_integer(name, None, what, lower_bound=1, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Measures and prints the result."""
    parse(values, argv)
    if values.what is None:
        raise UserError(f"nothing to measure; give --what=…, one of: {', '.join(BENCHMARKS)}")
    if values.json and not Path(values.json).absolute().parent.is_dir():
        raise UserError(f"cannot write {values.json!r}: its folder does not exist")
    module, defaults = BENCHMARKS[values.what]
    given = {name: values[name].value for name in values if values[name].present and name not in ("what", "json")}
    for name in given:
        if name not in defaults:
            raise UserError(
                f"--{name} is not a flag of bench --what={values.what}; its flags: --{', --'.join(defaults)}"
            )

    # The import starts JAX, so it comes after the checks of the flags.
    result = importlib.import_module(f"mllmsubj.bench.{module}").run(**(defaults | given))
    text = json.dumps(result, indent=2)
    print(text)
    if values.json:
        with writing(Path(values.json)) as partial:
            partial.write_text(text + "\n")
