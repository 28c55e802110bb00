"""Features: outputs of the frozen encoders for a batch, computed or taken from the cache. Pure functions.

Encoding is a separate program, so that frozen encoders and transformer need not be in a small chip's memory at once,
and so that its outputs can be cached on disk: the update reads the same arrays either way.
"""

from dataclasses import dataclass, replace

import flax.struct
import jax
import jax.numpy as jnp

from mllmsubj.config.data import ReferenceConfig
from mllmsubj.data.batch import Batch
from mllmsubj.data.images import normalize_tiles
from mllmsubj.models.subject import Features, Layout, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.ops.pixels import from_uint8
from mllmsubj.parallel.sharding import constrain
from mllmsubj.typing import Array, Int, Leaf, Params

FROZEN_ENCODERS = ("mllm", "vae", "clip")
"""Subtrees of the frozen parameters that `FeatureEncoder.encode` reads; the update reads the transformer."""

CachedFeatures = dict[str, Array]
"""Features by name, with a leading axis of rows, except `null`, which all rows share:

    latents   target_mean, target_std, references   [b, n, c], of the VAE
    states    text, image [b, l, s, d], pooled [b, p], null [l, 1, z, d], of the MLLM and CLIP
"""
LATENTS = ("target_mean", "target_std", "references")
STATES = ("text", "image", "pooled")
NULL = "null"


@flax.struct.dataclass
class Encoded:
    """Features of a batch. Leaves have a leading axis of microbatches (train.grad_accum_steps)."""

    features: Features
    target_mean: Leaf
    """[b, n, c]: packed latents."""
    target_std: Leaf
    """[b, n, c]: standard deviation of the VAE's posterior."""
    row: Leaf
    """[b] int32: number of the row in the whole batch; with seed and step it determines the row's random numbers."""
    skipped: Leaf
    """[b] int32: number of unreadable examples that were skipped for this row."""
    grid: tuple[int, int] = flax.struct.field(pytree_node=False)
    """Rows and columns of the target's tokens."""


@dataclass(frozen=True)
class FeatureEncoder:
    """The frozen encoders over training batches, for one stage."""

    model: SubjectModel
    reference: ReferenceConfig
    null_ids: tuple[int, ...]
    """The MLLM's ids of the empty prompt."""
    null_text: tuple[int, int]
    """Start and stop of the text in `null_ids`."""
    grad_accum_steps: int
    """Number of microbatches."""
    with_references: bool
    """Whether the VAE encodes references."""

    def encode(self, encoders: Params, batch: Batch, cached: CachedFeatures | None = None) -> Encoded:
        """Computes the features of a batch, one microbatch after the other; `cached` ones are not computed again.

        `encoders`: the subtrees of FROZEN_ENCODERS.
        """
        cached = cached or {}
        shared = {name: x for name, x in cached.items() if name == NULL}
        by_row = {name: self._microbatches(x) for name, x in cached.items() if name != NULL}
        parts = jax.tree.map(self._microbatches, batch)
        rows = self._microbatches(jnp.arange(len(batch.input_ids), dtype=jnp.int32))
        return jax.lax.map(
            lambda part: self._encode(encoders, part[0], part[1], part[2] | shared), (parts, rows, by_row)
        )

    def inputs(self, batch: Batch) -> SubjectInputs:
        """Returns the model's inputs from a batch with uint8 images, the same as in inference."""
        tiles = normalize_tiles(batch.tiles, self.reference)
        count = batch.references.shape[1] if self.with_references else 0
        return SubjectInputs(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            null_ids=jnp.asarray([self.null_ids], jnp.int32),
            clip_ids=batch.clip_ids,
            pixel_values=tiles.reshape(-1, *tiles.shape[2:]),
            references=tuple(from_uint8(batch.references[:, i]) for i in range(count)),
            layout=Layout(batch.text, batch.images),
            null_text=self.null_text,
            reference_mask=batch.reference_mask if self.with_references else None,
        )

    def _encode(self, encoders: Params, batch: Batch, row: Int[Array, " b"], cached: CachedFeatures) -> Encoded:
        inputs = self.inputs(batch)
        known = cached or self._latents(encoders, batch, inputs)
        return Encoded(
            features=_features(self.model, encoders, inputs, known),
            target_mean=known["target_mean"],
            target_std=known["target_std"],
            row=row,
            skipped=batch.skipped,
            grid=token_grid(*batch.target.shape[1:3]),
        )

    def _latents(self, encoders: Params, batch: Batch, inputs: SubjectInputs) -> CachedFeatures:
        """Returns the VAE's outputs for target and references, encoded together."""
        (mean, std), *others = self.model.encode_images(encoders, (from_uint8(batch.target), *inputs.references))
        references = self.model.concatenate_references(others, len(mean))
        return dict(zip(LATENTS, (mean, std, references), strict=True))

    def _microbatches(self, x: Array) -> Array:
        """[b, …] -> [m, b / m, …]: microbatch i has rows i, i + m, …, so that each device keeps its own rows."""
        count = self.grad_accum_steps
        parts = jnp.swapaxes(x.reshape(len(x) // count, count, *x.shape[1:]), 0, 1)
        return constrain(parts, "parts", "batch", *["seq"] * (x.ndim - 1))


def features_by_row(encoded: Encoded, states: bool) -> CachedFeatures:
    """Returns the features of a whole batch to cache: the latents and, with `states`, the MLLM's and CLIP's states."""

    def rows(parts: Array) -> Array:
        count, size = parts.shape[:2]  # no -1 below, since the first stage's references are empty
        return jnp.swapaxes(parts, 0, 1).reshape(count * size, *parts.shape[2:])  # undoes `_microbatches`

    features = encoded.features
    latents = (encoded.target_mean, encoded.target_std, features.references)
    cached = dict(zip(LATENTS, map(rows, latents), strict=True))
    if states:
        by_row = (jnp.swapaxes(features.text, 1, 2), jnp.swapaxes(features.image, 1, 2), features.pooled)
        cached |= dict(zip(STATES, map(rows, by_row), strict=True)) | {NULL: features.null[0]}
    return cached


def _features(model: SubjectModel, encoders: Params, inputs: SubjectInputs, cached: CachedFeatures) -> Features:
    """Computes `model.encode(encoders, inputs)`, running only the encoders whose outputs are not cached."""
    sizes = tuple(token_grid(*image.shape[1:3]) for image in inputs.references)
    if NULL not in cached:
        features = model.encode(encoders, replace(inputs, references=()))
        return replace(features, references=cached["references"], reference_sizes=sizes)
    return Features(
        text=jnp.swapaxes(cached["text"], 0, 1),
        text_mask=inputs.attention_mask[:, slice(*inputs.layout.text)],
        image=jnp.swapaxes(cached["image"], 0, 1),
        null=cached[NULL],
        pooled=cached["pooled"],
        references=cached["references"],
        reference_mask=inputs.reference_mask,
        reference_sizes=sizes,
    )
