"""Training step compared with the same step in PyTorch: diffusers' FLUX transformer and PEFT's adapters.

Both sides use the same random weights, tokens, masks, timesteps, noise and threads (one process), float32, AdamW with a
running mean, and no rematerialization. Ours also generates its random numbers, which the peer receives as inputs.
`ratio` is ours / theirs; the first updates are compared before timing.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.bench.timing import alternate, summary
from mllmsubj.bench.train_inputs import HEAD, NULL, BenchSize, known_sizes, random_batch, random_encoded, random_params
from mllmsubj.checkpoints.format import TINY, read_config
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.models.flops import encode_flops, train_flops
from mllmsubj.models.layers import abstract_params, unstack
from mllmsubj.models.subject import SubjectModel
from mllmsubj.ops.patchify import image_ids, reference_ids
from mllmsubj.train import modes
from mllmsubj.train.features import FROZEN_ENCODERS
from mllmsubj.train.setup import make_stages
from mllmsubj.train.state import new_state
from mllmsubj.tree import flatten, split
from mllmsubj.typing import Params

MATMUL = 2048
"""Side of the square matrix product that measures the machine's peak."""


def run(sizes: list[str], repeats: int) -> dict[str, Any]:
    """Measures these sizes; returns the content of the JSON."""
    experiment = Experiment.from_config(read_config(TINY))
    known = known_sizes(experiment)
    if unknown := [name for name in sizes if name not in known]:
        raise UserError(f"--sizes has {unknown[0]!r}; it may list: {', '.join(known)}")
    results = {name: compare(experiment, known[name], repeats) for name in sizes}
    if "tiny" in sizes:
        results["tiny"]["ours"] = _full_step(experiment, known["tiny"], repeats)
    return {
        "what": "train",
        "device": jax.devices()[0].device_kind,
        "cores": _cores(),
        "ratio": {name: result["step"]["ratio"] for name, result in results.items()},
        **results,
    }


def compare(experiment: Experiment, size: BenchSize, repeats: int) -> dict[str, Any]:
    """Compares and times our update and theirs at one size."""
    try:
        import torch

        from mllmsubj.bench.train_peer import Peer, export
    except ImportError as error:
        raise UserError(
            f"bench --what=train compares with diffusers and peft, which are not installed ({error.name})"
        ) from error
    torch.set_num_threads(_cores())
    ours = Trainer(experiment, size)
    peer = Peer(size.model, ours.step.train, ours.step.rates, ours.step.stage.warmup_steps)
    peer.load(ours.params)
    rows = _rows(ours)

    losses = ours.update(), peer.step(rows)
    gradients = _differences(export(ours.state.opt_state[1].mu, peer.table), peer.gradients())
    parameters = _differences(export(ours.state.params, peer.table), peer.arrays())

    square = jnp.ones((MATMUL, MATMUL))
    product = jax.jit(jnp.matmul)
    seconds = alternate(
        {
            "mllmsubj": ours.update,
            "diffusers_peft": lambda: peer.step(rows),
            "matmul": lambda: product(square, square).block_until_ready(),
        },
        repeats,
    )
    work = {"mllmsubj": ours.flops, "matmul": 2 * MATMUL**3}
    rate, peak = (float(flops / np.median(seconds[name]) / 1e9) for name, flops in work.items())
    return {
        "parameters": sum(leaf.size for leaf in flatten(ours.params).values()),
        "rows": size.rows,
        "tokens": {"image": 2 * size.grid[0] * size.grid[1], "context": NULL + size.text + size.image},
        "loss_relative_difference": abs(losses[0] / losses[1] - 1),
        "gradient_relative_difference": max(gradients.values()),
        "parameter_relative_difference": max(parameters.values()),
        "step": summary(seconds, "mllmsubj", "diffusers_peft"),
        "gflop": round(ours.flops / 1e9, 1),
        "gflop_per_second": round(rate, 1),
        "matmul_gflop_per_second": round(peak, 1),
        "share_of_matmul": round(float(rate / peak), 3),
    }


def _differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns |ours − theirs| / |theirs| of each tensor, with Euclidean norms."""
    return {name: float(np.linalg.norm(ours[name] - array) / np.linalg.norm(array)) for name, array in theirs.items()}


class Trainer:
    """Our training step with its state, on random features."""

    def __init__(self, experiment: Experiment, size: BenchSize) -> None:
        """Initializes random parameters and features of `size`."""
        train, compute = experiment.train, replace(experiment.compute.resolve(), remat=False)
        self.size, self.model = size, SubjectModel(size.model, compute)
        self.params = {name: abstract_params(getattr(self.model.stacked, name)) for name in ("dla", "transformer")}
        self.params = random_params(self.params)
        train = replace(train, batch_size=size.rows, grad_accum_steps=1)
        experiment = replace(experiment, train=train)
        null_ids, null_text = (5,) * (HEAD + NULL), (HEAD, HEAD + NULL)
        stage = make_stages(experiment, self.model, self.params, null_ids, null_text)[1]
        self.encoder, self.step = stage.encoder, stage.step
        rates = set(self.step.rates)
        trained, frozen = split(self.params, rates)
        self.state = new_state(jax.tree.map(jnp.copy, trained), rates, self.step.optimizer, ema=train.ema_decay > 0)
        self.frozen = frozen if compute.scan_layers else unstack(frozen)
        self.encoded = jax.tree.map(lambda x: x[None], random_encoded(size))
        self.active_tokens = self.step.active_tokens
        self.flops = train_flops(size.model, random_encoded(size).features, size.grid, self.active_tokens)
        self._update = jax.jit(self.step.update, donate_argnames="state")

    def update(self) -> float:
        """Applies one update; returns the mean loss before it."""
        self.state, metrics = self._update(self.state, self.frozen["transformer"], self.encoded)
        return float(jax.block_until_ready(metrics["loss_sum"]) / self.size.rows)


def _rows(ours: Trainer) -> Any:
    """Returns the inputs and random numbers of our first update, as the peer's inputs."""
    import torch

    from mllmsubj.bench.train_peer import PeerBatch

    encoded, step, grid = random_encoded(ours.size), ours.step, ours.size.grid
    features, random_inputs = encoded.features, jax.jit(step.draw)(encoded, jnp.int32(0))

    def masks(params: Params) -> jax.Array:
        condition = modes.mask_condition(
            step.model.aggregate(params, features, jnp.ones(len(random_inputs.t))), random_inputs.mode
        )
        latents = jnp.ones(encoded.target_mean.shape[:2], bool)
        seen = (condition.null_mask, condition.text_mask, condition.image_mask, latents, condition.reference_mask)
        return jnp.concatenate([mask for mask in seen if mask is not None], axis=1)

    layers = ours.params if step.model.compute.scan_layers else unstack(ours.params)
    arrays = {
        **{name: np.moveaxis(np.asarray(getattr(features, name)), 0, 2) for name in ("text", "image", "null")},
        **{name: getattr(features, name) for name in ("pooled", "references")},
        **{name: getattr(encoded, name) for name in ("target_mean", "target_std")},
        **{name: getattr(random_inputs, name) for name in ("posterior", "noise", "t")},
        "mask": jax.jit(masks)(layers),
        "image_ids": np.concatenate([image_ids(*grid), reference_ids(grid, [grid])]),
    }
    return PeerBatch(**{name: torch.tensor(np.array(array)) for name, array in arrays.items()})


def _full_step(experiment: Experiment, size: BenchSize, repeats: int) -> dict[str, Any]:
    """Measures `encode`, `update` and both, as training runs them."""
    ours, batch = Trainer(experiment, size), random_batch(experiment, size)
    encoders = random_params({name: abstract_params(getattr(ours.model.stacked, name)) for name in FROZEN_ENCODERS})
    encoders = encoders if ours.model.compute.scan_layers else unstack(encoders)
    encode = jax.jit(ours.encoder.encode)

    def both() -> None:
        ours.encoded = encode(encoders, batch)
        ours.update()

    contestants: dict[str, Callable[[], object]] = {
        "encode": lambda: jax.block_until_ready(encode(encoders, batch)),
        "update": ours.update,
        "step": both,
    }
    median = {name: float(np.median(values)) for name, values in alternate(contestants, repeats).items()}
    inputs = jax.eval_shape(ours.encoder.inputs, batch)
    work = {"encode": encode_flops(size.model, inputs, batch.target.shape[1:3]), "update": ours.flops}
    work["step"] = work["encode"] + work["update"]
    return {
        "median_seconds": {name: round(value, 4) for name, value in median.items()},
        "gflop": {name: round(value / 1e9, 1) for name, value in work.items()},
        "gflop_per_second": {name: round(work[name] / median[name] / 1e9, 1) for name in work},
        "examples_per_second": round(size.rows / median["step"], 2),
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
