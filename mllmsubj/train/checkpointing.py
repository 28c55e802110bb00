"""A run's own saves under `WORKDIR/checkpoints/STEP/`, written in the background, from which it resumes exactly.

A save is `state` (arrays), `loader` and `meta` (JSON), and `files.json` with the sizes of all their files. It is
written under a temporary name and renamed, so that one that was cut short is never taken for a whole one.
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

from mllmsubj.checkpoints.format import damage, differences, reason, sizes
from mllmsubj.config.train import CheckpointConfig
from mllmsubj.errors import UserError
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.typing import PyTree


@dataclass(frozen=True)
class Saved:
    """What `restore` gives back."""

    state: PyTree
    loader: dict[str, Any]
    meta: dict[str, Any]


class Checkpoints:
    """Saves of one run; a context manager. On several processes all call every method, at the same steps.

    Also listens for SIGTERM, by which schedulers announce that the machine is taken away. On several processes that
    is JAX's own service (`jax.distributed.initialize` starts it); else a handler, which `close` takes back.
    """

    def __init__(self, workdir: str | Path, config: CheckpointConfig, clock: Callable[[], float] = time.monotonic):
        """`clock`: seconds, for `every_minutes`. Raises UserError if the folder cannot be made."""
        self.folder, self._config, self._clock = Path(workdir).absolute() / "checkpoints", config, clock
        self._last_save, self._failed, self._terminated = clock(), False, False
        with self._told("cannot open"):
            on_first_process(self._tidy)
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_keep(config),
                best_fn=(lambda metrics: metrics[config.best]) if config.keep_best else None,  # None: none are stored
                save_root_metadata=False,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
            )
            handlers = {name: ocp.JsonCheckpointHandler() for name in ("loader", "meta")}
            handlers["state"] = ocp.StandardCheckpointHandler()
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        logging.getLogger("absl").addFilter(_not_orbax_error)
        self._previous: Any = None
        self._listens = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._terminate)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """The newest step that was saved whole, or None; waits for one that is being saved."""
        self.wait()
        return self._manager.latest_step()

    def restore(self, step: int, state: PyTree) -> Saved:
        """The save of a step; `state`: a tree of ShapeDtypeStruct with shardings, which may be another mesh's.

        Raises UserError if files of the save are damaged and if the state is of another form, naming the first few
        paths.
        """
        folder = self.folder / str(step)
        advice = "delete that folder to resume from the save before it"
        if problem := self._damage(folder):
            raise UserError(f"save {folder} is damaged: {problem}; {advice}")
        try:
            found = ocp.StandardCheckpointHandler().metadata(folder / "state").tree
            problem = differences(*(ocp.tree.to_flat_dict(tree, sep="/") for tree in (found, state)))
            if not problem:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(state),
                        loader=ocp.args.JsonRestore(),
                        meta=ocp.args.JsonRestore(),
                    ),
                )
                return Saved(restored.state, restored.loader, restored.meta)
        except Exception as error:  # of many types
            raise UserError(f"cannot read save {folder}: {reason(error)}; {advice}") from None
        raise UserError(
            f"save {folder} does not fit the config: {problem}; resume with the config it was made with, or give "
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
        """Saves a step in the background, after the save before it is done; one that is there already stays.

        Returns when the arrays are copied, so the next step may donate them. `loader`, `meta`: as process 0 has them.
        `metrics`: of the evaluators at this step, if they ran; the number `config.best` counts.
        Raises UserError if this save, or the one before, cannot be written; older ones stay.
        """
        if step in self._manager.all_steps():
            return
        best = (metrics or {}).get(self._config.best, math.nan)
        with self._told(f"cannot save step {step} in"):
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
        """Whether this step is to be saved: by its number or, at log points, by the time since the last save.

        The time is process 0's, and telling the others makes them wait for it, hence at log points only.
        Raises UserError if the save in the background failed.
        """
        with self._told("cannot save in"):
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()  # raises what went wrong, and does not wait
        if self._config.every_steps and step % self._config.every_steps == 0:
            return True
        if not log_point or not self._config.every_minutes:
            return False
        return on_first_process(lambda: self._clock() - self._last_save >= 60 * self._config.every_minutes)

    def preempted(self, step: int) -> bool:
        """Whether to save now and stop; to be asked at every step, since several processes agree on one by counting."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._terminated

    def wait(self) -> None:
        """Until the save in the background is on disk; raises UserError if it failed."""
        with self._told("cannot save in"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, unless a save failed already, and gives SIGTERM back; raises UserError if the last save failed."""
        if self._listens and not self._terminated:
            signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
        self._listens = False
        try:
            if not self._failed:
                self.wait()
        finally:
            with self._told("cannot close", quiet=self._failed):
                self._manager.close()
            logging.getLogger("absl").removeFilter(_not_orbax_error)

    def _terminate(self, *_: int | FrameType | None) -> None:
        """The first SIGTERM; a second one does what it did before."""
        self._terminated = True
        signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)

    @contextmanager
    def _told(self, what: str, quiet: bool = False) -> Iterator[None]:
        """What orbax raises, of many types, as one line; with `quiet` not at all."""
        try:
            yield
        except UserError:
            self._failed = True
            raise
        except Exception as error:
            self._failed = True
            if not quiet:
                raise UserError(
                    f"{what} {self.folder}: {reason(error)}; older saves there are whole, and the run resumes from them"
                ) from None

    def _tidy(self) -> None:
        """Makes the folder; clears away saves that were cut short while written or removed.

        Orbax would count the latter as whole, and clears the former in the background, done at some later time. Never
        the newest with a name: a file that it lacks is damage.
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
        return damage(save) if (save / "files.json").is_file() else "files.json is missing"

    def _list_files(self) -> None:
        """Orbax calls this in the background when all is written, just before the save gets its name and its time."""
        if jax.process_index() == 0:
            for partial in self._unfinished():
                listing = {name: [size] for name, size in sizes(partial).items() if name != "_CHECKPOINT_METADATA"}
                (partial / "files.json").write_text(json.dumps(listing))


def _not_orbax_error(record: logging.LogRecord) -> bool:
    """Orbax logs a traceback, from another thread, of each error that reaches us anyway."""
    return record.levelno < logging.ERROR or "orbax" not in record.pathname


@dataclass(frozen=True)
class _Best:
    """As orbax's BestN, but among the saves that have the number at all."""

    config: CheckpointConfig

    def should_preserve(self, checkpoints: Sequence[Any], *, context: policies.PreservationContext) -> list[bool]:
        sign = 1.0 if self.config.best_is == "min" else -1.0
        scored = [(sign * info.metrics[self.config.best], info.step) for info in checkpoints if info.metrics]
        steps = {step for _, step in sorted(scored)[: self.config.keep_best]}
        return [info.step in steps for info in checkpoints]


def _keep(config: CheckpointConfig) -> policies.AnyPreservationPolicy:
    """The newest, whatever the config says, and those that it names."""
    keep: list[Any] = [policies.LatestN(max(config.keep_last, 1))]
    if config.keep_every_steps:
        keep.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        keep.append(_Best(config))
    return policies.AnyPreservationPolicy(keep)
