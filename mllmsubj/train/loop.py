"""The training loop: set up, resume, then one step after the other."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mllmsubj.config.schema import Experiment
from mllmsubj.data.loader import Loader
from mllmsubj.data.sources import open_source
from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import make_mesh, shardings_of
from mllmsubj.train import hooks
from mllmsubj.train.batches import TrainBatch
from mllmsubj.train.checkpointing import Checkpoints
from mllmsubj.train.evaluator import Evaluator
from mllmsubj.train.metrics import MetricAccumulator
from mllmsubj.train.programs import Programs, form
from mllmsubj.train.setup import Setup, prepare
from mllmsubj.train.startup import StartupTime
from mllmsubj.train.state import TrainState, abstract
from mllmsubj.train.task import Task
from mllmsubj.train.throughput import Throughput, Timer
from mllmsubj.train.workdir import open_workdir
from mllmsubj.train.writers import make_writer
from mllmsubj.typing import Params

log = logging.getLogger("mllmsubj")

Metrics = dict[str, Any]
MakeEvaluators = Callable[[Setup], Sequence[Evaluator]]
"""Returns the evaluators of a run; `evals.suite.evaluators` returns those that the config enables."""


def train(config: ConfigDict, workdir: Path, make_evaluators: MakeEvaluators = lambda _: ()) -> None:
    """Trains both stages of a config in a workdir, from its newest checkpoint on, and writes `WORKDIR/model`.

    Raises Preempted after SIGTERM, when everything is saved, and UserError if the run cannot start or continue.
    """
    experiment = Experiment.from_config(config)
    mesh = make_mesh(**asdict(experiment.mesh))
    source = open_source(experiment.data, experiment.seed)  # raises errors before anything is created or loaded
    with (
        StartupTime() as startup,
        open_workdir(workdir, config),
        jax.set_mesh(mesh),
        Checkpoints(workdir, experiment.checkpoint) as checkpoints,
    ):
        setup, trained = prepare(config, experiment, workdir, mesh)
        loader = setup.loader(experiment.data, experiment.train.batch_size, source)
        fit(setup, trained, loader, make_evaluators(setup), config, workdir, checkpoints, startup)


def fit(
    task: Task,
    trained: Params,
    loader: Loader,
    evaluators: Sequence[Evaluator],
    config: ConfigDict,
    workdir: Path,
    checkpoints: Checkpoints,
    startup: StartupTime,
) -> None:
    """Trains a task to its end and writes its result; `trained`: initial parameters, if there is no checkpoint.

    Raises as `train` does.
    """
    start, total = _resume(task, trained, loader, checkpoints), task.experiment.train.steps
    throughput = Throughput(start.timer)
    metrics = MetricAccumulator(task.bins, start.examples, start.skipped)
    with ExitStack() as stack:
        stack.enter_context(closing(loader))
        batches = stack.enter_context(closing(task.batches(loader, start.step, throughput)))
        writer = make_writer(workdir, task.experiment.log, config, jax.process_index(), resume_step=start.step)
        stack.enter_context(closing(writer))
        progress = hooks.Progress(task, workdir, start.step, metrics, throughput, writer)
        evaluation = hooks.Evaluation(progress, evaluators)
        after_step = (
            hooks.NonfiniteGuard(progress),
            stack.enter_context(hooks.Reports(progress, startup)),
            evaluation,
            hooks.Saves(progress, checkpoints, loader, evaluation),
        )
        train_step = _train_step(task, throughput)

        state = start.state
        for step, batch in zip(range(start.step + 1, total + 1), batches, strict=False):
            state, step_metrics = train_step(state, batch)
            state = task.enter_stage(state, step)
            metrics.add(step_metrics)
            for hook in after_step:
                hook(step, state, batch)

        checkpoints.wait()
        task.finish(workdir, config, state, evaluation.numbers, throughput.clock.seconds)


def _train_step(task: Task, throughput: Throughput) -> Callable[[TrainState, TrainBatch], tuple[TrainState, Metrics]]:
    """Returns the task's update, compiled at the first batch of each form."""
    programs = Programs(throughput)

    def train_step(state: TrainState, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        key, what = (batch.stage, form(batch.inputs)), f"training step for {batch.rows.shape}"
        update = programs.get(what, key, lambda: task.compile_update(state, batch))
        state, metrics = update.compiled(state, task.update_params, batch.inputs)
        throughput.step(batch.size, batch.flops + update.flops, metrics)
        return state, metrics

    return train_step


@dataclass(frozen=True)
class _Start:
    """The state that a run starts or resumes from."""

    step: int
    state: TrainState
    timer: Timer
    examples: int = 0
    skipped: int = 0


def _resume(task: Task, trained: Params, loader: Loader, checkpoints: Checkpoints) -> _Start:
    """Returns the newest checkpoint, after restoring the loader, too, or the state before the first step."""
    latest, total = checkpoints.latest(), task.experiment.train.steps
    # A checkpoint of the last step of stage 1 has the optimizer state of stage 2 already.
    init = partial(task.init_state, step=latest or 0)
    expected = abstract(jax.eval_shape(init, trained), task.mesh)
    if latest is None:
        return _Start(0, jax.jit(init, out_shardings=shardings_of(expected))(trained), Timer())
    if latest > total:
        stage1 = task.experiment.train.stage1.steps
        raise UserError(
            f"{checkpoints.folder.parent} is at step {latest} already, beyond the {total} steps of the config; set "
            f"train.stage2.steps to {latest - stage1} or more (stage 1 has {stage1}), or give another workdir"
        )
    saved = checkpoints.restore(latest, expected)
    loader.restore(saved.loader)
    log.info("already finished at step %d" if latest == total else "resumes from step %d", latest)
    counts = {name: saved.meta[name] for name in ("examples", "skipped")}
    return _Start(latest, saved.state, Timer(**saved.meta["clock"]), **counts)
