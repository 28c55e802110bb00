"""Conversion tables that take rows of tensors: each row is used exactly once."""

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mllmsubj.convert.engine import Entry, TensorFiles, convert, taken, unmatched
from mllmsubj.convert.renames import Rename, fused, renamed
from mllmsubj.errors import UserError

FUSED = np.arange(12, dtype=np.float32).reshape(6, 2)


def halves(*rows, height=6):
    return [Entry("x", f"part_{i}", "linear", rows=(span,), height=height) for i, span in enumerate(rows)]


def expected(*shapes):
    return {f"part_{i}": np.zeros(shape) for i, shape in enumerate(shapes)}


def test_convert_rows():
    """Rows are taken from a tensor before its layout is changed."""
    found = convert({"x": FUSED}, halves((0, 4), (4, 6)), expected((2, 4), (2, 2)), "here")
    np.testing.assert_array_equal(found["part_0"], FUSED[:4].T)
    np.testing.assert_array_equal(found["part_1"], FUSED[4:].T)


def test_taken_rows_reordered():
    entry = Entry("x", "y", rows=((4, 6), (0, 4)), height=6)
    np.testing.assert_array_equal(taken(entry, FUSED), np.concatenate([FUSED[4:], FUSED[:4]]))


@pytest.mark.parametrize(
    "rows", [[(0, 4)], [(2, 6)], [(0, 3), (4, 6)], [(0, 4), (3, 6)], [(0, 6), (0, 6)], [(0, 5), (5, 7)]], ids=str
)
def test_unmatched_rows(rows):
    """Rows that are unused or used twice are reported."""
    table = halves(*rows)
    assert unmatched(["x"], table, [entry.target for entry in table]) == ["rows of 'x' are left over or used twice"]


def test_unmatched_tensor_used_twice():
    assert "used twice" in unmatched(["x"], [Entry("x", "a"), Entry("x", "b")], ["a", "b"])[0]


@pytest.mark.parametrize("shape", [(2, 2), (4, 2), (7, 2)])
def test_convert_mismatched_height(shape):
    """The error lists the height and all other mismatches, even where a part happens to have the right shape."""
    table = [*halves((0, 2), (2, 4), (4, 6)), Entry("y", "y")]
    sizes = expected((2, 2), (2, 2), (2, 2)) | {"y": np.zeros(3)}
    with pytest.raises(UserError, match=r"'x' has shape .*part_0.*part_2.*'y' has shape \(1,\)"):
        convert({"x": np.zeros(shape), "y": np.zeros(1)}, table, sizes, "here")


def test_convert_mismatched_layout():
    with pytest.raises(UserError, match=r"'x' has shape \(3, 3\), which does not fit 'y'"):
        convert({"x": np.zeros((3, 3))}, [Entry("x", "y", "pixel")], {"y": np.zeros((3, 3))}, "here")


def test_renamed_table():
    table = [Entry("q.weight", "q", "linear"), Entry("k.weight", "k", "linear"), Entry("out", "out")]
    names = [*fused([r"^q(?=\.)", r"^k(?=\.)"], "qk", [2, 1]), Rename("^out", "o", ((1, 2), (0, 1)), 2)]
    assert renamed(table, names) == [
        Entry("qk.weight", "q", "linear", rows=((0, 2),), height=3),
        Entry("qk.weight", "k", "linear", rows=((2, 3),), height=3),
        Entry("o", "out", rows=((1, 2), (0, 1)), height=2),
    ]


def test_tensor_files_float8(tmp_path):
    """bfloat16 is read; an 8-bit float is an error that names the tensor and its type."""
    save_file({"x": np.zeros(2, ml_dtypes.bfloat16)}, tmp_path / "a.safetensors")
    assert TensorFiles(tmp_path / "a.safetensors")["x"].dtype == ml_dtypes.bfloat16
    save_file({"x": np.zeros(2, ml_dtypes.float8_e4m3fn)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="'x' is F8_E4M3; give the file with bfloat16"):
        TensorFiles(tmp_path / "a.safetensors")["x"]
