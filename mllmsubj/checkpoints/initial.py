"""Initial parameters of a model: from a checkpoint folder, from the shipped components, or random."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.errors import CheckpointError
from mllmsubj.models.lora import is_lora
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel.multihost import on_first_process
from mllmsubj.parallel.sharding import shardings_of
from mllmsubj.tree import flatten, join, split, unflatten
from mllmsubj.typing import Params

MODEL_COMPONENTS = ("mllm", "vae", "clip", "transformer", "dla")
FROZEN = tuple(part for part in components.COMPONENTS if part != "dla")
"""Components of "tiny" that stay frozen."""
WARM_STARTED = components.COMPONENTS
"""The frozen components and the DLA as trained before the method's stages."""
ALL_COMPONENTS = (*components.COMPONENTS, components.SUBJECT)
"""All components of "tiny" that can be shipped."""


def random_params(model: SubjectModel, expected: Params, seed: int) -> Params:
    """Initializes parameters with the shapes, dtypes and shardings of `expected`, a subset of the model's."""
    if not expected:
        return {}

    def init(key: jax.Array) -> Params:
        leaves = flatten(model.init(key))
        return unflatten({path: leaves[path].astype(leaf.dtype) for path, leaf in flatten(expected).items()})

    return jax.jit(init, out_shardings=shardings_of(expected))(jax.random.key(seed))


def tiny_params(model: SubjectModel, expected: Params, seed: int, names: tuple[str, ...] = WARM_STARTED) -> Params:
    """Returns the shipped components `names` of "tiny", with random values for the rest of `expected`.

    Raises UserError if their shapes differ from those in the config.
    """
    leaves, read = flatten(expected), components.read(checkpoint.TINY, names)
    read = {path: array for path, array in read.items() if path.partition("/")[0] in MODEL_COMPONENTS}
    parts = {path.partition("/")[0] for path in read}
    with_adapters = any(map(is_lora, read))
    wanted = {
        path: leaf
        for path, leaf in leaves.items()
        if path.partition("/")[0] in parts and (with_adapters or not is_lora(path))
    }
    if problems := checkpoint.describe_differences(read, wanted):
        raise CheckpointError(
            f"the shipped weights of {', '.join(sorted(parts))} do not fit the config: {problems}; take the sizes of "
            f"configs/tiny.py, or --config.train.weights=random, or for another DLA --config.train.warm_start=False"
        )
    found = unflatten({path: array.astype(leaves[path].dtype) for path, array in read.items()})
    found = jax.device_put(found, shardings_of(unflatten({path: leaves[path] for path in read})))
    rest = unflatten({path: leaf for path, leaf in leaves.items() if path not in read})
    return join(random_params(model, rest, seed), found)


def untrained_components(folder: Path) -> tuple[str, ...]:
    """Returns the components of a checkpoint that are random: those of "tiny" that are not shipped yet."""
    if folder != checkpoint.TINY:
        return ()
    there = {path.partition("/")[0] for path in components.read(folder, ALL_COMPONENTS)}
    return tuple(part for part in MODEL_COMPONENTS if part not in there)


def load_params(folder: Path, model: SubjectModel, expected: Params, seed: int) -> Params:
    """Returns a checkpoint's parameters for training; trained ones that it lacks, as after an import, are random.

    Raises UserError as `checkpoint.restore` does.
    """
    there = checkpoint.stored_paths(folder)  # first, since it reports a mistyped folder
    new, found = split(expected, {path for path in flatten(expected) if path not in there and is_trained(path)})
    return join(checkpoint.restore(folder, found), random_params(model, new, seed))


def trained_params(folder: Path, model: SubjectModel, expected: Params, seed: int) -> Params:
    """Returns a checkpoint's parameters for sampling or evaluation; those that "tiny" lacks are random, with a warning.

    Raises UserError as `checkpoint.restore` and `check_trained` do.
    """
    (everything,) = trained_groups(folder, model, expected, seed, [list(flatten(expected))])
    return unflatten(everything)


def trained_groups(
    folder: Path, model: SubjectModel, expected: Params, seed: int, groups: Iterable[Sequence[str]]
) -> Iterator[dict[str, jax.Array]]:
    """Like `trained_params`, but yields one group of paths at a time; each is read when needed."""
    if folder == checkpoint.TINY:
        if missing := untrained_components(folder):
            warnings.warn(
                f"checkpoint 'tiny' has no trained weights yet for {', '.join(missing)}: these are random, from the "
                f"config's seed, and so are the pictures",
                stacklevel=3,
            )
        leaves = flatten(tiny_params(model, expected, seed, ALL_COMPONENTS))
        yield from ({path: leaves[path] for path in group} for group in groups)
    else:
        check_trained(folder, expected)
        yield from checkpoint.restore_groups(folder, expected, groups)


def check_trained(folder: Path, expected: Params) -> None:
    """Raises UserError if a checkpoint has no trained parameters, as after an import."""
    trained = {path for path in flatten(expected) if is_trained(path)}
    if trained and not trained & checkpoint.stored_paths(folder):
        raise CheckpointError(
            f"checkpoint {folder} is not trained yet: it holds imported weights only; train on it with mllmsubj train "
            f"--config=… --config.train.weights={folder}"
        )


def base_folder(weights: str, workdir: Path) -> tuple[Path, bool]:
    """Returns the folder of a run's frozen parameters, and whether it has yet to be written; equal on all processes.

    For "random" and "tiny" it is `WORKDIR/base`, so that a later version of the package cannot change a run's weights.
    """
    if not weights:
        raise CheckpointError(
            'config key train.weights is empty; name the folder of imported weights, "tiny" or "random": '
            "--config.train.weights=DIR"
        )
    if weights in ("random", "tiny"):
        base = workdir / "base"
        return base, on_first_process(lambda: not (base / "config.json").is_file())
    return checkpoint.folder_of(weights), False


def new_base(
    base: Path, config: ConfigDict, model: SubjectModel, expected: Params, weights: str, warm_start: bool, seed: int
) -> Params:
    """Makes the parameters for `weights` ("random" or "tiny"), saves them as checkpoint `base`, and returns them."""
    if weights == "tiny":
        params = tiny_params(model, expected, seed, WARM_STARTED if warm_start else FROZEN)
    else:
        params = random_params(model, expected, seed)
    checkpoint.save(base, config, params, checkpoint.TINY)
    return params
