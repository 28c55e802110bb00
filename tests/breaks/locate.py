"""The list of breaks, and where in the source each of them applies."""

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIST = Path(__file__).with_name("breaks.toml")
FOLDERS = ("mllmsubj", "launch")
"""Where breaks apply, below the root of the tree."""


@dataclass(frozen=True)
class Break:
    """One deliberate mistake; see the head of breaks.toml."""

    name: str
    function: str
    find: str
    replace: str
    why: str


@dataclass(frozen=True)
class Place:
    """The first and last line, from 1, of a definition in a file."""

    file: Path
    first: int
    last: int


class DoesNotApply(ValueError):
    """A break that fits no place in the source, or several."""


def load(file: Path = LIST) -> tuple[Break, ...]:
    """All breaks, in the order of the list."""
    return tuple(Break(**each) for each in tomllib.loads(file.read_text(encoding="utf-8"))["break"])


def definitions(root: Path) -> dict[str, list[Place]]:
    """Qualified name -> every definition of that name: functions, classes, and what modules and classes assign."""
    found: dict[str, list[Place]] = {}
    for folder in FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            for name, node in _named(ast.parse(file.read_text(encoding="utf-8")), ""):
                found.setdefault(name, []).append(Place(file, node.lineno, node.end_lineno or node.lineno))
    return found


def locate(one: Break, known: dict[str, list[Place]]) -> Place:
    """The only place where a break fits, `known` being what `definitions` gives; raises DoesNotApply otherwise."""
    places = known.get(one.function, [])
    counts = [_text(place).count(one.find) for place in places]
    if sum(counts) != 1:
        where = f"occurs {sum(counts)} times" if places else "is looked for in vain: there is no such definition"
        raise DoesNotApply(f"{one.find!r} in {one.function} {where}")
    return places[counts.index(1)]


def broken(one: Break, place: Place) -> str:
    """The text of the file with the break in it."""
    lines = place.file.read_text(encoding="utf-8").splitlines(keepends=True)
    inside = "".join(lines[place.first - 1 : place.last]).replace(one.find, one.replace)
    return "".join([*lines[: place.first - 1], inside, *lines[place.last :]])


def _text(place: Place) -> str:
    lines = place.file.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[place.first - 1 : place.last])


def _named(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.stmt]]:
    """(qualified name, statement) of every definition inside a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield prefix + child.name, child
            yield from _named(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.Assign | ast.AnnAssign) and isinstance(node, ast.Module | ast.ClassDef):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            names = [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
            yield from ((prefix + name, child) for name in names)
        else:
            yield from _named(child, prefix)
