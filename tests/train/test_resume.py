"""An interrupted run that is resumed ends like one that was not interrupted."""

import signal
import time

import numpy as np
import pytest

from mllmsubj.errors import UserError
from tests.train.runs import arrays, assert_identical, losses, start, train_here, wait_for_step


def killed_and_whole(monkeypatch, tmp_path, steps, kills):
    """Checks that two runs of `steps` steps per stage agree, one of them killed at the steps `kills` or soon after."""
    overrides = [f"train.stage1.steps={steps}", f"train.stage2.steps={steps}"]
    changes = dict(train__stage1__steps=steps, train__stage2__steps=steps)
    rng = np.random.default_rng()
    train_here(monkeypatch, tmp_path / "whole", **changes)
    for step in kills:
        process = start(tmp_path / "killed", *overrides)
        wait_for_step(process, step)
        time.sleep(rng.uniform(0.0, 0.3))  # a save begins right after that line
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    train_here(monkeypatch, tmp_path / "killed", **changes)
    assert_identical(arrays(tmp_path / "killed"), arrays(tmp_path / "whole"))
    np.testing.assert_array_equal(losses(tmp_path / "killed"), losses(tmp_path / "whole"))
    assert len(losses(tmp_path / "whole")) == 2 * steps


def test_resume_killed(tmp_path, monkeypatch, caplog):
    """One kill is between the stages and one in stage 2; starting the finished run again changes nothing."""
    killed_and_whole(monkeypatch, tmp_path, 4, kills=(4, 6))
    workdir = tmp_path / "whole"
    before, lines = arrays(workdir), (workdir / "metrics.jsonl").read_text()
    caplog.clear()
    caplog.set_level("INFO", "mllmsubj")
    steps = dict(train__stage1__steps=4, train__stage2__steps=4)
    train_here(monkeypatch, workdir, **steps)
    assert "already finished at step 8" in caplog.messages
    assert not [message for message in caplog.messages if message.startswith("compiled")]
    assert_identical(arrays(workdir), before)
    assert (workdir / "metrics.jsonl").read_text() == lines
    with pytest.raises(UserError, match=r"is at step 8 already, beyond the 6 .* set train.stage2.steps to 4 or more"):
        train_here(monkeypatch, workdir, **(steps | dict(train__stage2__steps=2)))


@pytest.mark.slow
def test_resume_killed_repeatedly(tmp_path, monkeypatch):
    killed_and_whole(monkeypatch, tmp_path, 20, kills=range(1, 40, 2))
