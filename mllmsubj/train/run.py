"""All that a training run rests on, built once from its config: mesh, model, frozen weights, both stages, data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import TINY, on_first_process
from mllmsubj.checkpoints.initial import (
    FROZEN,
    WARM_STARTED,
    base_folder,
    load_params,
    random_params,
    tiny_params,
    trained_params,
)
from mllmsubj.config.data import DataConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.config.train import TrainConfig
from mllmsubj.data.batch import Batch
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
from mllmsubj.train.metrics import BinnedMetrics
from mllmsubj.train.optimizer import learning_rates, make_optimizer, trained_paths
from mllmsubj.train.programs import Programs, compile_step
from mllmsubj.train.state import TrainState, new_state
from mllmsubj.train.step import BINS, TrainStep
from mllmsubj.tree import flatten, join, split
from mllmsubj.typing import Params


@dataclass(frozen=True)
class Run:
    """See `prepare` and `restored`. Every process holds one; arrays lie on the mesh."""

    experiment: Experiment
    mesh: Mesh
    base: Path
    """Checkpoint of the frozen parameters, and of the trained ones' start."""
    model: SubjectModel
    frozen: Params
    """Laid out as `model.compute` wants them; what is trained is always stacked."""
    encoder: PromptEncoder
    stages: tuple[TrainStep, TrainStep]

    @property
    def bins(self) -> Mapping[str, BinnedMetrics]:
        """See `Task`."""
        return BINS

    def stage(self, step: int) -> TrainStep:
        """The one that does update number `step`, counted from 0; the last one's for good."""
        return self.stages[step >= self.experiment.train.stage1.steps]

    def enter(self, state: TrainState, step: int) -> TrainState:
        """A state with fresh moments for the stage of `step`."""
        active = split(state.params, set(self.stage(step).rates))[0]
        return replace(state, moments=self.stage(step).optimizer.init(active))

    def state(self, trained: Params) -> TrainState:
        """Before the first update; shapes in, shapes out under `jax.eval_shape`."""
        train, stage = self.experiment.train, self.stage(0)
        return new_state(trained, set(stage.rates), stage.optimizer, ema=train.ema_decay > 0)

    def compile(self, step: TrainStep, state: TrainState, batch: Batch) -> Programs:
        """Both programs of a stage for batches of this form."""
        return compile_step(step, state, self.frozen, batch, self.mesh)

    def finish(
        self, workdir: Path, config: ConfigDict, state: TrainState, numbers: Mapping[str, float], seconds: float
    ) -> None:
        """`WORKDIR/model`: the mean of the trained parameters, referring to the frozen ones."""
        checkpoint.save(workdir / "model", config, state.result, self.base, base=self.base, replace=True)

    def joined(self, trained: Params) -> Params:
        """All parameters, laid out as the model wants them."""
        return join(self.frozen, trained if self.model.compute.scan_layers else unstack(trained))

    def loader(
        self, data: DataConfig, batch_size: int, source: Source | None = None, seed: int | None = None
    ) -> Loader:
        """Batches of a source's examples, this process's rows; `source`: the one that `data` names, if it is open.

        `seed`: of a registered source's examples and of their order, if not the run's.
        Raises UserError if hosts do not see the same data.
        """
        experiment, mllm = self.experiment, self.experiment.model.mllm
        seed = experiment.seed if seed is None else seed
        reader = RowReader(data, experiment.reference, self.encoder, mllm.vision.image_size)
        rows = multihost.process_rows(batch_size, self.mesh)
        source = open_source(data, seed) if source is None else source
        loader = make_loader(source, reader, batch_size, rows, seed)
        if (first := on_first_process(lambda: loader.made_of)) != loader.made_of:
            raise UserError(
                f"process {jax.process_index()} sees other data ({loader.made_of}) than process 0 ({first})"
            )
        return loader


def prepare(config: ConfigDict, experiment: Experiment, workdir: Path, mesh: Mesh) -> tuple[Run, Params]:
    """The run, and the trained parameters that it starts from. Raises UserError for a config that cannot be run.

    `config` is what `experiment` was made from.
    """
    train = experiment.train
    if experiment.model.lora is None:
        raise UserError("config key model.lora is None; training needs adapters")
    check_batch(train.batch_size, train.grad_accum_steps, mesh)
    start = _start_folder(train.start_from)
    stacked = SubjectModel(experiment.model, experiment.compute.resolve()).stacked
    base, is_new = base_folder(train.weights, workdir)
    is_new = on_first_process(lambda: is_new)
    encoder = make_encoder(experiment, TINY if is_new else base)
    if is_new:
        if train.weights == "tiny":
            parts = WARM_STARTED if train.warm_start else FROZEN
            params = tiny_params(stacked, experiment.seed, mesh, parts)
        else:
            params = random_params(stacked, experiment.seed, mesh)
        checkpoint.save(base, config, params, TINY)
    else:
        params = load_params(base, stacked, experiment.seed, mesh)
    run, trained = _make_run(experiment, mesh, base, params, encoder)
    return run, trained if start is None else checkpoint.restore(start, trained, mesh)


def restored(experiment: Experiment, folder: Path, mesh: Mesh) -> tuple[Run, Params]:
    """A checkpoint to be judged: the run without a workdir, and all parameters laid out as its model wants them.

    `experiment`: of the checkpoint's config. Raises UserError as `checkpoint.restore` does.
    """
    stacked = SubjectModel(experiment.model, experiment.compute.resolve()).stacked
    params = trained_params(folder, stacked, experiment.seed, mesh)
    run, trained = _make_run(experiment, mesh, folder, params, make_encoder(experiment, folder))
    return run, run.joined(trained)


def make_encoder(experiment: Experiment, folder: Path) -> PromptEncoder:
    """By the tokenizers of the checkpoint `folder`; raises UserError where batches would be longer than the MLLM
    reads."""
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
            f"sequences of {longest} tokens; this MLLM reads at most {mllm.text.max_position_embeddings}, lower it"
        )
    return encoder


def _make_run(
    experiment: Experiment, mesh: Mesh, base: Path, params: Params, encoder: PromptEncoder
) -> tuple[Run, Params]:
    """The run on the parameters of the checkpoint `base`, and those of them that it keeps, stacked as `params` are.

    It keeps what it trains, and the DLA and the adapters even where its learning rates freeze them: `base` need not
    have them, or not as `start_from` has.
    """
    compute = experiment.compute.resolve()
    trained, frozen = split_trained(params, experiment.train)
    null = encoder("", 0)
    stages = make_stages(experiment, params, tuple(null.input_ids[0].tolist()), null.text)
    if experiment.model.frozen_dtype == "int8":
        frozen = quantize_frozen(frozen)
    if not compute.scan_layers:
        frozen = jax.jit(unstack)(frozen)
    return Run(experiment, mesh, base, stages[0].model, frozen, encoder, stages), trained


def split_trained(params: Params, train: TrainConfig) -> tuple[Params, Params]:
    """What a run's state holds, trained or not in either stage, and what is frozen for good."""
    return split(params, trained_paths(params, train) | {path for path in flatten(params) if is_trained(path)})


def make_stages(
    experiment: Experiment, params: Params, null_ids: tuple[int, ...], null_text: tuple[int, int]
) -> tuple[TrainStep, TrainStep]:
    """Both stages' programs; only the paths of `params` are read. `null_ids`, `null_text`: see `TrainStep`."""
    train, stage1_steps = experiment.train, experiment.train.stage1.steps
    step = partial(
        TrainStep,
        model=SubjectModel(experiment.model, experiment.compute.resolve()),
        train=train,
        optimizer=make_optimizer(train),
        reference=experiment.reference,
        shift=experiment.shift,
        null_ids=null_ids,
        null_text=null_text,
        seed=experiment.seed,
    )
    second = step(stage=train.stage2, first=stage1_steps, rates=learning_rates(params, train.stage2))
    for_later = bool(experiment.data.cache) and train.stage2.steps > 0 and second.reads_references
    first = step(stage=train.stage1, first=0, rates=learning_rates(params, train.stage1), for_later=for_later)
    return first, second


def check_batch(batch_size: int, grad_accum_steps: int, mesh: Mesh, key: str = "train") -> None:
    """Raises UserError if the mesh does not divide the batch, which config section `key` says."""
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (devices * grad_accum_steps):
        unit = devices * grad_accum_steps
        raise UserError(
            f"{key}.batch_size {batch_size} is not divisible by mesh axes data x fsdp ({devices}) times "
            f"train.grad_accum_steps ({grad_accum_steps}); use a multiple of {unit}, such as "
            f"{-(-batch_size // unit) * unit}"
        )


def _start_folder(where: str) -> Path | None:
    """The checkpoint that train.start_from means: another run's end, or itself; looked for before anything is made."""
    if not where:
        return None
    folder = checkpoint.folder_of(where)
    if not ((folder / "config.json").is_file() and (folder / "params").is_dir()):
        raise UserError(f"config key train.start_from is {where!r}, neither a finished workdir nor a checkpoint")
    return folder
