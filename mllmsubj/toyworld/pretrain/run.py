"""Pretraining task of one component (`train.task.Task`), and the function that `mllmsubj pretrain` calls."""

from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints.format import describe_differences, folder_of
from mllmsubj.config.data import DataConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import ModesConfig, StageConfig
from mllmsubj.data.loader import Loader
from mllmsubj.data.plan import BatchPlan
from mllmsubj.errors import UserError
from mllmsubj.models.layers import unstack
from mllmsubj.parallel import multihost
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.toyworld import Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.component import Component, ComponentEvaluator
from mllmsubj.toyworld.pretrain.registry import make_component
from mllmsubj.train.batches import TrainBatch, global_batches
from mllmsubj.train.checkpointing import Checkpoints
from mllmsubj.train.evaluator import split_values
from mllmsubj.train.loop import fit
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.optimizer import make_optimizer
from mllmsubj.train.programs import Program
from mllmsubj.train.setup import check_batch
from mllmsubj.train.startup import StartupTime
from mllmsubj.train.state import TrainState, new_state, state_shardings, update_state
from mllmsubj.train.throughput import Throughput
from mllmsubj.train.workdir import open_workdir
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Array, Params


def pretrain(config: ConfigDict, name: str, workdir: Path) -> Path:
    """Trains a component in `WORKDIR/NAME`, resuming from the last checkpoint, and returns its file.

    The file is `WORKDIR/NAME.safetensors`. Components that it builds on are read from the same workdir if they are
    there, else from the shipped ones. Raises UserError for a config without pretraining settings, and as training does.
    """
    whole = Experiment.from_config(config)
    component = make_component(name, whole, workdir)
    experiment = component_experiment(whole, component)
    mesh, folder = make_mesh(**asdict(experiment.mesh)), workdir / name
    check_batch(component.config.batch_size, 1, mesh, f"pretrain.{name}")
    task = PretrainingTask(experiment, mesh, component)
    with StartupTime() as startup, jax.set_mesh(mesh):
        # Both may raise UserError, before the workdir is created.
        params, evaluator = task.start(), ComponentEvaluator(component, task.frozen)
        with open_workdir(folder, config), Checkpoints(folder, experiment.checkpoint) as checkpoints:
            fit(task, params, task.loader(), [evaluator], config, folder, checkpoints, startup)
    return components.path(workdir, name)


def component_experiment(whole: Experiment, component: Component) -> Experiment:
    """Returns the experiment with the component's training as its only stage."""
    p = component.config
    modes = ModesConfig(both=0.0, mllm=0.0, vae=0.0, none=1.0)
    stage = StageConfig(p.steps, p.warmup_steps, p.decay_steps, ((".*", p.learning_rate),), modes)
    train = replace(
        whole.train,
        batch_size=p.batch_size,
        grad_accum_steps=1,
        stage1=stage,
        stage2=replace(stage, steps=0),
        optimizer=p.optimizer,
        ema_decay=p.ema_decay,
    )
    return replace(whole, train=train)


@dataclass(frozen=True)
class ComponentStep:
    """Pure update function of a component."""

    component: Component
    experiment: Experiment
    rates: FrozenDict[str, float]

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Optimizer of the component's parameters."""
        train = self.experiment.train
        return make_optimizer(train, train.stage1, self.rates)

    def update(self, state: TrainState, frozen: Params, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        """Applies one optimizer step, and returns the new state and the metrics."""
        train = self.experiment.train
        key = jax.random.fold_in(jax.random.key(self.experiment.seed), state.step)

        def loss(params: Params) -> tuple[Array, tuple[Array, dict[str, Array]]]:
            laid_out = params if self.experiment.compute.resolve().scan_layers else unstack(params)
            losses, metrics = self.component.losses(laid_out, frozen, batch, key)
            return losses.mean(), (losses.sum(), metrics)

        (_, (total, metrics)), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        new, of_update = update_state(
            state, gradients, total, self.optimizer, train.stage1, self.rates, train.ema_decay
        )
        counts = {"count": jnp.asarray(len(batch.example), jnp.float32), "skipped": batch.skipped.sum()}
        return new, metrics | of_update | counts | {"loss_sum": total}


@dataclass(frozen=True)
class PretrainingTask:
    """Pretraining task of one component; see `train.task.Task`."""

    experiment: Experiment
    mesh: Mesh
    component: Component

    @cached_property
    def frozen(self) -> Params:
        """Parameters of the components that it builds on."""
        return self.component.frozen()

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Binned metrics of a step, by key."""
        return self.component.bins

    @cached_property
    def step(self) -> ComponentStep:
        """Update function, with the learning rate of every parameter."""
        shapes = jax.eval_shape(self.component.init, jax.random.key(0))
        rates = dict.fromkeys(flatten(shapes), self.component.config.learning_rate)
        return ComponentStep(self.component, self.experiment, FrozenDict(rates))

    @property
    def update_params(self) -> Params:
        """Frozen parameters that the update reads."""
        return self.frozen

    def num_trainable_params(self, step: int) -> int:
        """Returns the number of trainable parameters, the same for every step."""
        shapes = jax.eval_shape(self.component.init, jax.random.key(0))
        return sum(shape.size for shape in jax.tree.leaves(shapes))

    def start(self) -> Params:
        """Returns the parameters before the first step, float32, on the mesh: random, or read from `start_from`.

        Raises UserError if those are missing or have other shapes.
        """
        shapes = jax.eval_shape(self.component.init, jax.random.key(0))
        shardings = parameter_shardings(shapes, self.mesh)
        if self._origin is None:
            return jax.jit(self.component.init, out_shardings=shardings)(jax.random.key(self.experiment.seed))
        components.provenance(self._origin, self.component.name)  # raises before training, not after it
        found, expected = components.read(self._origin, (self.component.name,)), flatten(shapes)
        if problems := describe_differences(found, expected):
            key, file = f"pretrain.{self.component.name}.start_from", components.path(self._origin, self.component.name)
            raise UserError(f"config key {key}: {file} does not fit the config: {problems}")
        return jax.device_put(unflatten(found), shardings)

    @property
    def _origin(self) -> Path | None:
        """Folder of the component to start from; None: random parameters."""
        start = self.component.config.start_from
        return folder_of(start) if start else None

    def loader(self) -> Loader:
        """Returns a loader of this process's rows of batches."""
        size, p = self.component.size, self.component.config
        data: DataConfig = replace(self.experiment.data, sizes=((size, size),), max_references=1, min_scores=())
        pictures = PictureSource(Split.TRAIN, data.examples, size, self.experiment.seed)
        source = self.component.source(pictures, data.threads)
        plan = BatchPlan(source.index(), data, p.batch_size, self.experiment.seed)
        return Loader(source, plan, self.component.reader(data), multihost.process_rows(p.batch_size, self.mesh))

    def init_state(self, trained: Params, step: int = 0) -> TrainState:
        """Returns the state before the first update."""
        return new_state(trained, set(self.step.rates), self.step.optimizer, ema=self.component.config.ema_decay > 0)

    def enter_stage(self, state: TrainState, step: int) -> TrainState:
        """Returns the state unchanged, because there is only one stage."""
        return state

    def batches(self, loader: Loader, step: int, throughput: Throughput) -> Generator[TrainBatch]:
        """Yields global batches of the loader."""
        return global_batches(loader, self.component.config.batch_size, self.mesh, throughput)

    def compile_update(self, state: TrainState, batch: TrainBatch) -> Program:
        """Compiles the update; its FLOPs are those of the compiler's cost analysis."""
        shardings = (state_shardings(state, self.mesh), None)
        update = jax.jit(self.step.update, donate_argnames="state", out_shardings=shardings)
        compiled = update.lower(state, self.frozen, batch.inputs).compile()
        return Program(compiled, int((compiled.cost_analysis() or {}).get("flops", 0.0)))

    def all_params(self, trained: Params) -> Params:
        """Returns the trained parameters, in the layout that `Component.evaluate` reads."""
        return trained if self.experiment.compute.resolve().scan_layers else unstack(trained)

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes `WORKDIR/../NAME.safetensors` and where it comes from.

        Evaluates the component if `numbers` is empty, which is so when a finished run is resumed.
        """
        numbers = numbers or split_values(self.component.evaluate(self.all_params(state.result), self.frozen))[0]
        components.write(workdir.parent, self.component.name, state.result, self.provenance(config, numbers, seconds))

    def provenance(self, config: ConfigDict, numbers: Mapping[str, float], seconds: float) -> dict[str, Any]:
        """Returns where the weights come from: settings, seed, device, metrics and the start."""
        subtrees = sorted(path.partition("/")[0] for path in self.step.rates)
        return {
            "part": self.component.name,
            "steps": self.component.config.steps,
            "seed": self.experiment.seed,
            "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "seconds": round(seconds),
            "metrics": dict(numbers),
            "started_from": None if self._origin is None else components.provenance(self._origin, self.component.name),
            "pretrain": config.pretrain[self.component.name].to_dict(),
            "model": {name: config.model[name].to_dict() for name in dict.fromkeys(subtrees) if name in config.model},
        }
