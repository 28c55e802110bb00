"""Floating-point operations of single instructions of a compiled program."""

import math
import re
from dataclasses import dataclass

from mllmsubj.compile.text import Instruction, Shape


def product_flops(instruction: Instruction, inputs: list[Shape]) -> int:
    """Returns two operations for each multiplication of a `dot` or `convolution`.

    On TPUs, matrix products are compiled to convolutions whose windows mostly cover padding.
    """
    out, text = instruction.shapes[0].sides, instruction.text
    if instruction.op == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", text)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * math.prod(out) * math.prod(inputs[0].sides[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", text)
    assert labels is not None
    left, kernel, result = labels.groups()
    taps = 1
    for i, dim in enumerate(_window(text, len(result) - 2)):
        axis = str(i)
        taps *= dim.taps(inputs[0].sides[left.index(axis)], out[result.index(axis)])
    rows, columns = out[result.index("b")], out[result.index("f")]
    return 2 * rows * columns * inputs[1].sides[kernel.index("i")] * taps


@dataclass(frozen=True)
class _Dimension:
    """One spatial dimension of a convolution's window."""

    size: int = 1
    stride: int = 1
    low: int = 0
    """Padding before the first element."""
    spread: int = 1
    """Dilation of the input."""
    step: int = 1
    """Dilation of the window."""

    def taps(self, inputs: int, outputs: int) -> int:
        """Returns the number of multiplications with input elements, not padding, over all outputs."""
        last = (inputs - 1) * self.spread
        count = 0
        for tap in range(self.size):
            offset = tap * self.step - self.low
            if self.spread == 1:  # the outputs o with 0 <= o * stride + offset <= last
                first = max(0, -(offset // self.stride))
                count += max(0, min(outputs - 1, (last - offset) // self.stride) - first + 1)
            else:
                places = (o * self.stride + offset for o in range(outputs))
                count += sum(0 <= place <= last and place % self.spread == 0 for place in places)
        return count


def _window(text: str, dimensions: int) -> list[_Dimension]:
    window = re.search(r"window=\{([^}]*)\}", text)
    parts = dict(part.split("=") for part in window[1].split()) if window else {}

    def along(name: str, default: str) -> list[str]:
        return parts[name].split("x") if name in parts else [default] * dimensions

    rows = zip(
        along("size", "1"),
        along("stride", "1"),
        (pad.split("_")[0] for pad in along("pad", "0_0")),
        along("lhs_dilate", "1"),
        along("rhs_dilate", "1"),
        strict=True,
    )
    return [_Dimension(*(int(value) for value in row)) for row in rows]


def kernel_flops(instruction: Instruction, inputs: list[Shape]) -> int:
    """Returns the operations of the attention kernel (ops/splash.py), from the shapes of queries and keys.

    It is the only custom kernel, and it has no cost estimate of its own.
    """
    floats = [shape.sides for shape in inputs if shape.kind in ("bf16", "f32")]  # others: masks, segments
    rank = max((len(sides) for sides in floats), default=0)
    arrays = [sides for sides in floats if len(sides) == rank]  # [b, h, s, k], without b if there is one row
    if "splash" not in instruction.name or rank < 3 or len(arrays) < 2:
        return 0
    (*rows, s, k), z = arrays[0], arrays[1][-2]
    products = 2 if "_fwd" in instruction.name else 5  # recomputed scores; gradients of q, k, v and weights
    return 2 * products * math.prod(rows) * s * z * k
