"""Everything that changes in training, and how it lies on the mesh."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.sharding import parameter_shardings
from mllmsubj.train.optimizer import split
from mllmsubj.typing import Leaf, Params, PyTree


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
