"""Checkpoints of a run under `WORKDIR/checkpoints/STEP/`, written in the background; a run resumes from them exactly.

A checkpoint consists of `state` (arrays), `loader` and `meta` (JSON), and `files.json`, the sizes of all their files.
It is written under a temporary name and renamed, so that an incomplete one is never mistaken for a complete one.
"""

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from mllmsubj.checkpoints.format import describe_differences, find_damage, reason, sizes
from mllmsubj.config.train import CheckpointConfig
from mllmsubj.errors import UserError
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.typing import PyTree


@dataclass(frozen=True)
class Restored:
    """A restored checkpoint."""

    state: PyTree
    loader: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """Writes and restores the checkpoints of one run; a context manager.

    On several processes, each calls every method, at the same steps. SIGTERM, which schedulers send before a
    preemption, is handled by JAX's own service on several processes (started by `jax.distributed.initialize`), else by
    a signal handler that `close` removes.
    """

    def __init__(
        self, workdir: str | Path, config: CheckpointConfig, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Opens the folder; `clock` returns seconds, for `every_minutes`.

        Raises UserError if the folder cannot be created.
        """
        self.folder, self._config, self._clock = Path(workdir).absolute() / "checkpoints", config, clock
        self._last_save, self._failed, self._terminated = clock(), False, False
        with self._as_user_error("cannot open"):
            on_first_process(self._remove_incomplete)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_keep(config),
                best_fn=(lambda metrics: metrics[config.best])
                if config.keep_best
                else None,  # None: orbax stores no metrics
                save_root_metadata=False,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
            )
            handlers = {name: ocp.JsonCheckpointHandler() for name in ("loader", "meta")}
            handlers["state"] = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        logging.getLogger("absl").addFilter(_not_orbax_error)
        self._previous: Any = None
        self._handles_sigterm = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._handles_sigterm:
            self._previous = signal.signal(signal.SIGTERM, self._terminate)

    def __enter__(self) -> "Checkpoints":
        """Returns the object itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Calls `close`."""
        self.close()

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, or None; waits for one that is being saved."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, step: int, state: PyTree) -> Restored:
        """Restores the checkpoint of a step.

        `state`: a tree of ShapeDtypeStruct with shardings, which may be those of another mesh. Raises UserError if
        files are damaged, and if the state has another structure, naming the first few paths.
        """
        folder = self.folder / str(step)
        advice = "delete that folder to resume from the checkpoint before it"
        if problem := self._damage(folder):
            raise UserError(f"checkpoint {folder} is damaged: {problem}; {advice}")
        try:
            found = ocp.StandardCheckpointHandler().metadata(folder / "state").tree
            problem = describe_differences(*(ocp.tree.to_flat_dict(tree, sep="/") for tree in (found, state)))
            if not problem:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(state),
                        loader=ocp.args.JsonRestore(),
                        meta=ocp.args.JsonRestore(),
                    ),
                )
                return Restored(restored.state, restored.loader, restored.meta)
        except Exception as error:  # orbax raises exceptions of many types
            raise UserError(f"cannot read checkpoint {folder}: {reason(error)}; {advice}") from error
        raise UserError(
            f"checkpoint {folder} does not fit the config: {problem}; resume with the config it was made with, or give "
            f"another workdir"
        )

    def save(
        self,
        step: int,
        state: PyTree,
        loader: dict[str, Any],
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Saves a step in the background, once the previous save is complete; an existing checkpoint is kept.

        Returns when the arrays are copied, so the next step may donate them. `loader` and `meta` are those of process
        0. `metrics`: results of the evaluators at this step, if they ran; only `config.best` is used.
        Raises UserError if this save or the previous one cannot be written; older checkpoints are kept.
        """
        if step in self._manager.all_steps():
            return
        best = (metrics or {}).get(self._config.best, math.nan)
        with self._as_user_error(f"cannot save step {step} in"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    loader=ocp.args.JsonSave(loader),
                    meta=ocp.args.JsonSave(meta),
                ),
                metrics={self._config.best: float(best)} if math.isfinite(best) else {},
                force=True,
            )
        self._last_save = self._clock()

    def due(self, step: int, log_point: bool = False) -> bool:
        """Returns whether to save this step: by its number or, at log points, by the time since the last save.

        Process 0 measures the time and the other processes wait for its result, hence at log points only.
        Raises UserError if the save in the background failed.
        """
        with self._as_user_error("cannot save in"):
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()  # raises the error of a failed save, without waiting
        if self._config.every_steps and step % self._config.every_steps == 0:
            return True
        if not log_point or not self._config.every_minutes:
            return False
        return on_first_process(lambda: self._clock() - self._last_save >= 60 * self._config.every_minutes)

    def preempted(self, step: int) -> bool:
        """Returns whether to save now and stop.

        Must be called at every step, since several processes have to agree on one.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._terminated

    def wait(self) -> None:
        """Waits until the save in the background is on disk; raises UserError if it failed."""
        with self._as_user_error("cannot save in"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save, unless one failed already, and restores the handler of SIGTERM.

        Raises UserError if the last save failed.
        """
        if self._handles_sigterm and not self._terminated:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        self._handles_sigterm = False
        try:
            if not self._failed:
                self.wait()
        finally:
            with self._as_user_error("cannot close", quiet=self._failed):
                self._manager.close()
            logging.getLogger("absl").removeFilter(_not_orbax_error)

    def _terminate(self, *_: int | FrameType | None) -> None:
        """Handles the first SIGTERM; the previous handler receives a second one."""
        self._terminated = True
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    @contextmanager
    def _as_user_error(self, what: str, quiet: bool = False) -> Iterator[None]:
        """Converts orbax's exceptions, of many types, to a one-line UserError; `quiet` suppresses them."""
        try:
            yield
        except UserError:
            self._failed = True
            raise
        except Exception as error:
            self._failed = True
            if not quiet:
                raise UserError(
                    f"{what} {self.folder}: {reason(error)}; older checkpoints there are complete, and the run resumes "
                    f"from them"
                ) from error

    def _remove_incomplete(self) -> None:
        """Creates the folder and removes checkpoints whose writing or removal was interrupted.

        Orbax would treat the latter as complete, and removes the former only later, in the background. The newest one
        with its final name is kept: a file that is missing there is damage.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._unfinished():
            shutil.rmtree(path)
        steps = sorted((path for path in self.folder.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))
        for path in steps[:-1]:
            if (self._damage(path) or "").endswith("is missing"):
                shutil.rmtree(path)

    def _unfinished(self) -> Iterator[Path]:
        return self.folder.glob("*.orbax-checkpoint-tmp*")

    def _damage(self, save: Path) -> str | None:
        return find_damage(save) if (save / "files.json").is_file() else "files.json is missing"

    def _list_files(self) -> None:
        """Writes `files.json`; orbax calls this in the background, just before it renames a complete save."""
        if jax.process_index() == 0:
            for partial in self._unfinished():
                listing = {name: [size] for name, size in sizes(partial).items() if name != "_CHECKPOINT_METADATA"}
                (partial / "files.json").write_text(json.dumps(listing))


def _not_orbax_error(record: logging.LogRecord) -> bool:
    """Returns False for the tracebacks that orbax logs, from another thread, of errors that it raises as well."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


@dataclass(frozen=True)
class _Best:
    """Preservation policy like orbax's BestN, but only among checkpoints that have the metric."""

    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> list[bool]:
        sign = 1.0 if self.config.best_is == "min" else -1.0
        scored = [(sign * info.metrics[self.config.best], info.step) for info in checkpoints if info.metrics]
        steps = {step for _, step in sorted(scored)[: self.config.keep_best]}
        return [info.step in steps for info in checkpoints]


def _keep(config: CheckpointConfig) -> policies.AnyPreservationPolicy:
    """Returns a policy that keeps the newest checkpoint in any case, and those that the config selects."""
    keep: list[Any] = [policies.LatestN(max(config.keep_last, 1))]
    if config.keep_every_steps:
        keep.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        keep.append(_Best(config))
    return policies.AnyPreservationPolicy(keep)
