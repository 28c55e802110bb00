"""mllmsubj data preview --output=sheet.png [--split=train|test --count=12 --size=128 --seed=0]

Writes a contact sheet of toyworld: in each row a reference, a prompt with what it asks for, and a target.
"""

from pathlib import Path

from absl import flags
from PIL import Image

from mllmsubj.app.cli import parse
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
    output = _output(values.output)

    from mllmsubj.data.toyworld import Split, example
    from mllmsubj.data.toyworld.sheet import sheet

    examples = [example(Split(values.split), i, values.seed) for i in range(values.count)]
    _write(sheet(examples, values.size), output)
    print(f"{values.count} examples of the {values.split} split in {output}")


def _output(name: str | None) -> Path:
    if not name:
        raise UserError("nowhere to write the sheet; give --output=sheet.png")
    path = Path(name).expanduser()
    if path.suffix.lower() != ".png":
        raise UserError(f"output {name!r} must end in .png")
    if path.is_dir():
        raise UserError(f"output {name!r} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"cannot write {name!r}: its folder is not there")
    return path


def _write(page: Image.Image, output: Path) -> None:
    """Through a temporary name, so that nothing is left half-written."""
    draft = output.with_name(f".{output.name}.part")
    try:
        page.save(draft, "PNG")
        draft.replace(output)
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror or error}") from None
    finally:
        draft.unlink(missing_ok=True)
