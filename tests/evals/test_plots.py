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
    """Whether a pixel of about this colour is in it."""
    return (np.abs(np.asarray(picture).astype(int) - colour).max(-1) < 8).any()


def test_pictures_of_several_shapes_stand_in_one_row():
    pictures = {name: Image.new("RGB", (40 + 20 * i, 40), c) for i, (name, c) in enumerate(COLOURS.items())}
    row = image_row(pictures)
    assert all(shown(row, colour) for colour in COLOURS.values())
    assert 3 < row.width / row.height < 4.5  # 180 to 40, and the names above
    lowest = np.asarray(row)[-30]
    assert all(shown(lowest, colour) for colour in COLOURS.values())  # all reach the foot


def test_a_long_name_makes_room_for_itself():
    square = Image.new("RGB", (40, 40), COLOURS["red"])
    named = image_row({"the cat in the picture, on the moon, at night": square})
    assert named.height > image_row({"": square}).height


def run(workdir, lines):
    (workdir / "config.json").write_text(config_text(small_config()))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_curves_of_training_and_of_held_out_examples(tmp_path):
    lines = [{"step": step, "time": 0.0, "loss": 1 / step, "loss_t/0.0-0.1": 9.0} for step in range(1, 30)]
    alone = loss_curves(run(tmp_path, [*lines, {"step": 30, "time": 0.0, "loss": None}]))
    judged = [{"step": step, "time": 0.0, "loss/all": 1.0, "loss/mllm": 2.0} for step in (10, 20)]
    both = loss_curves(run(tmp_path, lines + judged))
    assert both.size == (2 * alone.width, alone.height)
    blue = (31, 119, 180)  # matplotlib's first
    assert shown(alone, blue)
    assert shown(both.crop((alone.width, 0, *both.size)), blue)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        loss_curves(tmp_path)
