"""The training loop: the only part of training that is not a pure function."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Rows
from mllmsubj.data.loader import Loader
from mllmsubj.data.sources import open_source
from mllmsubj.errors import UserError
from mllmsubj.parallel import multihost
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.train import dump
from mllmsubj.train.cache import Cache, make_cache
from mllmsubj.train.checkpoints import Checkpoints
from mllmsubj.train.evaluator import Evaluator, sort
from mllmsubj.train.first_step import StartupTime
from mllmsubj.train.known import CachedFeatures
from mllmsubj.train.meter import Throughput, Timer
from mllmsubj.train.metrics import MetricAccumulator
from mllmsubj.train.profile import Profiler
from mllmsubj.train.programs import with_cached_features
from mllmsubj.train.run import Run, prepare
from mllmsubj.train.state import TrainState, abstract, state_shardings
from mllmsubj.train.status import Status
from mllmsubj.train.step import Encoded
from mllmsubj.train.task import Program, Task
from mllmsubj.train.workdir import open_workdir
from mllmsubj.train.writers import make_writer
from mllmsubj.typing import Params

log = logging.getLogger("mllmsubj")

FIRST_EXAMPLES = 1000
"""The share of unreadable examples is judged over at least this many."""


class Preempted(Exception):
    """The machine is taken away; everything is saved, and the same command goes on from there."""


MakeEvaluators = Callable[[Run], Sequence[Evaluator]]
"""Evaluators of a run, made once its model is; `evals.suite.evaluators` makes those that the config asks for."""


def train(config: ConfigDict, workdir: Path, make_evaluators: MakeEvaluators = lambda run: ()) -> None:
    """The run of a config in a workdir, from its last save on; see `Loop`."""
    experiment = Experiment.from_config(config)
    mesh = make_mesh(**asdict(experiment.mesh))
    source = open_source(experiment.data, experiment.seed)  # what is wrong with it, before anything is made or loaded
    with (
        StartupTime() as first,
        open_workdir(workdir, config),
        jax.set_mesh(mesh),
        Checkpoints(workdir, experiment.checkpoint) as saves,
    ):
        run, trained = prepare(config, experiment, workdir, mesh)
        loader = run.loader(experiment.data, experiment.train.batch_size, source)
        Loop(run, trained, loader, config, workdir, saves, make_evaluators(run), first, make_cache(run))()


class Loop:
    """One process's part of a task, from where its last save left it to the end."""

    def __init__(
        self,
        task: Task,
        trained: Params,
        loader: Loader,
        config: ConfigDict,
        workdir: Path,
        saves: Checkpoints,
        evals: Sequence[Evaluator],
        first: StartupTime,
        cache: Cache | None = None,
    ):
        self.task, self.config, self.workdir, self.saves, self.evals = task, config, workdir, saves, evals
        self.loader, self.cache, self.first_step = loader, cache, first
        self.total = task.experiment.train.steps
        self.totals, self.clock = MetricAccumulator(task.bins), Timer()
        self.step, self.state = self._restore(trained)
        self._programs: dict[Any, Program] = {}
        self._pending: deque[dict[str, Any]] = deque()
        self._numbers: dict[str, float] = {}
        self._of_start: dict[str, float] = {}

    def __call__(self) -> None:
        """Trains to the end; the task writes it down. Raises Preempted after SIGTERM, and UserError where it stops."""
        first, log_config = self.step, self.task.experiment.log
        index, stages = jax.process_index(), self.task.experiment.train
        with ExitStack() as stack:
            stack.callback(self.loader.close)
            if self.cache is not None:
                stack.callback(self.cache.close)
            self.meter = Throughput(self.clock)
            self.writer = make_writer(self.workdir, log_config, self.config, index, resume_step=first)
            stack.callback(self.writer.close)
            self.status = stack.enter_context(Status((stages.stage1.steps, stages.stage2.steps), index))
            profiler = stack.enter_context(Profiler(log_config, self.workdir, index))
            self.status.update(first, self.meter.clock)
            while self.step < self.total:
                batch, known, keep = self._next_batch()
                program = self._compiled(batch, known)
                profiler.before_step(self.step - first, self._last())
                self.state, metrics = program(self.state, self.task.frozen, batch, known, keep)
                self.step += 1
                self.meter.step(len(batch.example), program.flops if known is None else program.cached_flops)
                self._pending.append(metrics)
                if self.step == first + 1:
                    self._of_start = self.first_step.done(metrics)
                self._guard(batch)
                self._enter_stage()
                self._report()
                self._evaluate()
                self._save()
            self.saves.wait()
            seconds = self.meter.clock.seconds
            self.task.finish(self.workdir, self.config, self.state, self._numbers, seconds)

    def _restore(self, trained: Params) -> tuple[int, TrainState]:
        """The newest save, or the state before the first step."""
        run = self.task
        # A save at the border already has the second stage's moments.
        latest = self.saves.latest()
        shapes = jax.eval_shape(run.state, trained)
        if latest is None:
            return 0, jax.jit(run.state, out_shardings=state_shardings(shapes, run.mesh))(trained)
        shapes = jax.eval_shape(lambda state: run.enter(state, latest), shapes)
        if latest > self.total:
            stage1, done = run.experiment.train.stage1.steps, latest - run.experiment.train.stage1.steps
            raise UserError(
                f"{self.workdir} is at step {latest} already, beyond the {self.total} that the config says; set "
                f"train.stage2.steps to {done} or more (stage 1 has {stage1}), or give another workdir"
            )
        saved = self.saves.restore(latest, abstract(shapes, run.mesh))
        self.loader.restore(saved.loader)
        self.clock = Timer(**saved.meta["clock"])
        self.totals.examples, self.totals.skipped = saved.meta["examples"], saved.meta["skipped"]
        log.info("finished before, at step %d" if latest == self.total else "goes on from step %d", latest)
        return latest, saved.state

    def _next_batch(self) -> tuple[Rows, CachedFeatures | None, Callable[[Encoded], None] | None]:
        """A batch on the mesh, and what the cache knows of it or whom to tell."""
        place, known, keep = (self.loader.rows, self.task.experiment.train.batch_size), None, None
        with self.meter.waiting(self._last()):
            batch = next(self.loader)
            if self.cache is not None:
                known, keep = self.cache.find(self.task.stage(self.step), batch, *place)
        return multihost.spread(batch, *place, self.task.mesh), known, keep

    def _compiled(self, batch: Any, known: CachedFeatures | None) -> Program:
        """The stage's program for a batch of this shape."""
        step = self.task.stage(self.step)
        key = step.first, jax.tree.structure(batch), tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if key not in self._programs:
            with self.meter.paused(self._last()):
                program = self.task.compile(step, self.state, batch)
            log.info("compiled for %s: %.1f s", batch.shape, program.seconds)
            self._programs[key] = program
        if known is not None and self._programs[key].features_from_cache is None:
            with self.meter.paused(self._last()):
                self._programs[key] = with_cached_features(self._programs[key], step, self.task.frozen, batch, known)
        return self._programs[key]

    def _guard(self, batch: Rows) -> None:
        """Stops a run gone wrong, one step late: by the metrics of the step before, which are there by now or soon."""
        train, data = self.task.experiment.train, self.task.experiment.data
        self._settle(behind=0 if self._at_log_point() else 1)
        limit = train.max_nonfinite_steps
        if self.totals.bad >= limit and self._settle().bad >= limit:  # with this step, whose batch is at hand
            folder = dump.write(self.workdir, self.step, self.state, batch)
            raise UserError(
                f"{self.totals.bad} updates in a row had NaN or Inf and were left out, up to step {self.step}; state "
                f"and batch are in {folder}; start in another workdir with lower train.stage*.learning_rates, or look "
                f"at the data"
            )
        seen = max(self.totals.examples + self.totals.skipped, FIRST_EXAMPLES)
        if self.totals.skipped > data.max_skipped * seen:
            raise UserError(
                f"{self.totals.skipped} of {self.totals.examples + self.totals.skipped} examples cannot be used, more "
                f"than data.max_skipped ({data.max_skipped:g}); run `mllmsubj data check --source={data.source}`"
            )

    def _settle(self, behind: int = 0) -> MetricAccumulator:
        """Adds the metrics of all steps but the last `behind`; waits for them."""
        while len(self._pending) > behind:
            self.totals.add(self._pending.popleft())
        return self.totals

    def _at_log_point(self) -> bool:
        return self.step % self.task.experiment.log.every_steps == 0 or self.step == self.total

    def _enter_stage(self) -> None:
        """At the border: fresh moments, before the step is saved; also at the end, a later start may add a stage 2."""
        if self.step == self.task.experiment.train.stage1.steps:
            shapes = jax.eval_shape(lambda state: self.task.enter(state, self.step), self.state)
            enter = jax.jit(self.task.enter, static_argnums=1, out_shardings=state_shardings(shapes, self.task.mesh))
            self.state = enter(self.state, self.step)

    def _report(self) -> None:
        if not self._at_log_point():
            return
        figures = self.meter.report(self._last())
        numbers = self.totals.scalars()
        self.writer.write_scalars(self.step, numbers | figures | self._of_start)
        self._of_start = {}
        self.status.update(self.step, self.meter.clock, numbers["loss"], figures)

    def _evaluate(self) -> None:
        self._numbers = {}
        due = [e for e in self.evals if e.every_steps and (self.step % e.every_steps == 0 or self.step == self.total)]
        if not due:
            return
        with self.meter.paused(self._last()):
            params = self.task.joined(self.state.result)
            for evaluator in due:
                numbers, pictures, _ = sort(evaluator.run(params))
                self._numbers |= numbers
                self.writer.write_scalars(self.step, numbers)
                self.writer.write_images(self.step, pictures)

    def _save(self) -> None:
        """Where a save is due; a run that is told to stop saves and stops."""
        if self.saves.preempted(self.step):
            with dump.deadline(self.task.experiment.checkpoint.grace_seconds):
                self._save_now()
                self.saves.wait()
            raise Preempted(f"saved at step {self.step:,} of {self.total:,}; run the same command to go on")
        if self.step == self.total or self.saves.due(self.step, log_point=self._at_log_point()):
            self._save_now()

    def _save_now(self) -> None:
        with self.meter.paused(self._last()):
            self._settle()  # so that the counts below are this step's
            self.writer.flush()  # a run that goes on from this save does not write this step's lines again
            meta = {"clock": asdict(self.meter.clock), "examples": self.totals.examples, "skipped": self.totals.skipped}
            self.saves.save(self.step, self.state, self.loader.state(), meta, self._numbers)

    def _last(self) -> Any:
        """What the last step returned."""
        return self._pending[-1] if self._pending else None
