"""Hooks that are called, in order, after each training step: guard, reports, evaluation, checkpoints."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from mllmsubj.data.batch import Rows
from mllmsubj.data.loader import Loader
from mllmsubj.errors import UserError
from mllmsubj.train.batches import TrainBatch
from mllmsubj.train.checkpointing import Checkpoints
from mllmsubj.train.evaluator import Evaluator, split_values
from mllmsubj.train.metrics import MetricAccumulator
from mllmsubj.train.profile import Profiler
from mllmsubj.train.startup import StartupTime
from mllmsubj.train.state import TrainState
from mllmsubj.train.status import Status
from mllmsubj.train.task import Task
from mllmsubj.train.throughput import Throughput
from mllmsubj.train.writers import Writer

MIN_EXAMPLES = 1000
"""The fraction of unreadable examples is computed of at least this many."""
LOGGED_IMAGES = 8
"""Rows of the first batch whose images are logged."""


class Preempted(Exception):
    """The machine is preempted; everything is saved, and the same command resumes the run."""


@dataclass(frozen=True)
class Progress:
    """Objects that the hooks of a run share."""

    task: Task
    workdir: Path
    first: int
    """Number of steps that were done before this process started."""
    metrics: MetricAccumulator
    throughput: Throughput
    writer: Writer

    @property
    def total(self) -> int:
        """Number of steps of the run, over both stages."""
        return self.task.experiment.train.steps

    def at_log_point(self, step: int) -> bool:
        """Returns whether metrics are reported after `step` steps."""
        return step % self.task.experiment.log.every_steps == 0 or step == self.total


class NonfiniteGuard:
    """Stops a run after too many non-finite updates or unreadable examples.

    It reads the metrics of the previous step, so that the host never waits for the device.
    """

    def __init__(self, progress: Progress) -> None:
        """Creates the guard, with the limits of the task's config."""
        self._progress = progress

    def __call__(self, step: int, state: TrainState, batch: TrainBatch) -> None:
        """Raises UserError if the run has to stop."""
        metrics, train = self._progress.metrics, self._progress.task.experiment.train
        metrics.settle(behind=0 if self._progress.at_log_point(step) else 1)
        if metrics.nonfinite >= train.max_nonfinite_steps:
            metrics.settle()  # includes this step, whose batch is available
            if metrics.nonfinite >= train.max_nonfinite_steps:
                folder = _dump(self._progress.workdir, step, state, batch.rows)
                raise UserError(
                    f"{metrics.nonfinite} updates in a row had NaN or Inf and were skipped, up to step {step}; state "
                    f"and batch are in {folder}; start in another workdir with lower train.stage*.learning_rates, or "
                    f"check the data"
                )
        data, examples = self._progress.task.experiment.data, metrics.examples + metrics.skipped
        if metrics.skipped > data.max_skipped * max(examples, MIN_EXAMPLES):
            raise UserError(
                f"{metrics.skipped} of {examples} examples cannot be used, more than data.max_skipped "
                f"({data.max_skipped:g}); run `mllmsubj data check --source={data.source}`"
            )


class Reports:
    """Metrics, speed and a profile at log points, and the images of a run's first batch. A context manager."""

    def __init__(self, progress: Progress, startup: StartupTime) -> None:
        """Creates the status line and the profiler; `startup` is reported once, after the first step."""
        self._progress, self._startup, self._once = progress, startup, dict[str, float]()
        experiment, index = progress.task.experiment, jax.process_index()
        self._status = Status((experiment.train.stage1.steps, experiment.train.stage2.steps), index)
        self._profiler = Profiler(experiment.log, progress.workdir, index)
        self._opened = ExitStack()

    def __enter__(self) -> "Reports":
        """Shows the status line."""
        self._opened.enter_context(self._status)
        self._opened.enter_context(self._profiler)
        self._status.update(self._progress.first, self._progress.throughput.clock)
        self._profiler.before_step(0)
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the status line and ends a running profile."""
        self._opened.close()

    def __call__(self, step: int, state: TrainState, batch: TrainBatch) -> None:
        """Reports what is due after a step."""
        progress, done = self._progress, step - self._progress.first
        if done == 1:
            self._once = self._startup.done(progress.throughput.pending)
        if step == 1:
            progress.writer.write_images(step, _images(batch.rows))
        if progress.at_log_point(step):
            figures, numbers = progress.throughput.report(), progress.metrics.scalars()
            trainable = {"trainable_params": progress.task.num_trainable_params(step - 1)}
            progress.writer.write_scalars(step, numbers | figures | trainable | self._once)
            self._once = {}
            self._status.update(step, progress.throughput.clock, numbers["loss"], figures)
        self._profiler.before_step(done, progress.throughput.pending)


class Evaluation:
    """Runs evaluators, each every `every_steps` steps and after the last one."""

    def __init__(self, progress: Progress, evaluators: Sequence[Evaluator]) -> None:
        """Creates the hook; `numbers` is empty until evaluators run."""
        self._progress, self._evaluators = progress, evaluators
        self.numbers: dict[str, float] = {}
        """Metrics after the last step, if evaluators ran."""

    def __call__(self, step: int, state: TrainState, batch: TrainBatch) -> None:
        """Runs the evaluators that are due and writes their values."""
        progress, self.numbers = self._progress, {}
        due = [e for e in self._evaluators if e.every_steps and (step % e.every_steps == 0 or step == progress.total)]
        if not due:
            return
        with progress.throughput.paused():
            params = progress.task.all_params(state.result)
            for evaluator in due:
                numbers, images, _ = split_values(evaluator.run(params))
                self.numbers |= numbers
                progress.writer.write_scalars(step, numbers)
                progress.writer.write_images(step, images)


class Saves:
    """Saves a checkpoint when one is due; on preemption, saves one and stops the run."""

    def __init__(self, progress: Progress, checkpoints: Checkpoints, loader: Loader, evaluation: Evaluation) -> None:
        """Creates the hook; it saves the position of `loader` and the metrics of `evaluation` with the state."""
        self._progress, self._checkpoints, self._loader = progress, checkpoints, loader
        self._evaluation = evaluation

    def __call__(self, step: int, state: TrainState, batch: TrainBatch) -> None:
        """Saves if due; raises Preempted after SIGTERM, when the checkpoint is written."""
        total, checkpoints = self._progress.total, self._checkpoints
        if checkpoints.preempted(step):
            with _deadline(self._progress.task.experiment.checkpoint.grace_seconds):
                self._save(step, state)
                checkpoints.wait()
            raise Preempted(f"saved at step {step:,} of {total:,}; run the same command to resume")
        if step == total or checkpoints.due(step, log_point=self._progress.at_log_point(step)):
            self._save(step, state)

    def _save(self, step: int, state: TrainState) -> None:
        progress = self._progress
        with progress.throughput.paused():
            progress.metrics.settle()  # so that the counts below are this step's
            progress.writer.flush()  # a run that resumes from here does not write this step's lines again
            counts = {"examples": progress.metrics.examples, "skipped": progress.metrics.skipped}
            meta = {"clock": asdict(progress.throughput.clock), **counts}
            self._checkpoints.save(step, state, self._loader.state(), meta, self._evaluation.numbers)


def _images(rows: Rows) -> Mapping[str, np.ndarray]:
    """Returns images of the first few rows, by field of the batch; several of a row are concatenated."""
    fields = {name: x for name, x in vars(rows).items() if isinstance(x, np.ndarray) and x.dtype == np.uint8}
    images = {name: x[:LOGGED_IMAGES] for name, x in fields.items() if x.ndim in (4, 5) and x.shape[-1] == 3}
    return {
        f"batch/{name}": x if x.ndim == 4 else np.concatenate(np.moveaxis(x, 1, 0), 2) for name, x in images.items()
    }


def _dump(workdir: Path, step: int, state: TrainState, rows: Rows) -> Path:
    """Writes the state (orbax) and this process's rows (npz) for debugging; returns the folder."""
    folder = workdir.absolute() / "nonfinite" / f"step_{step}"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state, force=True)
    arrays = {name: x for name, x in sorted(vars(rows).items()) if isinstance(x, np.ndarray)}
    np.savez(folder / f"batch_{jax.process_index()}.npz", allow_pickle=False, **arrays)
    return folder


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """Ends the process, as SIGTERM would have, if the body takes longer; a half-written save is never restored."""

    def end() -> None:
        print(f"mllmsubj: the save took longer than {seconds:g} s of grace; the one before it stays", file=sys.stderr)
        os._exit(128 + signal.SIGTERM)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
