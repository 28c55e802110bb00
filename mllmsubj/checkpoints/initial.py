"""Where a model's parameters come from: a checkpoint folder, the parts that are shipped, or random numbers."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.errors import UserError
from mllmsubj.models.lora import is_lora
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel.sharding import parameter_shardings
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

MODEL_PARTS = ("mllm", "vae", "clip", "transformer", "dla")
FROZEN = tuple(part for part in components.PARTS if part != "dla")
"""What stays frozen of "tiny"."""
WARM_STARTED = components.PARTS
"""With what was trained of the DLA before the method's stages."""
ALL_COMPONENTS = (*components.PARTS, components.SUBJECT)
"""All that is shipped of "tiny"."""


def random_params(model: SubjectModel, seed: int, mesh: Mesh, only: set[str] | None = None) -> Params:
    """Initial parameters on the mesh, in the dtypes that they are stored in; `only`: those paths."""
    expected = flatten(model.abstract_params())
    wanted = unflatten({path: leaf for path, leaf in expected.items() if only is None or path in only})
    if not wanted:
        return {}

    def init(key: jax.Array) -> Params:
        leaves = flatten(model.init(key))
        return unflatten({path: leaves[path].astype(leaf.dtype) for path, leaf in flatten(wanted).items()})

    return jax.jit(init, out_shardings=parameter_shardings(wanted, mesh))(jax.random.key(seed))


def tiny_params(model: SubjectModel, seed: int, mesh: Mesh, names: tuple[str, ...] = WARM_STARTED) -> Params:
    """What is shipped of "tiny", on the mesh, in the dtypes that it is stored in; random numbers for the rest.

    `names`: parts that are taken.

    Raises UserError where the config says other sizes than what is shipped has.
    """
    leaves, read = flatten(model.abstract_params()), components.read(checkpoint.TINY, names)
    read = {path: array for path, array in read.items() if path.partition("/")[0] in MODEL_PARTS}
    parts = {path.partition("/")[0] for path in read}
    with_adapters = any(map(is_lora, read))
    expected = {
        path: leaf
        for path, leaf in leaves.items()
        if path.partition("/")[0] in parts and (with_adapters or not is_lora(path))
    }
    if problems := checkpoint.differences(read, expected):
        raise UserError(
            f"the shipped weights of {', '.join(sorted(parts))} do not fit the config: {problems}; take the sizes of "
            f"configs/tiny.py, or --config.train.weights=random, or for another DLA --config.train.warm_start=False"
        )
    found = unflatten({path: array.astype(leaves[path].dtype) for path, array in read.items()})
    found = jax.device_put(found, parameter_shardings(found, mesh))
    rest = random_params(model, seed, mesh, leaves.keys() - read.keys())
    return unflatten(flatten(rest) | flatten(found))


def untrained(folder: Path) -> tuple[str, ...]:
    """Parts of a checkpoint's model that are random: those of "tiny" that are not shipped yet."""
    if folder != checkpoint.TINY:
        return ()
    there = {path.partition("/")[0] for path in components.read(folder, ALL_COMPONENTS)}
    return tuple(part for part in MODEL_PARTS if part not in there)


def load_params(folder: Path, model: SubjectModel, seed: int, mesh: Mesh) -> Params:
    """A checkpoint's parameters to train on: what is trained and not in it, as after an import, starts at random.

    Raises UserError as `checkpoint.restore` does.
    """
    there = checkpoint.stored_paths(folder)  # first, because it is what a user may have mistyped
    expected = flatten(model.abstract_params())
    new = {path for path in expected if path not in there and is_trained(path)}
    found = checkpoint.restore(folder, unflatten({p: leaf for p, leaf in expected.items() if p not in new}), mesh)
    if not new:
        return found
    return unflatten(flatten(found) | flatten(random_params(model, seed, mesh, new)))


def trained_params(folder: Path, model: SubjectModel, seed: int, mesh: Mesh) -> Params:
    """A checkpoint's parameters to draw with or to judge; those that "tiny" has none of yet are random, with a warning.

    Raises UserError as `checkpoint.restore` and `check_trained` do.
    """
    paths = list(flatten(model.abstract_params()))
    (everything,) = trained_groups(folder, model, seed, mesh, [paths])
    return unflatten(everything)


def trained_groups(
    folder: Path, model: SubjectModel, seed: int, mesh: Mesh, groups: Iterable[Sequence[str]]
) -> Iterator[dict[str, jax.Array]]:
    """As `trained_params`, the paths of a group at a time: each is read when it is asked for."""
    if folder == checkpoint.TINY:
        if missing := untrained(folder):
            warnings.warn(
                f"checkpoint 'tiny' has no trained weights yet for {', '.join(missing)}: these are random, from the "
                f"config's seed, and so are the pictures",
                stacklevel=3,
            )
        leaves = flatten(tiny_params(model, seed, mesh, ALL_COMPONENTS))
        yield from ({path: leaves[path] for path in group} for group in groups)
    else:
        check_trained(folder, model)
        yield from checkpoint.restore_groups(folder, model.abstract_params(), mesh, groups)


def check_trained(folder: Path, model: SubjectModel) -> None:
    """Raises UserError if a checkpoint has none of what is trained, as after an import."""
    trained = {path for path in flatten(model.abstract_params()) if is_trained(path)}
    if trained and not trained & checkpoint.stored_paths(folder):
        raise UserError(
            f"checkpoint {folder} is not trained yet: it holds imported weights only; train on it with mllmsubj train "
            f"--config=… --config.train.weights={folder}"
        )


def base_folder(weights: str, workdir: Path) -> tuple[Path, bool]:
    """Where a run's frozen parameters lie, and whether they must still be written there; the same on every process.

    "random" and "tiny" mean `WORKDIR/base`: a run outlives the version of the package whose weights it began with.
    """
    if not weights:
        raise UserError(
            'config key train.weights is empty; name the folder of imported weights, "tiny" or "random": '
            "--config.train.weights=DIR"
        )
    if weights in ("random", "tiny"):
        base = workdir / "base"
        return base, checkpoint.on_first_process(lambda: not (base / "config.json").is_file())
    return checkpoint.folder_of(weights), False


def new_base(
    base: Path, config: ConfigDict, model: SubjectModel, mesh: Mesh, weights: str, warm_start: bool, seed: int
) -> Params:
    """Writes the parameters that "random" or "tiny" (`weights`) names to the checkpoint `base`, and returns them."""
    if weights == "tiny":
        params = tiny_params(model, seed, mesh, WARM_STARTED if warm_start else FROZEN)
    else:
        params = random_params(model, seed, mesh)
    checkpoint.save(base, config, params, checkpoint.TINY)
    return params
