"""Cached features: outputs of the frozen encoders, row by row, which `cache` stores and `TrainStep.encode` reads.

A `CachedFeatures` is a dict of arrays with an axis of rows in front, but for `null`, which is the same for all rows:

    latents   target_mean, target_std, references   [b, n, c], of the VAE
    states    text, image [b, l, s, d], pooled [b, p], null [l, 1, z, d], of the MLLM and CLIP
"""

from dataclasses import replace
from typing import TYPE_CHECKING

import jax.numpy as jnp

from mllmsubj.models.subject import Features, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import token_grid
from mllmsubj.typing import Array, Params

if TYPE_CHECKING:
    from mllmsubj.train.step import Encoded

CachedFeatures = dict[str, Array]

LATENTS = ("target_mean", "target_std", "references")
STATES = ("text", "image", "pooled")
NULL = "null"


def known_of(encoded: "Encoded", states: bool) -> CachedFeatures:
    """The latents, and perhaps the states, of a whole batch, out of the parts that it was encoded in."""

    def rows(parts: Array) -> Array:
        count, size = parts.shape[:2]  # no -1 below, since the first stage's references are empty
        return jnp.swapaxes(parts, 0, 1).reshape(count * size, *parts.shape[2:])  # undoes `TrainStep._parts`

    features = encoded.features
    latents = (encoded.target_mean, encoded.target_std, features.references)
    known = dict(zip(LATENTS, map(rows, latents), strict=True))
    if states:
        by_row = (jnp.swapaxes(features.text, 1, 2), jnp.swapaxes(features.image, 1, 2), features.pooled)
        known |= dict(zip(STATES, map(rows, by_row), strict=True)) | {NULL: features.null[0]}
    return known


def features_from_cache(
    model: SubjectModel, encoders: Params, inputs: SubjectInputs, known: CachedFeatures
) -> Features:
    """`model.encode(encoders, inputs)` from cached features; only encoders whose outputs are not cached run."""
    sizes = tuple(token_grid(*picture.shape[1:3]) for picture in inputs.references)
    if NULL not in known:
        features = model.encode(encoders, replace(inputs, references=()))
        return replace(features, references=known["references"], reference_sizes=sizes)
    return Features(
        text=jnp.swapaxes(known["text"], 0, 1),
        text_mask=inputs.attention_mask[:, slice(*inputs.layout.text)],
        image=jnp.swapaxes(known["image"], 0, 1),
        null=known[NULL],
        pooled=known["pooled"],
        references=known["references"],
        reference_mask=inputs.reference_mask,
        reference_sizes=sizes,
    )
