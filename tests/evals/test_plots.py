import json

import numpy as np
import pytest
from PIL import Image

from mllmsubj.checkpoints.format import config_text
from mllmsubj.errors import UserError
from mllmsubj.evals.plots import image_row, loss_curves
from tests.small import small_config

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def shown(picture, colour):
    """Returns whether the image has a pixel of about this color."""
    return (np.abs(np.asarray(picture).astype(int) - colour).max(-1) < 8).any()


def test_image_row_shapes():
    """Images of different widths have the same height in a row."""
    images = {name: Image.new("RGB", (40 + 20 * i, 40), c) for i, (name, c) in enumerate(COLOURS.items())}
    row = image_row(images)
    assert all(shown(row, colour) for colour in COLOURS.values())
    assert 3 < row.width / row.height < 4.5  # 180 to 40, plus the names above
    lowest = np.asarray(row)[-30]
    assert all(shown(lowest, colour) for colour in COLOURS.values())  # all reach the bottom


def test_image_row_long_name():
    """A long name makes the row higher."""
    square = Image.new("RGB", (40, 40), COLOURS["red"])
    named = image_row({"the cat in the picture, on the moon, at night": square})
    assert named.height > image_row({"": square}).height


def run(workdir, lines):
    (workdir / "config.json").write_text(config_text(small_config()))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_loss_curves(tmp_path):
    """Training losses and held-out losses have a panel each."""
    lines = [{"step": step, "time": 0.0, "loss": 1 / step, "loss_t/0.0-0.1": 9.0} for step in range(1, 30)]
    alone = loss_curves(run(tmp_path, [*lines, {"step": 30, "time": 0.0, "loss": None}]))
    evaluated = [{"step": step, "time": 0.0, "loss/all": 1.0, "loss/mllm": 2.0} for step in (10, 20)]
    both = loss_curves(run(tmp_path, lines + evaluated))
    assert both.size == (2 * alone.width, alone.height)
    blue = (31, 119, 180)  # matplotlib's first
    assert shown(alone, blue)
    assert shown(both.crop((alone.width, 0, *both.size)), blue)


def test_loss_curves_without_metrics(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        loss_curves(tmp_path)
