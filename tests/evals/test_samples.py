from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from mllmsubj.config.train import SamplesEvalConfig
from mllmsubj.data.images import to_pil
from mllmsubj.data.sources import open_source
from mllmsubj.evals.held_out import SEED, held_out
from mllmsubj.evals.samples import Samples
from mllmsubj.inference.generator import Generator
from mllmsubj.inference.request import RequestReader
from tests.evals.small_run import mesh_of, run_on

TWO = SamplesEvalConfig(every_steps=0, count=2, steps=0)


@pytest.fixture(scope="module")
def values(folder):
    """Output on four devices, which generate four images, two of which are shown."""
    with jax.set_mesh(mesh_of(4)):
        run, params = run_on(folder, 4)
        return list(Samples(run, held_out(run.experiment), TWO, seed=5).run(params))


@pytest.fixture(scope="module")
def examples(restored, values):
    """The examples that are shown, as their prompts confirm."""
    data = held_out(restored[0].experiment)
    source, (_, prompts) = open_source(replace(data, examples=10_000), SEED), values[1]
    numbers = restored[0].loader(data, 2, source, SEED).plan.batch(0).examples
    found = [source[int(number)] for number in numbers]
    assert tuple(example.prompt for example in found) == prompts
    return found


def test_samples_row(values, examples):
    """A row contains the reference, the generated image and the target."""
    [(name, images), (texts, _)] = values
    assert name == texts == "samples"
    assert images.shape == (2, 32, 96, 3)
    assert images.dtype == np.uint8
    for row, example in zip(images, examples, strict=True):
        np.testing.assert_array_equal(row[:, :32], example.references[0])
        np.testing.assert_array_equal(row[:, 64:], example.target)


def test_samples_match_inference(restored, folder, values, examples):
    """Generated images are those of inference on one device from the same noise.

    Inference pads the prompt differently and masks no reference.
    """
    run, params = restored
    reader, generator = RequestReader(run.experiment, folder), Generator(run.model, run.experiment.shift)
    settings = replace(run.experiment.sampling, batch_size=2)
    with jax.set_mesh(mesh_of(1)):
        for i, example in enumerate(examples):
            inputs = reader([Image.fromarray(example.references[0])], example.prompt, 1, 0)
            want = np.asarray(to_pil(generator(params, inputs, settings, seed=5, num_images=2)[i]))
            drawn = values[0][1][i, :, 32:64]
            assert np.abs(drawn.astype(int) - want).max() <= 1
            assert drawn.std() > 5  # not a flat color
