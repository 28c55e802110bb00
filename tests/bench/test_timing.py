import pytest

from mllmsubj.bench.timing import alternate, summary


def test_summary_ratio():
    """The ratio is our time over the peer's, so it is below one where ours is faster."""
    found = summary({"ours": [1.0, 1.0, 4.0], "peer": [2.0, 4.0, 2.0], "other": [9.0, 9.0, 9.0]}, "ours", "peer")
    assert found["median_seconds"] == {"ours": 1.0, "peer": 2.0, "other": 9.0}
    assert found["ratio"] == pytest.approx(0.5)  # the median of 0.5, 0.25 and 2, round by round
    assert found["ratio_range"] == [0.25, 2.0]
    assert found["rounds"] == 3


def test_alternate_order():
    """Functions are called alternately, and a first round is not timed."""
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert "".join(calls) == "ab" * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
