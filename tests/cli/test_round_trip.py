"""Import of FLUX weights, two training steps, generation, and export of a LoRA that diffusers loads."""

import jax
import numpy as np
import pytest
from PIL import Image

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.cli import main
from mllmsubj.config.schema import Experiment
from mllmsubj.evals.suite import evaluators
from mllmsubj.inference import pipeline
from mllmsubj.inference.pipeline import Pipeline
from mllmsubj.models.dit import FluxTransformer
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.train import loop
from tests.environment import ROOT
from tests.models.test_dit import inputs
from tests.train.runs import on_one_device


@pytest.fixture(scope="module")
def trained(flux, tmp_path_factory):
    """The workdir of a training of two steps that starts from imported weights."""
    root = tmp_path_factory.mktemp("run")
    sources = (f"--mllm={flux / 'mllm'}", f"--transformer={flux}", f"--vae={flux / 'vae'}")
    config = f"--config={ROOT / 'configs' / 'tiny.py'}"
    main.run(["mllmsubj", "import", *sources, config, f"--workdir={root / 'weights'}", "--dtype=float32"])
    config = checkpoint.read_config(root / "weights")
    config.model.lora.update(rank=4, alpha=8.0)
    config.compute.layers = "scan"
    config.data.update(sizes=((32, 32),), threads=2, prompt_tokens=128)  # its tokens are bytes
    config.reference.long_side = 32
    config.sampling.update(height=32, width=32, steps=2)
    config.train.update(weights=str(root / "weights"), batch_size=8)
    for stage, steps in (("stage1", 0), ("stage2", 2)):
        config.train[stage].update(steps=steps, warmup_steps=0, decay_steps=0)
        config.train[stage].learning_rates = (("dla/.*", 0.05), (".*/lora_[ab]", 0.05))
    config.log.tensorboard = False
    config.evals.loss.every_steps = config.evals.samples.every_steps = 0
    with pytest.MonkeyPatch.context() as patch:
        on_one_device(patch, loop)
        loop.train(config, root / "workdir", evaluators)
    return root / "workdir"


@pytest.mark.parity
def test_round_trip_generate(trained, monkeypatch):
    on_one_device(monkeypatch, pipeline)
    reference = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
    [image] = Pipeline.load(trained).generate(reference, "the thing in the picture, on the moon").images
    assert image.size == (32, 32)


@pytest.mark.parity
def test_round_trip_lora_in_diffusers(trained, flux, tmp_path):
    """FLUX in diffusers with the exported LoRA gives the outputs of the trained transformer."""
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel

    from tests.parity import assert_close

    main.run(["mllmsubj", "export", f"--checkpoint={trained}", f"--output={tmp_path / 'out'}"])
    parts = ("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    transformer = FluxTransformer2DModel.from_pretrained(flux / "transformer")
    pipe = FluxPipeline(transformer=transformer, **dict.fromkeys(parts))

    model = Experiment.from_config(checkpoint.read_config(trained / "model")).model
    params = checkpoint.restore(trained / "model", SubjectModel(model, Compute()).abstract_params(make_mesh()))
    given = inputs()
    tokens = np.random.default_rng(1).standard_normal((*given["hidden_states"].shape[:2], 64))
    given["hidden_states"] = tokens.astype(np.float32)

    def theirs():
        with torch.no_grad():
            return pipe.transformer(**{name: torch.tensor(value) for name, value in given.items()}).sample

    before = theirs().numpy()
    pipe.load_lora_weights(str(tmp_path / "out"))
    apply = jax.jit(FluxTransformer(model.transformer, lora=model.lora).apply)
    want = apply({"params": params["transformer"]}, **given)
    assert_close(theirs(), want)
    assert np.abs(before - want).max() > 0.01 * np.abs(want).max()
