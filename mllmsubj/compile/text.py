"""The text of a compiled program, parsed: computations of instructions with the shapes they give."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

WIDTHS = {"pred": 1, "token": 0, "bf16": 2, "f8e4m3fn": 1, "f8e5m2": 1} | {
    f"{kind}{bits}": bits // 8 for kind in "fsu" for bits in (8, 16, 32, 64)
}
"""Bytes of an element."""

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<op>[a-z][\w\-]*)\((?P<rest>.*)$")
_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\{$")
_SHAPE = re.compile(r"\b(?P<type>[a-z]+[0-9]*(?:e\dm\d\w*)?)\[(?P<sides>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")


@dataclass(frozen=True)
class Shape:
    """One array."""

    kind: str
    sides: tuple[int, ...]
    in_hbm: bool
    """False: in a core's own memory."""

    @property
    def bytes(self) -> int:
        return WIDTHS.get(self.kind, 4) * math.prod(self.sides)


@dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    op: str
    shapes: tuple[Shape, ...]
    """Of what it gives."""
    operands: tuple[str, ...]
    text: str
    """All behind the opcode."""


Computation = dict[str, Instruction]
"""By name, in the order in which they run."""


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations, and the name of the one that begins."""
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
