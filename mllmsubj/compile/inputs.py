"""What programs get besides parameters, as shapes: lengths are set by the config, no tokenizer or picture is read."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Batch
from mllmsubj.models.subject import Layout, SubjectInputs
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.parallel.sharding import activation_spec

HEAD, TAIL = 14, 5
"""Tokens of the template before and after a prompt, as Qwen2.5's tokenizer cuts it."""
NULL_IDS, NULL_TEXT = (0,) * (HEAD + TAIL), (HEAD, HEAD + TAIL)
"""The empty prompt, and where its text lies."""


def train_batch(experiment: Experiment, mesh: Mesh) -> Batch:
    """Of the first of the config's sizes with the most references; rows lie on `data` x `fsdp`."""
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
    """One square reference and a prompt as long as training's, on every device."""
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
    """Where text and visual tokens lie in the MLLM's sequence: each reference between two marks, a newline after it."""
    tokens, start = experiment.model.mllm.tokens_per_tile, HEAD
    images = []
    for _ in range(references):
        images.append((start + 1, start + 1 + tokens))
        start += tokens + 3
    start -= bool(references)  # none after the last
    return (start, start + experiment.data.prompt_tokens), tuple(images)
