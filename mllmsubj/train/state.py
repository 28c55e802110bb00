"""Everything that changes in training, how a step changes it, and how it lies on the mesh."""

from collections.abc import Mapping
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.config.train import StageConfig
from mllmsubj.parallel.sharding import parameter_shardings, with_sharding
from mllmsubj.train.optimizer import apply_updates
from mllmsubj.tree import join, split
from mllmsubj.typing import Array, Leaf, Params, PyTree


@flax.struct.dataclass
class TrainState:
    """Arrays only; what is frozen is not in it."""

    step: Leaf
    """[] int32: updates done, over both stages."""
    params: Params
    """What either stage trains, and the DLA and adapters in any case; float32, layers stacked."""
    moments: PyTree
    """The optimizer's, of what the present stage trains."""
    ema: Params | None
    """Running mean of `params`, or None."""
    bad: Leaf
    """[] int32: updates in a row that were left out because of NaN or Inf."""

    @property
    def result(self) -> Params:
        """What is judged and kept: the running mean, or the parameters where there is none."""
        return self.params if self.ema is None else self.ema


def new_state(params: Params, active: set[str], optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step, from trained parameters; `active`: paths that the first stage trains."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        moments=optimizer.init(split(params, active)[0]),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        bad=jnp.zeros((), jnp.int32),
    )


def update_state(
    state: TrainState,
    gradients: Params,
    loss: Array,
    optimizer: optax.GradientTransformation,
    rates: Mapping[str, float],
    stage: StageConfig,
    first: int,
    ema_decay: float,
) -> tuple[TrainState, dict[str, Array]]:
    """One step down the gradients, and the metrics "grad_norm" and "bad".

    A step whose `loss` or gradients have NaN or Inf changes nothing but the count of such. `rates`: path -> peak
    learning rate of all that has a gradient; `first`: the stage's first step.
    """
    active, idle = split(state.params, set(rates))
    norm = optax.tree.norm(gradients)
    updates, moments = optimizer.update(gradients, state.moments, active)
    done = (state.step - first).astype(jnp.float32)
    params = join(idle, apply_updates(active, updates, rates, done, stage))

    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    params = _where(good, params, state.params)
    new = replace(
        state,
        step=state.step + 1,
        params=params,
        moments=_where(good, moments, state.moments),
        ema=None if state.ema is None else _mean(state, params, ema_decay),
        bad=jnp.where(good, 0, state.bad + 1),
    )
    return new, {"grad_norm": norm, "bad": new.bad.astype(jnp.float32)}


def _mean(state: TrainState, params: Params, ema_decay: float) -> Params:
    """The running mean; its decay grows from 0.1 to the one that is set, so that the start is soon forgotten."""
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, x: mean + (1.0 - decay) * (x - mean), state.ema, params)


def _where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def abstract(tree: TrainState, mesh: Mesh) -> TrainState:
    """Shapes with shardings, to restore into."""
    return with_sharding(tree, state_shardings(tree, mesh))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """NamedSharding for every leaf, from shapes; moments and mean lie as their parameters do."""
    whole = NamedSharding(mesh, PartitionSpec())

    def moments(tree: PyTree) -> PyTree:
        """Adam's two trees of the parameters' own form are found by their being dicts."""
        is_params = lambda node: isinstance(node, dict)  # noqa: E731
        return jax.tree.map(
            lambda node: parameter_shardings(node, mesh) if is_params(node) else whole, tree, is_leaf=is_params
        )

    return TrainState(
        step=whole,
        params=parameter_shardings(state.params, mesh),
        moments=moments(state.moments),
        ema=None if state.ema is None else parameter_shardings(state.ema, mesh),
        bad=whole,
    )
