"""AdamW over the trained parameters alone; a frozen one has neither gradient nor moments."""

import re

import jax
import jax.numpy as jnp
import optax

from mllmsubj.errors import UserError
from mllmsubj.sharding import flatten, unflatten
from mllmsubj.train.settings import StageConfig, TrainConfig
from mllmsubj.typing import Array, Float, Params

DECAYED = re.compile(r".*/(kernel|lora_[ab])")
"""Weight decay pulls on matrices, not on biases and norms."""


def learning_rates(params: Params, stage: StageConfig) -> dict[str, float]:
    """Path -> peak learning rate of everything that `stage` trains.

    Raises UserError for a pattern that names no parameter, and if nothing is left to train.
    """
    paths = [path for path, _ in flatten(params)]
    rates: dict[str, float | None] = {}
    for pattern, rate in stage.learning_rates:
        found = [path for path in paths if re.fullmatch(pattern, path)]
        if not found:
            raise UserError(f"learning_rates: {pattern!r} matches no parameter, such as {paths[0]!r}")
        rates = {**dict.fromkeys(found, rate), **rates}
    trained = {path: rate for path, rate in rates.items() if rate is not None}
    if not trained:
        raise UserError("learning_rates: every parameter is frozen; nothing to train")
    return {path: trained[path] for path in paths if path in trained}


def trained_paths(params: Params, train: TrainConfig) -> set[str]:
    """What either stage of the run trains."""
    stages = [stage for stage in (train.stage1, train.stage2) if stage.steps]
    return set().union(*(learning_rates(params, stage) for stage in stages))


def split(params: Params, paths: set[str]) -> tuple[Params, Params]:
    """(those in `paths`, all others), each a nested dict."""
    leaves = dict(flatten(params))
    inside = {path: leaf for path, leaf in leaves.items() if path in paths}
    return unflatten(inside), unflatten({path: leaf for path, leaf in leaves.items() if path not in paths})


def join(*trees: Params) -> Params:
    """One nested dict of several that share no leaf."""
    leaves: Params = {}
    for tree in trees:
        leaves |= dict(flatten(tree))
    return unflatten(leaves)


def make_optimizer(train: TrainConfig) -> optax.GradientTransformation:
    """Clip by the global norm, Adam, weight decay; `descend` applies the learning rates."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.scale_by_adam(train.beta1, train.beta2),
        optax.add_decayed_weights(
            train.weight_decay,
            mask=lambda tree: unflatten({path: bool(DECAYED.fullmatch(path)) for path, _ in flatten(tree)}),
        ),
    )


def descend(
    params: Params, updates: Params, rates: dict[str, float], done: Float[Array, ""], stage: StageConfig
) -> Params:
    """params − rate · update, each at its own rate, which grows over the warm-up and falls over the cool-down.

    `done`: steps of the stage before.
    """
    share = jnp.minimum(1.0, (done + 1.0) / max(1, stage.warmup_steps))
    if stage.cooldown_steps:
        share *= jnp.clip((stage.steps - done) / min(stage.cooldown_steps, max(1, stage.steps)), 0.0, 1.0)
    scales = unflatten({path: rates[path] for path, _ in flatten(params)})
    return jax.tree.map(lambda p, u, rate: p - rate * share * u, params, updates, scales)
