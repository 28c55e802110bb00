import numpy as np
import pytest

from mllmsubj.toyworld.benchmark.scores import MAX_PSNR, MEANINGS, copy_scores, interval, probe_scores, psnr, scores
from mllmsubj.toyworld.benchmark.tallies import accuracy, prompt
from tests.toyworld.benchmark.cases import case, read, stacked


def pair():
    plain, asked = case(("time", "day")), case(("facing", "right"), reasoning=True)
    examples, drawn = stacked((plain, read(plain, time="night")), (asked, read(asked, shape="cat")))
    return examples, drawn, np.stack([read(example) for example in examples])


def test_scores():
    """Metrics come with intervals and with their values on real images."""
    found = dict(scores(*pair()))
    assert found["identity_accuracy"] == pytest.approx(1 - 0.5 / 6)
    assert found["prompt_accuracy"] == 0.5
    assert found["reasoning_accuracy"] == found["reasoning_all_right"] == 1
    assert found["identity_all_right"] == found["prompt_all_right"] == 0.5
    assert found["all_right"] == 0
    assert found["pose_copy_rate"] == 0
    assert found["pose_copy_chance"] == pytest.approx(0.4)
    assert found["identity/shape"] == 0.5
    for name in ("identity_accuracy", "prompt_accuracy", "reasoning_accuracy", "all_right", "identity/shape"):
        assert found[f"{name}/real"] == 1
        assert found[f"{name}/low"] <= found[name] <= found[f"{name}/high"]
    assert np.isnan(found["prompt/tilt"])
    assert {name for name in MEANINGS if not name.startswith(("probe", "copy"))} <= set(found)


def test_of_probe():
    examples, drawn, real = pair()
    found = dict(probe_scores(examples, drawn))
    assert found["probe/shape"] == found["probe/time"] == found["probe_least"] == 0.5
    assert found["probe_accuracy"] == pytest.approx(1 - 1 / 14)
    assert dict(probe_scores(examples, real))["probe_least"] == 1


def test_interval_width():
    """Intervals contain the true rate and shrink with the number of examples."""
    good, bad = case(("time", "day")), case(("time", "day"))
    widths = []
    for n in (25, 100):
        tally = prompt(*stacked(*[(good, read(good))] * (3 * n), *[(bad, read(bad, time="night"))] * n))
        low, high = interval(accuracy, tally, 4 * n)
        assert low < 0.75 < high
        assert high - low == pytest.approx(2 * 1.96 * (0.75 * 0.25 / (4 * n)) ** 0.5, rel=0.15)
        assert (low, high) == interval(accuracy, tally, 4 * n)
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]


def test_copying_psnr():
    """Copies of the reference have a higher PSNR to it than the targets."""
    rng = np.random.default_rng(0)
    references, targets = rng.integers(0, 256, (2, 3, 8, 8, 3), np.uint8)
    found = dict(copy_scores(references, references, targets))
    assert found["copy_psnr"] == pytest.approx(MAX_PSNR)
    assert found["copy_psnr/real"] < 12
    one = np.full((1, 4, 4, 3), 100, np.uint8)
    assert psnr(one, one + 10)[0] == pytest.approx(20 * np.log10(255 / 10))
