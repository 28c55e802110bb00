"""AdamW or Muon over the trained parameters only; frozen parameters have neither gradients nor moments."""

import re
from collections.abc import Mapping
from functools import cache

import jax
import jax.numpy as jnp
import optax
from flax.core import FrozenDict

from mllmsubj.config.train import StageConfig, TrainConfig
from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import STACKED
from mllmsubj.tree import flatten, join, split, unflatten
from mllmsubj.typing import Array, Float, Params

WEIGHT_DECAY = re.compile(r".*/(kernel|lora_[ab])")
"""Paths with weight decay: matrices, not biases and norms."""

MUON = re.compile(r"(?!transformer/(x_embedder|proj_out)/).*/kernel")
"""Paths that Muon updates: hidden kernels. AdamW updates all others, among them the projections of latents."""


def learning_rates(params: Params, stage: StageConfig) -> FrozenDict[str, float]:
    """Returns path -> peak learning rate of everything that `stage` trains; hashable, so that `TrainStep` is, too.

    Raises UserError for a pattern that matches no parameter, and if every parameter is frozen.
    """
    paths = list(flatten(params))
    rates: dict[str, float | None] = {}
    for pattern, rate in stage.learning_rates:
        found = [path for path in paths if re.fullmatch(pattern, path)]
        if not found:
            raise UserError(f"learning_rates: {pattern!r} matches no parameter, such as {paths[0]!r}")
        rates = {**dict.fromkeys(found, rate), **rates}
    trained = {path: rate for path, rate in rates.items() if rate is not None}
    if not trained:
        raise UserError("learning_rates: every parameter is frozen; nothing to train")
    return FrozenDict({path: trained[path] for path in paths if path in trained})


@cache
def make_optimizer(
    train: TrainConfig, stage: StageConfig, rates: FrozenDict[str, float]
) -> optax.GradientTransformation:
    """Chains clipping by global norm, Adam or Muon, weight decay, learning rates by path, and the stage's schedule.

    Equal arguments return the same object, so that steps with equal settings are equal.
    """
    adam = optax.scale_by_adam(train.beta1, train.beta2)
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        _partition(_muon(), adam) if train.optimizer == "muon" else adam,
        optax.add_decayed_weights(
            train.weight_decay,
            mask=lambda tree: unflatten({path: bool(WEIGHT_DECAY.fullmatch(path)) for path in flatten(tree)}),
        ),
        _scale_by_path({path: -rate for path, rate in rates.items()}),
        optax.scale_by_schedule(schedule(stage)),
    )


def schedule(stage: StageConfig) -> optax.Schedule:
    """Returns a schedule of the fraction of the peak learning rate: linear warm-up, constant, linear decay to 0.

    Its argument counts the updates of the stage, without those skipped because of NaN or Inf.
    """

    def share(count: Array) -> Float[Array, ""]:
        done = jnp.asarray(count, jnp.float32)
        fraction = jnp.minimum(1.0, (done + 1.0) / max(1, stage.warmup_steps))
        if stage.decay_steps:
            fraction *= jnp.clip((stage.steps - done) / min(stage.decay_steps, max(1, stage.steps)), 0.0, 1.0)
        return fraction

    return share


def current_learning_rates(
    opt_state: optax.OptState, stage: StageConfig, rates: Mapping[str, float]
) -> dict[str, Array]:
    """Returns "learning_rate/COMPONENT" of the next update: the maximum of each top-level subtree of the parameters.

    `opt_state`: state of `make_optimizer(train, stage, rates)`.
    """
    peaks: dict[str, float] = {}
    for path, rate in rates.items():
        component = path.partition("/")[0]
        peaks[component] = max(rate, peaks.get(component, 0.0))
    share = schedule(stage)(opt_state[-1].count)
    return {f"learning_rate/{component}": peak * share for component, peak in peaks.items()}


def _scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    def scaled(updates: Params, _params: Params | None = None) -> Params:
        return unflatten({path: update * factors[path] for path, update in flatten(updates).items()})

    return optax.stateless(scaled)


def _muon() -> optax.GradientTransformation:
    """Orthogonalized updates of matrices (Jordan 2024), with Adam's RMS of 0.2 (arXiv 2502.16982, section 2.2)."""

    def axes(tree: Params) -> Params:
        # The remaining axis, of layers, separates matrices; in `modulation` it is the middle one.
        each = {path: (1 if STACKED.match(path) else 0, leaf.ndim - 1) for path, leaf in flatten(tree).items()}
        return unflatten({path: optax.contrib.MuonDimensionNumbers(*pair) for path, pair in each.items()})

    def scaled(updates: Params, _params: Params | None = None) -> Params:
        sides = jax.tree.map(lambda x, pair: max(x.shape[pair[0]], x.shape[pair[1]]), updates, axes(updates))
        return jax.tree.map(lambda x, side: 0.2 * side**0.5 * x, updates, sides)

    return optax.chain(optax.contrib.scale_by_muon(weight_dimension_numbers=axes), optax.stateless(scaled))


def _partition(
    hidden: optax.GradientTransformation, others: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Applies `hidden` to matrices of `MUON`, `others` to the rest; unlike `optax.partition`, moments are dicts."""

    def partition(tree: Params) -> tuple[Params, Params]:
        return split(tree, {path for path, leaf in flatten(tree).items() if MUON.fullmatch(path) and leaf.ndim <= 3})

    def init(params: Params) -> tuple[optax.OptState, optax.OptState]:
        matrices, rest = partition(params)
        return hidden.init(matrices), others.init(rest)

    def update(
        updates: Params, state: tuple[optax.OptState, optax.OptState], _params: Params | None = None
    ) -> tuple[Params, tuple[optax.OptState, optax.OptState]]:
        matrices, rest = partition(updates)
        matrices, first = hidden.update(matrices, state[0])
        rest, second = others.update(rest, state[1])
        return join(matrices, rest), (first, second)

    return optax.GradientTransformation(init, update)
