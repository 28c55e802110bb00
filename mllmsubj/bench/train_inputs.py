"""Inputs of the training benchmark: model sizes, and random parameters, features and batches of these sizes."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from mllmsubj.config.schema import Experiment
from mllmsubj.data.batch import Batch
from mllmsubj.models.subject import Features, SubjectConfig
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.train.features import Encoded
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params

HEAD, NULL = 46, 13
"""Tokens of the prompt template before the text, and text tokens of the empty prompt."""
ROWS = 8
"""Rows in an update of the tiny model."""


@dataclass(frozen=True)
class BenchSize:
    """Model, number of rows and tokens per row of one update."""

    model: SubjectConfig
    rows: int
    grid: tuple[int, int]
    """Height and width, in tokens, of the target and of its reference."""
    text: int
    """Text tokens."""
    image: int
    """Visual tokens of the MLLM."""


def known_sizes(experiment: Experiment) -> dict[str, BenchSize]:
    """Returns `tiny`, the model of `configs/tiny.py`, and `medium`, with 76 M parameters and 256 tokens per image."""
    model, side = experiment.model, experiment.data.sizes[0][0] // TOKEN_PIXELS
    tiny = BenchSize(model, ROWS, (side, side), experiment.data.prompt_tokens, 16)
    wide = replace(
        model,
        dla=replace(model.dla, input_dim=256, width=256, num_heads=8, num_kv_heads=8, intermediate_size=704),
        transformer=replace(
            model.transformer,
            num_layers=4,
            num_single_layers=8,
            attention_head_dim=64,
            num_attention_heads=8,
            axes_dims_rope=(8, 28, 28),
        ),
    )
    return {"tiny": tiny, "medium": BenchSize(wide, 2, (16, 16), 128, 64)}


def random_params(shapes: Params) -> Params:
    """Returns random parameters, kernels and adapters scaled by 1/√inputs, so that no gradient is zero."""
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        noise, kind = rng.standard_normal(shape, np.float32), path.rpartition("/")[2]
        if kind in ("kernel", "lora_a", "lora_b"):
            inputs = shape[0] if path.startswith("transformer/modulation/") else shape[-2]
            return jnp.asarray(noise * np.float32(inputs**-0.5))
        return jnp.asarray(np.float32(0.1) * noise + np.float32(kind != "bias"))

    return unflatten({path: leaf(path, shape.shape) for path, shape in flatten(shapes).items()})


def random_encoded(size: BenchSize) -> Encoded:
    """Returns random outputs of the frozen encoders for one batch; a quarter of the text is padding."""
    rng, model = np.random.default_rng(1), size.model

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    states, tokens, channels = model.dla.num_states, size.grid[0] * size.grid[1], model.transformer.in_channels
    return Encoded(
        features=Features(
            text=normal(states, size.rows, size.text, model.dla.input_dim),
            text_mask=jnp.tile(jnp.arange(size.text) < size.text * 3 // 4, (size.rows, 1)),
            image=normal(states, size.rows, size.image, model.dla.input_dim),
            null=normal(states, 1, NULL, model.dla.input_dim),
            pooled=normal(size.rows, model.transformer.pooled_projection_dim),
            references=normal(size.rows, tokens, channels),
            reference_mask=jnp.ones((size.rows, tokens), bool),
            reference_sizes=(size.grid,),
        ),
        target_mean=normal(size.rows, tokens, channels),
        target_std=jnp.abs(normal(size.rows, tokens, channels)),
        row=jnp.arange(size.rows, dtype=jnp.int32),
        skipped=jnp.zeros(size.rows, jnp.int32),
        grid=size.grid,
    )


def random_batch(experiment: Experiment, size: BenchSize) -> Batch:
    """Returns random images and token ids, in the order of the prompt template with one reference."""
    rng, mllm = np.random.default_rng(2), experiment.model.mllm
    height, width = (side * TOKEN_PIXELS for side in size.grid)
    tile, length = mllm.vision.image_size, HEAD + size.image + size.text
    ids = rng.integers(0, 250, (size.rows, length), np.int32)
    ids[:, 3 : 3 + size.image] = mllm.image_token_id

    def pixels(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (size.rows, *shape, 3), np.uint8)

    return Batch(
        input_ids=ids,
        attention_mask=np.tile(np.arange(length) < length - size.text // 4, (size.rows, 1)),
        clip_ids=rng.integers(0, 250, (size.rows, experiment.prompt.clip_tokens), np.int32),
        tiles=pixels(1, tile, tile),
        references=pixels(1, height, width),
        reference_mask=np.ones((size.rows, size.grid[0] * size.grid[1]), bool),
        target=pixels(height, width),
        example=np.arange(size.rows, dtype=np.int32),
        skipped=np.zeros(size.rows, np.int32),
        text=(length - size.text, length),
        images=((3, 3 + size.image),),
    )
