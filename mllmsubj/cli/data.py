"""Previews toyworld, packs a data set into a few large files, or checks that all of it can be read.

mllmsubj data preview --output=SHEET.png [--split=train|test --count=12 --size=128 --seed=0]
mllmsubj data pack --source=SOURCE --output=DIR [--split=train --shards=N --threads=N --examples=N --size=N --seed=0]
mllmsubj data check --source=SOURCE [--split=train --threads=N --examples=N --size=N --seed=0]

preview writes a contact sheet of toyworld: each row has a reference, a prompt with its edits, and a target. pack copies
a data set into files with random access, with images unchanged; the same command resumes after an interruption.
check reads a whole data set, lists broken examples and exits with 2 if there are any.
SOURCE: toyworld, FILE.jsonl, a folder of ArrayRecord or parquet files, tfds:NAME[:CONFIG][@DIR]; UNO-1M's FILE.json.
--split applies to toyworld and TFDS; --examples, --size (pixels) and --seed apply to toyworld.
"""

import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mllmsubj.cli.files import png_path
from mllmsubj.config.overrides import parse
from mllmsubj.errors import UserError, nearest
from mllmsubj.io import write_png

if TYPE_CHECKING:
    from mllmsubj.data.check import Report
    from mllmsubj.data.example import Source

SIZES, COUNTS = (64, 512), (1, 200)
"""Smallest and largest values that preview accepts."""
SHAPES = {
    "1:2": 1 / 2,
    "9:16": 9 / 16,
    "2:3": 2 / 3,
    "3:4": 3 / 4,
    "1:1": 1,
    "4:3": 4 / 3,
    "3:2": 3 / 2,
    "16:9": 16 / 9,
    "2:1": 2 / 1,
}
"""Aspect ratios (width to height) of the histogram of `check`; an image counts for the nearest one."""
BAR = 40
"""Characters of the longest bar."""


def define(values: flags.FlagValues) -> None:
    """Defines the flags of all actions."""
    flags.DEFINE_string("source", None, "data set to read (pack, check)", flag_values=values)
    flags.DEFINE_string("output", None, "PNG file (preview) or folder (pack) to write", flag_values=values)
    flags.DEFINE_string("split", "train", "part of toyworld or of a TFDS data set", flag_values=values)
    flags.DEFINE_integer("count", 12, "examples to show (preview)", *COUNTS, flag_values=values)
    flags.DEFINE_integer("size", 128, "side of a toyworld image in pixels", *SIZES, flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the toyworld examples", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("examples", 1000, "number of toyworld examples (pack, check)", 1, flag_values=values)
    flags.DEFINE_integer("shards", None, "files to write; default: 2000 examples each (pack)", 1, flag_values=values)
    flags.DEFINE_integer("threads", os.cpu_count(), "threads that read and decode (pack, check)", 1, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Runs the action that is the first argument."""
    program, rest = argv[0], argv[1:]
    action = next((word for word in rest if not word.startswith("-")), None)
    if action is None or rest[0] != action:
        raise UserError(
            f"data needs an action first: {', '.join(ACTIONS)}; such as mllmsubj data preview --output=a.png"
        )
    if action not in ACTIONS:
        raise UserError(f"unknown action {action!r}{nearest(action, ACTIONS)}; known: {', '.join(ACTIONS)}")
    parse(values, [program, *rest[1:]])
    act, known = ACTIONS[action]
    for name in values:
        if values[name].present and name not in known:
            raise UserError(f"--{name} is not a flag of data {action}; its flags: --{', --'.join(known)}")
    act(values)


def preview(values: flags.FlagValues) -> None:
    """Writes the contact sheet."""
    output = png_path(values.output)

    from mllmsubj.toyworld import Split, example
    from mllmsubj.toyworld.dataset.sheet import sheet

    if values.split not in list(Split):
        raise UserError(
            f"split is {values.split!r}{nearest(values.split, map(str, Split))}; toyworld has {' and '.join(Split)}"
        )
    examples = [example(Split(values.split), i, values.seed) for i in range(values.count)]
    write_png(sheet(examples, values.size), output)
    print(f"{values.count} examples of the {values.split} split in {output}")


def pack(values: flags.FlagValues) -> None:
    """Writes the pack and prints a summary."""
    if not values.output:
        raise UserError("no output; name the pack's folder with --output=DIR")
    if "://" in values.output:
        raise UserError(f"output {values.output!r} is a bucket; write the pack to a local folder and copy it there")
    output = Path(values.output).expanduser()
    source = _open(values)

    from tqdm import tqdm

    from mllmsubj.data.pack import PackCallbacks, pack

    try:
        with tqdm(total=len(source), unit=" examples", disable=None) as bar:
            done = pack(source, output, values.shards, values.threads, PackCallbacks(bar.update, _report_skipped))
    except OSError as error:
        raise UserError(f"cannot write the pack {str(output)!r}: {error.strerror or error}") from error
    size = sum(each.stat().st_size for each in output.iterdir())
    files = len(done.about["shards"])
    print(f"{len(done)} examples, {done.about['skipped']} skipped, in {output}: {files} shards, {size / 2**20:.1f} MiB")


def check(values: flags.FlagValues) -> None:
    """Reads all examples and prints a summary; raises UserError if any is broken."""
    source = _open(values)

    from tqdm import tqdm

    from mllmsubj.data.check import validate

    with tqdm(total=len(source), unit=" examples", disable=None) as bar:
        report = validate(source, values.threads, bar.update)
    print("\n".join([*report.broken, *_summary(source, report)]))
    if report.broken:
        raise UserError(f"{len(report.broken)} of {report.examples} examples are broken; they are listed above")


ACTIONS = {
    "preview": (preview, ("output", "split", "count", "size", "seed")),
    "pack": (pack, ("source", "output", "split", "shards", "threads", "examples", "size", "seed")),
    "check": (check, ("source", "split", "threads", "examples", "size", "seed")),
}
"""Name -> function and its flags."""


def _open(values: flags.FlagValues) -> "Source":
    if not values.source:
        raise UserError("no source; name the data set with --source=SOURCE, such as --source=pairs.jsonl")
    from mllmsubj.data.sources import open_named

    return open_named(values.source, values.split, values.examples, values.size, values.seed)


def _report_skipped(why: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"mllmsubj: skipped {why}", file=sys.stderr)


def _summary(source: "Source", report: "Report") -> list[str]:
    lines = [f"{source!r}", f"{report.examples} examples, {len(report.broken)} broken"]
    lines += [
        f"{count} with {number} reference{'s' * (number > 1)}" for number, count in sorted(report.references.items())
    ]
    for name, values in sorted(report.scores.items()):
        missing = report.examples - len(report.broken) - len(values)
        lines.append(f"score {name}: {min(values):g} to {max(values):g}" + f", missing in {missing}" * (missing > 0))
    return lines + _histogram(report.sizes)


def _histogram(sizes: Counter[tuple[int, int]]) -> list[str]:
    """Returns a line for each aspect ratio: the number of targets and their range of sizes."""
    groups: dict[str, Counter[tuple[int, int]]] = {}
    for (width, height), count in sizes.items():
        shape = min(
            SHAPES, key=lambda name: abs(SHAPES[name] * height / width - 1) + abs(width / height / SHAPES[name] - 1)
        )
        groups.setdefault(shape, Counter())[width, height] += count
    most = max((group.total() for group in groups.values()), default=0)
    lines = []
    for shape in SHAPES:
        if group := groups.get(shape):
            least, largest = (end(group, key=lambda size: size[0] * size[1]) for end in (min, max))
            sides = f"{least[0]}x{least[1]} to {largest[0]}x{largest[1]}"
            lines.append(
                f"targets near {shape:>4}  {group.total():>9}  {sides}  {'#' * -(-group.total() * BAR // most)}"
            )
    return lines
