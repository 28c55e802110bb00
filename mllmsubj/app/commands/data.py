"""mllmsubj data preview --output=sheet.png [--split=train|test --count=12 --size=128 --seed=0]

Writes a contact sheet of toyworld: in each row a reference, a prompt with what it asks for, and a target.
"""

from absl import flags

from mllmsubj.app.cli import parse
from mllmsubj.app.files import png_path, write_png
from mllmsubj.errors import UserError, nearest

ACTIONS = ("preview",)
SIZES, COUNTS = (64, 512), (1, 200)
"""Smallest and largest that are allowed."""


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("output", None, "PNG file to write", flag_values=values)
    flags.DEFINE_enum("split", "train", ["train", "test"], "part of the world to show", flag_values=values)
    flags.DEFINE_integer("count", 12, "examples", *COUNTS, flag_values=values)
    flags.DEFINE_integer("size", 128, "pixels of a picture's side", *SIZES, flag_values=values)
    flags.DEFINE_integer("seed", 0, "which examples", lower_bound=0, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Draws the sheet and says where it is."""
    program, rest = argv[0], argv[1:]
    action = next((word for word in rest if not word.startswith("-")), None)
    if action is None or rest[0] != action:
        raise UserError("data needs an action first: mllmsubj data preview --output=sheet.png")
    if action not in ACTIONS:
        raise UserError(f"unknown action {action!r}{nearest(action, ACTIONS)}; known: {', '.join(ACTIONS)}")
    parse(values, [program, *rest[1:]])
    output = png_path(values.output)

    from mllmsubj.data.toyworld import Split, example
    from mllmsubj.data.toyworld.sheet import sheet

    examples = [example(Split(values.split), i, values.seed) for i in range(values.count)]
    write_png(sheet(examples, values.size), output)
    print(f"{values.count} examples of the {values.split} split in {output}")
