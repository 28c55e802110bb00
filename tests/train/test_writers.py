import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.config.train import LogConfig
from mllmsubj.errors import UserError
from mllmsubj.train.writers import BackgroundWriter, JsonlWriter, TensorBoardWriter, Writer, make_writer
from tests.small import small_config


def config(**changes) -> LogConfig:
    return LogConfig(**(dict(every_steps=1, tensorboard=False, wandb="", profile_start=0, profile_steps=0) | changes))


def lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def steps(workdir: Path) -> list[int]:
    return [line["step"] for line in lines(workdir)]


def test_jsonl_writer(tmp_path):
    writer = make_writer(tmp_path, config(), {}, 0)
    writer.write_scalars(1, {"loss": jnp.asarray(0.5), "examples_per_sec": 3})
    writer.write_scalars(2, {"loss": float("nan"), "grad_norm": np.float32("inf")})
    writer.write_images(2, {"samples": np.zeros((1, 2, 2, 3), np.uint8)})
    writer.write_texts(2, {"note": "not here"})
    writer.close()
    first, second = lines(tmp_path)
    assert abs(first.pop("time") - time.time()) < 60
    assert first == {"step": 1, "loss": 0.5, "examples_per_sec": 3.0}
    assert (second["loss"], second["grad_norm"]) == (None, None)


def test_jsonl_writer_resume(tmp_path):
    """A resumed run has each step once."""
    for start, stop in ((0, 7), (4, 6), (5, 8)):
        writer = make_writer(tmp_path, config(), {}, 0, resume_step=start)
        for step in range(start + 1, stop + 1):
            writer.write_scalars(step, {"loss": start})
        writer.close()
    assert steps(tmp_path) == list(range(1, 9))
    assert [line["loss"] for line in lines(tmp_path)] == [0, 0, 0, 0, 4, 5, 5, 5]
    make_writer(tmp_path, config(), {}, 0).close()
    assert lines(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_jsonl_writer_partial_line(tmp_path):
    """An incomplete last line is dropped."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "lo\xc3')
    writer = JsonlWriter(path, resume_step=5)
    writer.write_scalars(6, {"loss": 1.0})
    writer.close()
    assert steps(tmp_path) == [1, 6]


def test_jsonl_writer_killed(tmp_path):
    """Each line is in the file as soon as it is written, so SIGKILL loses none."""
    program = f"""
import os, signal
from pathlib import Path
from mllmsubj.train.writers import JsonlWriter
writer = JsonlWriter(Path({str(tmp_path)!r}) / "metrics.jsonl")
for step in range(1, 100):
    writer.write_scalars(step, {{"loss": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -signal.SIGKILL
    JsonlWriter(tmp_path / "metrics.jsonl", resume_step=60).close()
    assert steps(tmp_path) == list(range(1, 61))


def test_tensorboard_writer(tmp_path):
    """Files are read back with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    writer = make_writer(tmp_path, config(tensorboard=True), small_config(), 0)
    writer.write_scalars(5, {"loss": jnp.asarray(0.25)})
    pictures = np.random.default_rng(0).uniform(size=(2, 4, 6, 3)).astype(np.float32)
    writer.write_images(5, {"samples": pictures})
    writer.write_texts(5, {"note": "hello"})
    writer.close()

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tensors = {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}
    (loss,) = tensors["loss"]
    assert (loss.step, float(make_ndarray(loss.tensor_proto))) == (5, 0.25)
    width, height, first, _ = make_ndarray(tensors["samples"][0].tensor_proto)
    assert (int(width), int(height)) == (6, 4)
    assert np.abs(png(first) / 255 - pictures[0]).max() < 1 / 255
    assert make_ndarray(tensors["note"][0].tensor_proto).item() == b"hello"
    metadata = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    assert b"train.batch_size" in metadata.content
    assert steps(tmp_path) == [5]


def png(data: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)))


def test_tensorboard_without_tensorflow(tmp_path, monkeypatch, caplog):
    """Without TensorFlow, one warning is logged and the other files are written."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    writer = make_writer(tmp_path, config(tensorboard=True), {}, 0)
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    (record,) = caplog.records
    assert "no TensorBoard files" in record.message
    assert "\n" not in record.message
    assert steps(tmp_path) == [1]


def test_tensorboard_lazy_import(tmp_path, monkeypatch, caplog):
    """TensorFlow is imported at the first write."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    TensorBoardWriter(tmp_path)
    assert not caplog.records


def test_make_writer_imports(tmp_path):
    """Neither TensorFlow nor wandb is imported if it is off, or in processes other than the first."""
    program = f"""
import sys
from mllmsubj.config.train import LogConfig
from mllmsubj.train.writers import make_writer
make_writer({str(tmp_path)!r}, LogConfig(1, False, "", 0, 0), {{}}, 0).close()
make_writer({str(tmp_path)!r}, LogConfig(1, True, "project", 0, 0), {{}}, 1).close()
sys.exit("tensorflow" in sys.modules or "wandb" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_make_writer_other_process(tmp_path):
    """Processes other than the first write nothing."""
    writer = make_writer(tmp_path, config(tensorboard=True, wandb="project"), {}, 1)
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_images(1, {"samples": np.zeros((1, 2, 2, 3))})
    writer.close()
    assert list(tmp_path.iterdir()) == []


class Slow(Writer):
    def __init__(self):
        self.closed = False

    def write_scalars(self, step, scalars):
        time.sleep(0.4)
        if step == 2:
            raise OSError("disk full")

    def close(self):
        self.closed = True


def test_background_writer_flush():
    """Writes return at once; `flush` and `close` raise their errors."""
    slow = Slow()
    writer = BackgroundWriter([slow])
    began = time.perf_counter()
    writer.write_scalars(1, {"loss": 1.0})
    writer.write_scalars(2, {"loss": 1.0})
    assert time.perf_counter() - began < 0.3
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    writer.write_scalars(2, {"loss": 1.0})
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert slow.closed


def test_background_writer_write():
    """A write raises the error of an earlier one."""
    writer = BackgroundWriter([Slow()])
    writer.write_scalars(2, {"loss": 1.0})
    time.sleep(0.8)
    with pytest.raises(OSError, match="disk full"):
        writer.write_scalars(3, {"loss": 1.0})
    writer.close()


def test_make_writer_invalid_folder(tmp_path):
    """A folder that cannot be written to is a UserError."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write '.*metrics.jsonl'"):
        make_writer(tmp_path / "file", config(), {}, 0)


def test_jsonl_writer_full_disk(tmp_path):
    program = f"""
import resource
from pathlib import Path
from mllmsubj.errors import UserError
from mllmsubj.train.writers import JsonlWriter
writer = JsonlWriter(Path({str(tmp_path)!r}) / "metrics.jsonl")
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    for step in range(1, 10):
        writer.write_scalars(step, {{"loss": 1.0}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.stdout == f"cannot write '{tmp_path}/metrics.jsonl': File too large\n"


def test_wandb_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log.wandb is 'project' but wandb is not installed; pip install wandb"):
        make_writer(tmp_path, config(wandb="project"), {}, 0)


def test_wandb_resume(tmp_path, monkeypatch):
    """A resumed run keeps its id, in the real library, offline."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for start in (0, 2):
        writer = make_writer(tmp_path, config(wandb="project"), small_config(), 0, resume_step=start)
        writer.write_scalars(start + 1, {"loss": 0.5})
        writer.write_images(start + 1, {"samples": np.zeros((2, 4, 4, 3), np.float32)})
        writer.write_texts(start + 1, {"note": "hello"})
        writer.close()
    identity = (tmp_path / "wandb_id").read_text().strip()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{identity}.wandb"))) == 2


def test_image_files(tmp_path):
    """Images of one name are stacked vertically in a file, which is replaced if the step is repeated."""
    pictures = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    for shown in (pictures[::-1], pictures):
        writer = make_writer(tmp_path, config(), {}, 0)
        writer.write_images(5, {"samples/both": shown})
        writer.write_images(6, {"samples/both": shown / np.float32(255)})
        writer.close()
    folder = tmp_path / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["samples-both-5.png", "samples-both-6.png"]
    for path in folder.iterdir():
        np.testing.assert_array_equal(png(path.read_bytes()), pictures.reshape(8, 6, 3))
