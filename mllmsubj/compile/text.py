"""Parser of a compiled program's text into computations, their instructions and the shapes of results."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

ITEM_BYTES = {"pred": 1, "token": 0, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1} | {
    f"{kind}{bits}": bits // 8 for kind in "fsu" for bits in (8, 16, 32, 64)
}
"""Bytes per element."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(?P<type>[a-z]+[0-9]*(?:e\dm\d\w*)?)\[(?P<sides>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """Type, shape and memory of one array."""

    kind: str
    sides: tuple[int, ...]
    in_hbm: bool
    """Whether the array is in HBM, not in a core's own memory."""

    @property
    def bytes(self) -> int:
        """Size of the array in bytes."""
        return ITEM_BYTES.get(self.kind, 4) * math.prod(self.sides)


@dataclass(frozen=True)
class Instruction:
    """One instruction, a line of the text."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    """Shapes of the results."""
    operands: tuple[str, ...]
    text: str
    """Text after the opcode and its opening parenthesis."""


Computation = dict[str, Instruction]
"""Instructions by name, in running order."""


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns all computations by name, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    entry, body = "", {}
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            body = computations.setdefault(start["name"], {})
            entry = start["name"] if start["entry"] else entry
        elif found := _INSTRUCTION.match(line):
            operands = re.findall(r"%([\w.\-]+)", found["rest"].split("), ")[0])
            shapes = tuple(_shapes(found["shape"]))
            body[found["name"]] = Instruction(found["name"], found["op"], shapes, tuple(operands), found["rest"])
    return computations, entry


def _shapes(text: str) -> Iterator[Shape]:
    for found in _SHAPE.finditer(text):
        sides = tuple(int(side) for side in found["sides"].split(",") if side)
        yield Shape(found["type"], sides, "S(" not in (found["layout"] or ""))
