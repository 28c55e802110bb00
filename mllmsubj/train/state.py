"""The training state, its update, and its sharding."""

from collections.abc import Mapping
from dataclasses import replace

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.config.train import StageConfig
from mllmsubj.parallel.sharding import parameter_shardings, with_sharding
from mllmsubj.train.optimizer import current_learning_rates
from mllmsubj.tree import join, split
from mllmsubj.typing import Array, Leaf, Params, PyTree


@flax.struct.dataclass
class TrainState:
    """Everything that training changes, as arrays; it does not contain the frozen parameters."""

    step: Leaf
    """[] int32: updates done, over both stages."""
    params: Params
    """Parameters that either stage trains, and always the DLA and adapters; float32, layers stacked."""
    opt_state: PyTree
    """The optimizer's state for the parameters that the current stage trains."""
    ema: Params | None
    """Exponential moving average of `params`, or None."""
    nonfinite: Leaf
    """[] int32: consecutive updates that were skipped because of NaN or Inf."""

    @property
    def result(self) -> Params:
        """Parameters to evaluate and save: the moving average, or `params` if there is none."""
        return self.params if self.ema is None else self.ema


def new_state(params: Params, active: set[str], optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """Returns the state before the first step, from initial parameters; `active`: paths that the stage trains."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(split(params, active)[0]),
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        nonfinite=jnp.zeros((), jnp.int32),
    )


def update_state(
    state: TrainState,
    gradients: Params,
    loss: Array,
    optimizer: optax.GradientTransformation,
    stage: StageConfig,
    rates: Mapping[str, float],
    ema_decay: float,
) -> tuple[TrainState, dict[str, Array]]:
    """Applies one optimizer step; returns the state and metrics: norms, learning rates, and "nonfinite".

    If `loss` or gradients have NaN or Inf, parameters and optimizer state are unchanged and `nonfinite` is incremented.
    `rates`: path -> peak learning rate of everything that has a gradient.
    """
    active, inactive = split(state.params, set(rates))
    norm = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, active)
    applied = optax.apply_updates(active, updates)

    finite = jnp.isfinite(norm) & jnp.isfinite(loss)
    params = _where(finite, join(inactive, applied), state.params)
    new = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=_where(finite, opt_state, state.opt_state),
        ema=None if state.ema is None else _moving_average(state, params, ema_decay),
        nonfinite=jnp.where(finite, 0, state.nonfinite + 1),
    )
    metrics = {
        "grad_norm": norm,
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(applied),
        "nonfinite": new.nonfinite.astype(jnp.float32),
    }
    return new, metrics | current_learning_rates(state.opt_state, stage, rates)


def _moving_average(state: TrainState, params: Params, ema_decay: float) -> Params:
    """Returns the next average; its decay grows from 0.1 to `ema_decay`, to reduce the weight of early parameters."""
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda mean, x: mean + (1.0 - decay) * (x - mean), state.ema, params)


def _where(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def abstract(tree: TrainState, mesh: Mesh) -> TrainState:
    """Returns shapes with shardings, which `Checkpoints.restore` takes."""
    return with_sharding(tree, state_shardings(tree, mesh))


def state_shardings(state: TrainState, mesh: Mesh) -> TrainState:
    """Returns a NamedSharding for every leaf, from shapes; moments and average are sharded as their parameters."""
    whole = NamedSharding(mesh, PartitionSpec())

    def of_optimizer(tree: PyTree) -> PyTree:
        """Returns the optimizer's shardings; its dicts are trees with the structure of the parameters."""

        def is_params(node: PyTree) -> bool:
            return isinstance(node, dict)

        def shardings(node: PyTree) -> PyTree:
            return parameter_shardings(node, mesh) if is_params(node) else whole

        return jax.tree.map(shardings, tree, is_leaf=is_params)

    return TrainState(
        step=whole,
        params=parameter_shardings(state.params, mesh),
        opt_state=of_optimizer(state.opt_state),
        ema=None if state.ema is None else parameter_shardings(state.ema, mesh),
        nonfinite=whole,
    )
