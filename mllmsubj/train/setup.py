"""Setup of a training run, built once from its config: mesh, model, frozen weights, both stages, data."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import TINY
from mllmsubj.checkpoints.initial import base_folder, load_params, new_base, trained_params
from mllmsubj.config.data import DataConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import StageConfig
from mllmsubj.data.example import Source
from mllmsubj.data.loader import Loader, make_loader
from mllmsubj.data.sources import open_source
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.data.transforms import RowReader
from mllmsubj.errors import UserError
from mllmsubj.models.layers import unstack
from mllmsubj.models.quantize import quantize_frozen
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel import multihost
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.train import modes
from mllmsubj.train.batches import TrainBatch, encoded_batches
from mllmsubj.train.feature_cache import make_cache
from mllmsubj.train.features import FeatureEncoder
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.optimizer import learning_rates, make_optimizer
from mllmsubj.train.programs import Program, lower_update, update_step_flops
from mllmsubj.train.state import TrainState, new_state, state_shardings
from mllmsubj.train.step import BINS, TrainStep
from mllmsubj.train.throughput import Throughput
from mllmsubj.tree import flatten, join, split
from mllmsubj.typing import Params


@dataclass(frozen=True)
class TrainStage:
    """The pure functions of one of the paper's two training stages."""

    encoder: FeatureEncoder
    step: TrainStep


@dataclass(frozen=True)
class Setup:
    """A run of the method's two stages; see `train.task.Task`. Every process has one; arrays are on the mesh."""

    experiment: Experiment
    mesh: Mesh
    base: Path
    """Checkpoint of the frozen parameters and of the initial trained ones."""
    model: SubjectModel
    frozen: Params
    """Frozen parameters, in the layout of `model.compute`; trained ones are always stacked."""
    prompts: PromptEncoder
    stages: tuple[TrainStage, TrainStage]

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """Binned metrics of a step, by key."""
        return BINS

    @property
    def update_params(self) -> Params:
        """Frozen parameters that the update reads."""
        return self.frozen["transformer"]

    def stage_of(self, step: int) -> int:
        """Returns the index in `stages` of update number `step`, counted from 0."""
        return int(step >= self.experiment.train.stage1.steps)

    def num_trainable_params(self, step: int) -> int:
        """Returns the number of parameters that update number `step` changes."""
        shapes, rates = flatten(self.model.stacked.abstract_params()), self.stages[self.stage_of(step)].step.rates
        return sum(shapes[path].size for path in rates)

    def init_state(self, trained: Params, step: int = 0) -> TrainState:
        """Returns the state before the first update, with the optimizer of the stage of `step`.

        Can be evaluated on shapes by `jax.eval_shape`.
        """
        first = self.stages[self.stage_of(step)].step
        return new_state(trained, set(first.rates), first.optimizer, ema=self.experiment.train.ema_decay > 0)

    def enter_stage(self, state: TrainState, step: int) -> TrainState:
        """Returns the state after `step` updates; at the start of stage 2, with a new optimizer state."""
        if step != self.experiment.train.stage1.steps:
            return state
        stage = self.stages[1].step

        def enter(state: TrainState) -> TrainState:
            active = split(state.params, set(stage.rates))[0]
            return replace(state, opt_state=stage.optimizer.init(active))

        shardings = state_shardings(jax.eval_shape(enter, state), self.mesh)
        return jax.jit(enter, out_shardings=shardings)(state)

    def batches(self, loader: Loader, step: int, throughput: Throughput) -> Generator[TrainBatch]:
        """Yields encoded batches of the loader, whose next one is for update number `step`."""
        cache = make_cache(self.experiment, self.base, self.stages[0].encoder, self.mesh)
        encoders = tuple(stage.encoder for stage in self.stages)
        size = self.experiment.train.batch_size
        return encoded_batches(loader, size, self.stage_of, encoders, self.frozen, self.mesh, cache, step, throughput)

    def compile_update(self, state: TrainState, batch: TrainBatch) -> Program:
        """Compiles the update of the batch's stage."""
        step = self.stages[batch.stage].step
        lowered = lower_update(step, state, self.update_params, batch.inputs, self.mesh)
        return Program(lowered.compile(), update_step_flops(step, batch.inputs))

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """Writes `WORKDIR/model`: the moving average of the trained parameters, referring to the frozen ones."""
        checkpoint.save(workdir / "model", config, state.result, self.base, base=self.base, replace=True)

    def all_params(self, trained: Params) -> Params:
        """Returns trained and frozen parameters, in the layout of `model.compute`."""
        return join(self.frozen, trained if self.model.compute.scan_layers else unstack(trained))

    def loader(
        self, data: DataConfig, batch_size: int, source: Source | None = None, seed: int | None = None
    ) -> Loader:
        """Returns a loader of this process's rows of batches; `source`: the one that `data` names, if it is open.

        `seed`: seed of a registered source's examples and of their order, by default the run's.
        Raises UserError if hosts do not read the same data.
        """
        experiment, mllm = self.experiment, self.experiment.model.mllm
        seed = experiment.seed if seed is None else seed
        reader = RowReader(data, experiment.reference, self.prompts, mllm.vision.image_size)
        rows = multihost.process_rows(batch_size, self.mesh)
        source = open_source(data, seed) if source is None else source
        loader = make_loader(source, reader, batch_size, rows, seed)
        if (first := on_first_process(lambda: loader.data_fingerprint)) != loader.data_fingerprint:
            raise UserError(
                f"process {jax.process_index()} reads other data ({loader.data_fingerprint}) than process 0 ({first})"
            )
        return loader


def prepare(config: ConfigDict, experiment: Experiment, workdir: Path, mesh: Mesh) -> tuple[Setup, Params]:
    """Returns the setup of a run, and the trained parameters that it starts from.

    `config` is the config of `experiment`. Raises UserError for a config that cannot be run.
    """
    train, seed = experiment.train, experiment.seed
    if experiment.model.lora is None:
        raise UserError("config key model.lora is None; training needs adapters")
    check_batch(train.batch_size, train.grad_accum_steps, mesh)
    start = _start_folder(train.start_from)
    model = SubjectModel(experiment.model, experiment.compute.resolve())
    base, is_new = base_folder(train.weights, workdir)
    prompts = make_prompt_encoder(experiment, TINY if is_new else base)
    expected = model.stacked.abstract_params(mesh)
    if is_new:
        params = new_base(base, config, model.stacked, expected, train.weights, train.warm_start, seed)
    else:
        params = load_params(base, model.stacked, expected, seed)
    setup, trained = _make_setup(experiment, mesh, base, model, params, prompts)
    return setup, trained if start is None else checkpoint.restore(start, trained)


def restored(experiment: Experiment, folder: Path, mesh: Mesh) -> tuple[Setup, Params]:
    """Returns the setup to evaluate a checkpoint with, and all its parameters, in the layout of `model.compute`.

    `experiment` has the checkpoint's config. Raises UserError as `checkpoint.restore` does.
    """
    model = SubjectModel(experiment.model, experiment.compute.resolve())
    params = trained_params(folder, model.stacked, model.stacked.abstract_params(mesh), experiment.seed)
    setup, trained = _make_setup(experiment, mesh, folder, model, params, make_prompt_encoder(experiment, folder))
    return setup, setup.all_params(trained)


def make_prompt_encoder(experiment: Experiment, folder: Path) -> PromptEncoder:
    """Returns the prompt encoder with the tokenizers of the checkpoint `folder`.

    Raises UserError if sequences would be longer than the MLLM supports.
    """
    mllm, data = experiment.model.mllm, experiment.data
    encoder = PromptEncoder(
        folder / "tokenizer",
        folder / "clip_tokenizer",
        experiment.prompt,
        image_tokens=mllm.tokens_per_tile,
        image_token_id=mllm.image_token_id,
    )
    longest = encoder.layout(data.max_references, data.prompt_tokens)[0][1]
    if longest > mllm.text.max_position_embeddings:
        raise UserError(
            f"config key data.prompt_tokens is {data.prompt_tokens}, which with {data.max_references} references makes "
            f"sequences of {longest} tokens; this MLLM supports at most {mllm.text.max_position_embeddings}, lower it"
        )
    return encoder


def make_stages(
    experiment: Experiment, model: SubjectModel, params: Params, null_ids: tuple[int, ...], null_text: tuple[int, int]
) -> tuple[TrainStage, TrainStage]:
    """Returns both stages; only the paths of `params` are read. `null_ids`, `null_text`: see `FeatureEncoder`."""
    train = experiment.train

    def stage(config: StageConfig) -> TrainStage:
        rates, active_tokens = learning_rates(params, config), modes.active_tokens_of(config.modes)
        return TrainStage(
            FeatureEncoder(
                model, experiment.reference, null_ids, null_text, train.grad_accum_steps, active_tokens.reference
            ),
            TrainStep(
                model=model,
                train=train,
                stage=config,
                active_tokens=active_tokens,
                rates=rates,
                optimizer=make_optimizer(train, config, rates),
                shift=experiment.shift,
                seed=experiment.seed,
            ),
        )

    first, second = stage(train.stage1), stage(train.stage2)
    if experiment.data.cache and train.stage2.steps and second.encoder.with_references:
        # The first stage encodes references, too, so that the second stage finds them in the cache.
        first = replace(first, encoder=replace(first.encoder, with_references=True))
    return first, second


def trained_paths(params: Params, stages: Sequence[TrainStage]) -> set[str]:
    """Returns the paths in a run's state: what either stage trains, and always the DLA and adapters.

    The latter are included even if frozen: the base checkpoint may lack them, or differ from that of `start_from`.
    """
    trained = {path for path in flatten(params) if is_trained(path)}
    return trained.union(*(stage.step.rates for stage in stages if stage.step.stage.steps))


def check_batch(batch_size: int, grad_accum_steps: int, mesh: Mesh, key: str = "train") -> None:
    """Raises UserError if the mesh does not divide the batch size, which is set in config section `key`."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * grad_accum_steps):
        unit = devices * grad_accum_steps
        raise UserError(
            f"{key}.batch_size {batch_size} is not divisible by mesh axes data x fsdp ({devices}) times "
            f"train.grad_accum_steps ({grad_accum_steps}); use a multiple of {unit}, such as "
            f"{-(-batch_size // unit) * unit}"
        )


def _make_setup(
    experiment: Experiment, mesh: Mesh, base: Path, model: SubjectModel, params: Params, prompts: PromptEncoder
) -> tuple[Setup, Params]:
    """Returns the setup on the parameters of the checkpoint `base`, and those of them in its state, stacked."""
    null = prompts("", 0)
    stages = make_stages(experiment, model, params, tuple(null.input_ids[0].tolist()), null.text)
    trained, frozen = split(params, trained_paths(params, stages))
    if experiment.model.frozen_dtype == "int8":
        frozen = quantize_frozen(frozen)
    if not model.compute.scan_layers:
        frozen = jax.jit(unstack)(frozen)
    return Setup(experiment, mesh, base, model, frozen, prompts, stages), trained


def _start_folder(where: str) -> Path | None:
    """Returns the checkpoint that train.start_from names: a finished workdir, or a checkpoint itself."""
    if not where:
        return None
    folder = checkpoint.folder_of(where)
    if not ((folder / "config.json").is_file() and (folder / "params").is_dir()):
        raise UserError(f"config key train.start_from is {where!r}, neither a finished workdir nor a checkpoint")
    return folder
