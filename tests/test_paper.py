"""configs/paper.py at full size, without allocated parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.compile.inputs import NULL_TEXT
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.diffusion.schedule import time_grid
from mllmsubj.diffusion.stages import plan_stages
from mllmsubj.inference.generator import Generator
from mllmsubj.models.flops import transformer_flops
from mllmsubj.models.layers import Compute
from mllmsubj.models.lora import is_lora
from mllmsubj.models.subject import Layout, SubjectInputs, SubjectModel
from mllmsubj.ops.patchify import TOKEN_PIXELS
from mllmsubj.ops.splash import LANES
from mllmsubj.parallel.sharding import parameter_specs
from mllmsubj.tree import flatten
from tests.environment import ROOT

COUNTS = {
    "mllm": 7_944_373_760,
    "dla": 727_448_634,
    "vae": 83_819_683,
    "clip": 123_060_480,
    "transformer": 11_901_408_320,
    "lora": 1_195_376_640,
}


@pytest.fixture(scope="module")
def experiment():
    return Experiment.from_config(load_config(str(ROOT / "configs" / "paper.py")))


@pytest.fixture(scope="module")
def model(experiment):
    return SubjectModel(experiment.model, Compute(dtype=jnp.bfloat16, remat=True))


@pytest.fixture(scope="module")
def params(model):
    return model.abstract_params()


def test_parameter_counts(params):
    counts = dict.fromkeys(COUNTS, 0)
    for path, leaf in flatten(params).items():
        counts["lora" if is_lora(path) else path.split("/")[0]] += leaf.size
    assert counts == COUNTS


def test_parameter_specs_replicated_size(params):
    """Replicated parameters have fewer than 20 million values in all; large parameters are sharded."""
    specs = flatten(parameter_specs(params))
    whole = sum(leaf.size for path, leaf in flatten(params).items() if not any(specs[path]))
    assert whole < 20e6


@pytest.mark.parametrize(
    ("pixels", "reference", "tflop"),
    [(1024, 0, 74.4), (1024, 512, 94.9), (1024, 1024, 165.4), (512, 512, 37.6)],
    ids=str,
)
def test_transformer_flops_flux(experiment, pixels, reference, tflop):
    image = (pixels // 16) ** 2
    total = image + (reference // 16) ** 2
    assert transformer_flops(experiment.model.transformer, total, 512, image) / 1e12 == pytest.approx(tflop, abs=0.1)


def inputs_of(model: SubjectModel) -> SubjectInputs:
    """Shapes for one reference of 512² and a prompt of 64 tokens."""
    visual = model.config.mllm.tokens_per_tile
    head, text = 20, 64
    size = model.config.mllm.vision.image_size

    def ids(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    def pixels(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    length = head + visual + 1 + text
    return SubjectInputs(
        input_ids=ids(1, length),
        attention_mask=jax.ShapeDtypeStruct((1, length), jnp.bool_),
        null_ids=ids(1, 30),
        clip_ids=ids(1, 77),
        pixel_values=pixels(1, size, size, 3),
        references=(pixels(1, 512, 512, 3),),
        layout=Layout((length - text, length), ((head, head + visual),)),
        null_text=(20, 30),
    )


def test_train_sequence_length_lanes(experiment):
    """The sequence length in training is a multiple of the TPU's lanes."""
    data, side = experiment.data, experiment.reference.square_side(False)
    (height, width), tokens = data.sizes[0], data.prompt_tokens + experiment.model.mllm.tokens_per_tile
    empty_prompt = NULL_TEXT[1] - NULL_TEXT[0]
    assert (empty_prompt + tokens + (height * width + side**2) // TOKEN_PIXELS**2) % LANES == 0


def test_generator_lower(experiment, model, params):
    """Encoding, the 28-step sampler at 1024² and decoding are lowered, as `generate` calls them."""
    generator, grid = Generator(model, experiment.shift), (64, 64)
    guidance = jax.ShapeDtypeStruct((1,), jnp.float32)
    condition = jax.eval_shape(model.condition, params, inputs_of(model), guidance)
    assert condition.text.shape == (1, 64, 4096)
    assert condition.image.shape == (1, 256, 4096)
    assert condition.reference.shape == (1, 1024, 64)
    generator.condition.lower(params, inputs_of(model), guidance)

    times = time_grid(28, grid[0] * grid[1], experiment.shift)
    noise = jax.ShapeDtypeStruct((1, grid[0] * grid[1], 64), jnp.float32)
    stages = plan_stages(times, 0.95, 0.85)
    lowered = generator.sample.lower(
        params, condition, noise, times.astype(np.float32), (1.0, 1.0), grid=grid, stages=stages, cfg=False
    )
    assert lowered.out_info[0].shape == noise.shape
    assert generator.decode.lower(params, noise, grid).out_info.shape == (1, 1024, 1024, 3)
