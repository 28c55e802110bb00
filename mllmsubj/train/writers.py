"""Writers of a run's metrics and images: `metrics.jsonl`, `samples/`, TensorBoard, Weights & Biases."""

import html
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from mllmsubj.config.train import LogConfig
from mllmsubj.errors import UserError
from mllmsubj.io import replacing
from mllmsubj.typing import Array

log = logging.getLogger("mllmsubj")

Scalar = float | int | Array


class Writer:
    """The subset of `clu.metric_writers.MetricWriter` that training uses; this class writes nothing.

    clu's own class is not the base because importing it requires TensorFlow and takes 3.5 s on every host.
    """

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes numbers at a step, by name."""

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Writes images [n, height, width, 3], uint8 or floats in [0, 1], by name."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts at a step, by name."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the config, once: dotted key -> number, string or bool."""

    def flush(self) -> None:
        """Waits until everything is written; raises errors that occurred meanwhile."""

    def close(self) -> None:
        """Flushes and closes; nothing can be written afterwards."""


def make_writer(
    workdir: str | Path,
    config: LogConfig,
    settings: Mapping[str, Any] | ConfigDict,
    process_index: int,
    resume_step: int = 0,
) -> Writer:
    """Returns the writers that `config` enables, on one thread; on processes other than 0, one that writes nothing.

    `settings` is the whole config, written with the numbers. `resume_step` is the step that the run resumes from.
    Raises UserError if something cannot be opened; later errors are raised by the next call.
    """
    if process_index != 0:
        return Writer()
    workdir = Path(workdir)
    with ExitStack() as opened:
        writers: list[Writer] = [JsonlWriter(workdir / "metrics.jsonl", resume_step)]
        opened.callback(writers[0].close)
        writers.append(PngWriter(workdir / "samples"))
        if config.tensorboard:
            writers.append(TensorBoardWriter(workdir / "tensorboard"))
        if config.wandb:
            writers.append(WandbWriter(workdir, config.wandb))
        opened.pop_all()
    writer = BackgroundWriter(writers)
    writer.write_hparams(dict(_flat(settings)))
    return writer


class JsonlWriter(Writer):
    """Scalars, one line per write: {"step": 100, "time": 1764000000.0, "loss": 0.41}; NaN and Inf become null."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Appends to the file of an earlier start, after removing its lines on steps after `resume_step`.

        Those steps are repeated. An incomplete line is removed, too. With `resume_step` 0 all lines are removed.
        """
        self._path = path
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._keep(resume_step)
            self._file = path.open("a", encoding="utf-8")

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes a line."""
        values = {name: float(np.asarray(value)) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _writing(self._path):
            self._file.write(json.dumps({"step": int(step), "time": round(time.time(), 3)} | finite) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        with _writing(self._path):
            self._file.close()

    def _keep(self, resume_step: int) -> None:
        lines = self._path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if resume_step and _step(line) <= resume_step]
        if kept != lines:
            with replacing(self._path) as partial:
                partial.write_bytes(b"".join(kept))


class PngWriter(Writer):
    """Images as `FOLDER/NAME-STEP.png`, those of one name in a column, to view without TensorBoard."""

    def __init__(self, folder: Path) -> None:
        """Writes to `folder`, which is created with the first image."""
        self._folder = folder

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Writes a file for each name."""
        for name, pictures in images.items():
            path = self._folder / f"{name.replace('/', '-')}-{step}.png"
            with _writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as partial:
                    Image.fromarray(_to_uint8(np.concatenate(list(pictures)))).save(partial, "PNG")


class TensorBoardWriter(Writer):
    """TensorBoard's event files, through clu; writes nothing, with a warning, where TensorFlow is missing."""

    def __init__(self, folder: Path) -> None:
        """Writes to `folder`, which is created with the first write."""
        self._folder = folder

    @cached_property
    def _writer(self) -> Any:
        """Created at the first call, on the thread of `BackgroundWriter`: TensorFlow takes seconds to import."""
        # TensorFlow reads this at import; by default it logs lines on oneDNN and the CPU.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        try:
            import tensorflow as tf
            from clu.metric_writers import SummaryWriter
        except ImportError as error:
            log.warning("no TensorBoard files: %s; pip install 'mllmsubj[train]', or log.tensorboard=False", error)
            return Writer()
        with suppress(RuntimeError):  # TensorFlow is initialized already, by other code
            tf.config.set_visible_devices([], "GPU")  # TensorFlow would allocate all their memory
        return SummaryWriter(str(self._folder))

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Writes scalars and flushes."""
        self._writer.write_scalars(step, scalars)
        self._writer.flush()  # clu flushes every two minutes only: a killed run would lose the last ones

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Writes image summaries."""
        self._writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes text summaries."""
        self._writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes hyperparameters."""
        self._writer.write_hparams(hparams)

    def flush(self) -> None:
        """Flushes clu's writer."""
        self._writer.flush()

    def close(self) -> None:
        """Closes clu's writer."""
        self._writer.close()


class WandbWriter(Writer):
    """Weights & Biases; a resumed run continues under the id stored in its workdir. wandb's login stores the key."""

    def __init__(self, workdir: Path, project: str) -> None:
        """Starts or resumes a run; raises UserError if wandb is not installed or does not start."""
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f'config key log.wandb is {project!r} but wandb is not installed; pip install wandb, or set it to ""'
            ) from error
        identity = workdir / "wandb_id"
        with _writing(identity):
            workdir.mkdir(parents=True, exist_ok=True)
            if not identity.exists():
                identity.write_text(secrets.token_hex(4) + "\n")
            run = identity.read_text().strip()
        # By default wandb captures the output to the terminal, which has the status line.
        options = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(project=project, dir=str(workdir), id=run, resume="allow", settings=options)
        except Exception as error:  # wandb raises exceptions of many types
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"Weights & Biases does not start: {reason}; `wandb login`, or WANDB_MODE=offline"
            ) from error
        self._wandb = wandb
        # wandb's own step must increase, so the steps that a resumed run repeats would be lost.
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Logs numbers."""
        self._run.log({"step": step} | {name: float(value) for name, value in scalars.items()})

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Logs images."""
        pictures = {name: [self._wandb.Image(_to_uint8(one)) for one in array] for name, array in images.items()}
        self._run.log({"step": step} | pictures)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Logs texts as HTML."""
        pages = {name: self._wandb.Html(f"<pre>{html.escape(text)}</pre>") for name, text in texts.items()}
        self._run.log({"step": step} | pages)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Sets the config of the run."""
        self._run.config.update(hparams, allow_val_change=True)

    def close(self) -> None:
        """Finishes the run."""
        self._run.finish()


class BackgroundWriter(Writer):
    """Several writers on one thread, in order; a step never waits for them. Device arrays are read there, too.

    An error is raised by the first call after it.
    """

    def __init__(self, writers: list[Writer]) -> None:
        """Starts the thread; `close` closes the writers."""
        self._writers = writers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writers")
        self._pending: list[Future[None]] = []

    def write_scalars(self, step: int, scalars: Mapping[str, Scalar]) -> None:
        """Submits numbers to every writer."""
        self._each(lambda writer: writer.write_scalars(step, _to_numpy(scalars)))

    def write_images(self, step: int, images: Mapping[str, Array]) -> None:
        """Submits images to every writer."""
        self._each(lambda writer: writer.write_images(step, _to_numpy(images)))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Submits texts to every writer."""
        self._each(lambda writer: writer.write_texts(step, texts))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Submits the config to every writer."""
        self._each(lambda writer: writer.write_hparams(hparams))

    def flush(self) -> None:
        """Waits until every writer has written and flushed everything."""
        self._each(lambda writer: writer.flush())
        self._wait()

    def close(self) -> None:
        """Closes every writer, even after errors, then raises the first error."""
        self._pending += [self._thread.submit(writer.close) for writer in self._writers]
        self._wait()
        self._thread.shutdown()

    def _each(self, call: Callable[[Writer], None]) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if future not in done]
        for future in done:
            future.result()
        self._pending += [self._thread.submit(call, writer) for writer in self._writers]

    def _wait(self) -> None:
        pending, self._pending = self._pending, []
        errors = [error for future in pending if (error := future.exception())]
        if errors:
            raise errors[0]


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def _step(line: bytes) -> float:
    """Returns the step of a line of `metrics.jsonl`, or infinity if the line is invalid."""
    with suppress(ValueError, KeyError, TypeError):
        return float(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    return math.inf


def _to_numpy(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    if picture.dtype == np.uint8:
        return picture
    return np.rint(np.clip(picture.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)


def _flat(settings: Mapping[str, Any] | ConfigDict, prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, bool | int | float | str) else str(value)
