"""Cost of a compiled TPU program, from its text: products, memory traffic and collectives, times loop iterations.

XLA's own `cost_analysis` counts the body of a loop once; here it counts once per iteration.
"""

import re
from dataclasses import dataclass, field

from mllmsubj.compile.products import kernel_flops, product_flops
from mllmsubj.compile.text import Computation, Instruction, Shape, parse

FREE_OPCODES = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "after-all")
"""Opcodes that move no data."""
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_CALLED = re.compile(r"\b(?:calls|body|to_apply)=%([\w.\-]+)")
_GROUPS = re.compile(r"replica_groups=(?:\[(\d+),(\d+)\]|\{\{([\d,]*)\})")


@dataclass
class Work:
    """Work of one device."""

    flops: int = 0
    """FLOPs of matrix products and convolutions."""
    bytes: int = 0
    """Bytes read from and written to HBM."""
    seconds: float = 0.0
    """Time with each instruction at the peak rate of its bottleneck and collectives overlapped; see `PeakRates`."""
    cycles: float = 0.0
    """Cycles that the compiler estimates."""
    collectives: dict[str, float] = field(default_factory=dict)
    """Kind -> bytes sent over links."""

    def add(self, other: "Work", times: int) -> None:
        """Adds the work of `other`, multiplied by `times`."""
        for name in ("flops", "bytes", "seconds", "cycles"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for kind, count in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, 0.0) + times * count


@dataclass(frozen=True)
class PeakRates:
    """Peak rates of one device: FLOP/s, and bytes/s of HBM and of its links in one direction."""

    flops: float
    hbm: float
    links: float


class Module:
    """Parsed text of a compiled program."""

    def __init__(self, text: str) -> None:
        """`text`: optimized HLO, as `jax.stages.Compiled.as_text` returns it."""
        self.computations, self.entry = parse(text)

    def work(self, roof: PeakRates) -> Work:
        """Returns the work of one run of the program."""
        return self._work(self.entry, roof, {})

    def _work(self, name: str, roof: PeakRates, known: dict[str, Work]) -> Work:
        """Returns the work of a computation; its collectives overlap with all else, so the longer of both counts."""
        if name in known:
            return known[name]
        total, links, inner = Work(), 0.0, 0.0
        for instruction in self.computations[name].values():
            one = Work()
            if instruction.op in ("while", "call"):
                times = self.iterations(instruction) if instruction.op == "while" else 1
                total.add(inside := self._work(_called(instruction), roof, known), times)
                inner += times * inside.seconds
                continue
            kind = next((kind for kind in COLLECTIVES if instruction.op in (kind, f"{kind}-start")), None)
            if kind is not None:
                one.collectives[kind] = self._sent(kind, instruction)
                links += one.collectives[kind] / roof.links
            elif not _moves_nothing(instruction):
                one.flops, one.bytes = self._flops(name, instruction), self._traffic(name, instruction)
                one.seconds = max(one.flops / roof.flops, one.bytes / roof.hbm)
                cycles = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
                one.cycles = float(cycles[1]) if cycles else 0.0
            total.add(one, 1)
        total.seconds = max(total.seconds - inner, links) + inner
        known[name] = total
        return total

    def iterations(self, loop: Instruction) -> int:
        """Returns the number of iterations of a `while` loop.

        The loop must count from 0 in equal steps to a constant, as compiled scans and split products do.
        """
        names = {key: re.search(rf"{key}=%([\w.\-]+)", loop.text) for key in ("condition", "body")}
        condition, body = (self.computations[found[1]] for found in names.values() if found)
        limit = max((value for i in condition.values() if (value := _constant(i)) is not None), default=1)
        test = next((i for i in condition.values() if i.op == "compare"), None)
        counter = condition.get(test.operands[0]) if test else None
        place = re.search(r"index=(\d+)", counter.text) if counter else None
        root = list(body.values())[-1]  # inputs of the next iteration
        if place is None or root.op != "tuple":
            return limit
        added = body.get(root.operands[int(place[1])])
        steps = [_constant(body[name]) for name in added.operands if name in body] if added else []
        return -(-limit // next((step for step in steps if step), 1))

    def _flops(self, computation: str, instruction: Instruction) -> int:
        if instruction.op == "custom-call":
            return kernel_flops(instruction, self._inputs(computation, instruction))
        if instruction.op in ("dot", "convolution"):
            return product_flops(instruction, self._inputs(computation, instruction))
        if instruction.op not in ("fusion", "async-start"):
            return 0
        called = _called(instruction)
        return sum(self._flops(called, i) for i in self.computations[called].values())

    def _traffic(self, computation: str, instruction: Instruction) -> int:
        """Returns bytes of HBM read and written; of a slice or an in-place update, only the affected part."""
        given, taken = list(instruction.shapes), self._inputs(computation, instruction)
        if instruction.op in ("dynamic-slice", "slice", "gather"):
            taken = [shape if i else given[0] for i, shape in enumerate(taken)]
        if instruction.op == "dynamic-update-slice":
            given, taken = taken[1:2], taken[1:2]
        if instruction.op == "async-start":
            called = _called(instruction)
            inside = self.computations[called].values()
            return sum(self._traffic(called, i) for i in inside if not _moves_nothing(i))
        if instruction.op in ("slice-start", "dynamic-slice-start"):  # results: the input, then the slice
            part = given[1]
            return part.bytes * (taken[0].in_hbm + part.in_hbm)
        if instruction.op != "fusion":
            given = given[:1] if instruction.op.endswith("-start") else given  # the other results are its inputs
            return sum(shape.bytes for shape in (*given, *taken) if shape.in_hbm)
        body, parameters = self._fused(instruction)
        root = list(body.values())[-1]
        results = [body[name] for name in root.operands] if root.op == "tuple" else [root]
        reads = sum(self._read(body, i) for i, shape in zip(parameters, taken, strict=False) if shape.in_hbm)
        return reads + sum(_written(body, i) for i, shape in zip(results, given, strict=False) if shape.in_hbm)

    def _fused(self, fusion: Instruction) -> tuple[Computation, list[Instruction]]:
        """Returns the computation that a fusion calls, and its parameters in order."""
        body = self.computations[_called(fusion)]
        parameters = (i for i in body.values() if i.op == "parameter")
        return body, sorted(parameters, key=lambda i: int(i.text.split(")")[0]))

    def _read(self, body: Computation, value: Instruction) -> int:
        """Returns the number of bytes that a fusion reads of one of its inputs."""
        total, whole = 0, value.shapes[0].bytes
        for user in (i for i in body.values() if value.name in i.operands):
            if user.op == "bitcast" or "output_to_operand_aliasing" in user.text:  # not a real copy
                total += self._read(body, user)
            elif user.op == "fusion":
                inner, parameters = self._fused(user)
                places = [i for i, name in enumerate(user.operands) if name == value.name]
                total += sum(self._read(inner, parameters[i]) for i in places)
            elif user.op == "dynamic-slice" and user.operands[0] == value.name:
                total += user.shapes[0].bytes
            elif user.op != "dynamic-update-slice" or user.operands[0] != value.name:
                return whole
        return min(total, whole)

    def _inputs(self, computation: str, instruction: Instruction) -> list[Shape]:
        body = self.computations[computation]
        return [shape for name in instruction.operands if name in body for shape in body[name].shapes]

    def _sent(self, kind: str, instruction: Instruction) -> float:
        """Returns the bytes that a device sends, assuming ring algorithms."""
        groups = _GROUPS.search(instruction.text)
        size = 2
        if groups:
            size = int(groups[2]) if groups[2] else groups[3].count(",") + 1
        given = [shape.bytes for shape in instruction.shapes if shape.kind != "token"]
        whole = float(max(given, default=0) if instruction.op.endswith("-start") else sum(given))
        share = (size - 1) / size
        if kind == "reduce-scatter":
            return whole * (size - 1)  # its result is one shard
        return whole * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(kind, share)


def _called(instruction: Instruction) -> str:
    """Returns the name of the computation that an instruction calls; for a loop, of its body."""
    found = _CALLED.search(instruction.text)
    assert found is not None, f"{instruction.name} calls nothing"
    return found[1]


def _moves_nothing(instruction: Instruction) -> bool:
    return instruction.op in FREE_OPCODES or instruction.op.endswith("-done") or '"AllocateBuffer"' in instruction.text


def _constant(instruction: Instruction) -> int | None:
    found = re.match(r"(\d+)\)", instruction.text) if instruction.op == "constant" else None
    return int(found[1]) if found else None


def _written(body: Computation, result: Instruction) -> int:
    """Returns the number of bytes that a fusion writes of one of its outputs."""
    if result.op == "bitcast":
        return _written(body, body[result.operands[0]])
    if result.op == "dynamic-update-slice":
        return body[result.operands[1]].shapes[0].bytes
    return result.shapes[0].bytes
