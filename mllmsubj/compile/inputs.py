"""Abstract inputs of programs, besides parameters: the config sets all lengths; no tokenizer or image is read."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Batch
from mllmsubj.models.subject import Layout, SubjectInputs
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.parallel.sharding import activation_spec

HEAD, TAIL = 14, 5
"""Tokens of the template before and after a prompt, with Qwen2.5's tokenizer."""
NULL_IDS, NULL_TEXT = (0,) * (HEAD + TAIL), (HEAD, HEAD + TAIL)
"""Token ids of the empty prompt, and the range of its text tokens."""


def train_batch(experiment: Experiment, mesh: Mesh) -> Batch:
    """Returns a batch of the config's first size and most references; rows are sharded over `data` x `fsdp`."""
    data, model, b = experiment.data, experiment.model, experiment.train.batch_size
    r, (height, width) = data.max_references, data.sizes[0]
    tile, side = model.mllm.vision.image_size, experiment.reference.square_side(r > 1)
    text, images = layout(experiment, r)

    def rows(dtype: object, *shape: int) -> jax.ShapeDtypeStruct:
        spec = activation_spec((b, *shape), "batch", *["seq"] * len(shape))
        return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=NamedSharding(mesh, spec))

    return Batch(
        input_ids=rows(jnp.int32, text[1]),
        attention_mask=rows(jnp.bool_, text[1]),
        clip_ids=rows(jnp.int32, experiment.prompt.clip_tokens),
        tiles=rows(jnp.uint8, r, tile, tile, 3),
        references=rows(jnp.uint8, r, side, side, 3),
        reference_mask=rows(jnp.bool_, r * (side // TOKEN_PIXELS) ** 2),
        target=rows(jnp.uint8, height, width, 3),
        example=rows(jnp.int32),
        skipped=rows(jnp.int32),
        text=text,
        images=images,
    )


def request(experiment: Experiment, mesh: Mesh) -> SubjectInputs:
    """Returns a request with one square reference and a prompt as long as in training, replicated on all devices."""
    model, side = experiment.model, experiment.reference.square_side(False)
    text, images = layout(experiment, 1)

    def whole(dtype: object, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    return SubjectInputs(
        input_ids=whole(jnp.int32, 1, text[1]),
        attention_mask=whole(jnp.bool_, 1, text[1]),
        null_ids=whole(jnp.int32, 1, len(NULL_IDS)),
        clip_ids=whole(jnp.int32, 1, experiment.prompt.clip_tokens),
        pixel_values=whole(jnp.float32, 1, *[model.mllm.vision.image_size] * 2, 3),
        references=(whole(jnp.float32, 1, side, side, 3),),
        layout=Layout(text, images),
        null_text=NULL_TEXT,
    )


def layout(experiment: Experiment, references: int) -> tuple[tuple[int, int], tuple[tuple[int, int], ...]]:
    """Returns the ranges of text tokens and of each reference's visual tokens in the MLLM's sequence.

    Each reference is enclosed by two marker tokens; a newline separates it from the next one.
    """
    tokens, start = experiment.model.mllm.tokens_per_tile, HEAD
    images = []
    for _ in range(references):
        images.append((start + 1, start + 1 + tokens))
        start += tokens + 3
    start -= bool(references)  # no newline after the last reference
    return (start, start + experiment.data.prompt_tokens), tuple(images)
