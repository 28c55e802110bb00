"""Where a model's parameters come from: a checkpoint folder or, where there is none yet, random numbers."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
from jax.sharding import Mesh

from mllmsubj import checkpoint
from mllmsubj.errors import UserError
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.sharding import flatten, parameter_shardings, unflatten
from mllmsubj.typing import Params


def random_params(model: SubjectModel, seed: int, mesh: Mesh, only: set[str] | None = None) -> Params:
    """Initial parameters on the mesh, in the dtypes that they are stored in; `only`: those paths."""
    expected = dict(flatten(model.abstract_params()))
    wanted = unflatten({path: leaf for path, leaf in expected.items() if only is None or path in only})

    def init(key: jax.Array) -> Params:
        leaves = dict(flatten(model.init(key)))
        return unflatten({path: leaves[path].astype(leaf.dtype) for path, leaf in flatten(wanted)})

    return jax.jit(init, out_shardings=parameter_shardings(wanted, mesh))(jax.random.key(seed))


def load_params(folder: Path, model: SubjectModel, seed: int, mesh: Mesh) -> Params:
    """A checkpoint's parameters to train on: what is trained and not in it, as after an import, starts at random.

    Raises UserError as `checkpoint.restore` does.
    """
    there = checkpoint.stored_paths(folder)  # first, because it is what a user may have mistyped
    expected = dict(flatten(model.abstract_params()))
    new = {path for path in expected if path not in there and is_trained(path)}
    found = checkpoint.restore(folder, unflatten({p: leaf for p, leaf in expected.items() if p not in new}), mesh)
    if not new:
        return found
    return unflatten(dict(flatten(found)) | dict(flatten(random_params(model, seed, mesh, new))))


def trained_params(folder: Path, model: SubjectModel, seed: int, mesh: Mesh) -> Params:
    """A checkpoint's parameters to draw with or to judge; as long as "tiny" has none, random ones, with a warning.

    Raises UserError as `checkpoint.restore` and `check_trained` do.
    """
    paths = [path for path, _ in flatten(model.abstract_params())]
    (everything,) = trained_groups(folder, model, seed, mesh, [paths])
    return unflatten(everything)


def trained_groups(
    folder: Path, model: SubjectModel, seed: int, mesh: Mesh, groups: Iterable[Sequence[str]]
) -> Iterator[dict[str, jax.Array]]:
    """As `trained_params`, the paths of a group at a time: each is read when it is asked for."""
    if folder == checkpoint.TINY and not checkpoint.has_params(folder):
        warnings.warn(
            "checkpoint 'tiny' has no trained weights yet: these are random, from the config's seed, and so are the "
            "pictures",
            stacklevel=3,
        )
        leaves = dict(flatten(random_params(model, seed, mesh)))
        yield from ({path: leaves[path] for path in group} for group in groups)
    else:
        check_trained(folder, model)
        yield from checkpoint.restore_groups(folder, model.abstract_params(), mesh, groups)


def check_trained(folder: Path, model: SubjectModel) -> None:
    """Raises UserError if a checkpoint has none of what is trained, as after an import."""
    trained = {path for path, _ in flatten(model.abstract_params()) if is_trained(path)}
    if trained and not trained & checkpoint.stored_paths(folder):
        raise UserError(
            f"checkpoint {folder} is not trained yet: it holds imported weights only; train on it with mllmsubj train "
            f"--config=… --config.train.weights={folder}"
        )


def base_folder(weights: str, workdir: Path) -> tuple[Path, bool]:
    """Where a run's frozen parameters lie, and whether somebody must still put random ones there.

    "random", and "tiny" as long as it has none, means `WORKDIR/base`.
    """
    if not weights:
        raise UserError(
            'config key train.weights is empty; name the folder of imported weights, "tiny" or "random": '
            "--config.train.weights=DIR"
        )
    folder = checkpoint.folder_of(weights)
    if weights == "random" or (folder == checkpoint.TINY and not checkpoint.has_params(folder)):
        base = workdir / "base"
        return base, not (base / "config.json").is_file()
    return folder, False
