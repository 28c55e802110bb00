"""Pretraining of the DLA: distillation from captions, on prompts with references and on texts alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Split, example
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.captions import FIRSTS, OMITTED
from mllmsubj.toyworld.pretrain.distillation import TEXT_ONLY_PERIOD, split_rows
from mllmsubj.toyworld.pretrain.dla import ACTIVE_TOKENS
from mllmsubj.toyworld.prompts.prompt import random_caption
from mllmsubj.toyworld.world.attributes import ATTRIBUTES, IDENTITY_ATTRIBUTES, numbers
from mllmsubj.toyworld.world.scene import POSE_ATTRIBUTES
from tests.toyworld.pretrain.parts import SIZE, make, parameters, read


@pytest.fixture(scope="module")
def dla(tmp_path_factory):
    """The DLA's component, with the random components that it builds on in its folder."""
    folder = tmp_path_factory.mktemp("dla")
    for i, name in enumerate(("vae", "mllm", "dit")):
        components.write(folder, name, jax.jit(make(name, folder).init)(jax.random.key(i)), {})
    return make("dla", folder)


@pytest.mark.slow
def test_dla_overfit(dla):
    """The loss falls when the same batch is repeated."""
    params, frozen, batch = parameters(dla), dla.frozen(), read(dla, 8)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        loss, gradients = jax.value_and_grad(lambda p: dla.losses(p, frozen, batch, key)[0].mean())(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, loss = step(params, state, jax.random.key(1))
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_dla_text_rows(dla):
    """A text has at least one token for each attribute of its caption, and is empty if there are none."""
    batch, alone = read(dla, 8), slice(None, None, TEXT_ONLY_PERIOD)
    start = dla.dit.encoder.layout(0, dla.config.tokens)[0][0]
    length = batch.attention_mask[alone, start:].sum(axis=1)
    empty = dla.dit.encoder("", 0).attention_mask.sum() - start
    captions = (batch.captions[alone] != OMITTED).sum(axis=1)
    assert ((length == empty) == (captions == 0)).all()
    assert (length - empty >= captions).all()  # at least one token per attribute


def test_dla_prompt_rows(dla):
    """A prompt's distillation data are the target's identity, its pose and the scene attributes asked for."""
    batch, source = read(dla, 8), dla.source(PictureSource(Split.TRAIN, 8, SIZE), threads=1)
    for row in set(range(8)) - {0, TEXT_ONLY_PERIOD}:
        example, latent_stats = source[row]
        captions = {name for name, value in zip(ATTRIBUTES, batch.captions[row], strict=True) if value != OMITTED}
        assert captions == {*IDENTITY_ATTRIBUTES, *POSE_ATTRIBUTES} | {name for name, _ in example.prompt.asks}
        truth = FIRSTS[:-1] + numbers(example.target.identity, example.target.scene)
        assert all(batch.captions[row] == np.where(batch.captions[row] == OMITTED, OMITTED, truth))
        (start, stop), _ = dla.dit.encoder.layout(1, dla.data.prompt_tokens)
        ids = dla.dit.encoder(example.prompt.text, 1, stop - start)
        np.testing.assert_array_equal(batch.input_ids[row, :stop], ids.input_ids[0])
        np.testing.assert_array_equal(batch.attention_mask[row, :stop], ids.attention_mask[0])
        np.testing.assert_array_equal(batch.tiles[row], example.reference.render(batch.tiles.shape[1]))
        np.testing.assert_array_equal(batch.latent_stats[row], latent_stats)


def test_dla_loss_references(dla):
    """References affect the losses of prompts and not those of texts."""
    params, frozen, batch = parameters(dla), dla.frozen(), read(dla, 8)
    lose = jax.jit(lambda batch: dla.losses(params, frozen, batch, jax.random.key(1)))
    losses, metrics = lose(batch)
    others, _ = lose(replace(batch, tiles=batch.tiles[::-1]))
    alone, prompts = split_rows(8)
    np.testing.assert_array_equal(losses[alone], others[alone])
    assert all(losses[prompts] != others[prompts])
    expected = [[losses[alone].sum(), losses[prompts].sum()], [2, 6]]
    np.testing.assert_allclose(metrics["by_kind"], expected, rtol=1e-6)


@pytest.mark.parametrize(("guidance", "seen"), [(0.0, False), (1.0, True)])
def test_dla_guidance(dla, guidance, seen):
    """Guidance starts at a velocity without references: at scale 0, references do not affect the images."""
    dit = replace(dla.dit, config=replace(dla.dit.config, eval_guidance=guidance, eval_sampling_steps=2))
    component, params, frozen = replace(dla, dit=dit), parameters(dla), dla.frozen()
    batch = jax.tree.map(lambda x: x[1:4], read(dla, 4))
    tell = jax.jit(lambda batch: component.condition(params, frozen, batch, references=1))
    generate = jax.jit(lambda told: dit.generate(frozen, frozen, told, jax.random.key(0), ACTIVE_TOKENS[1]))
    others = replace(tell(batch), image=jnp.flip(tell(batch).image, axis=0))
    assert np.any(generate(tell(batch)) != generate(others)) == seen


def test_write_caption_only():
    """Attributes that a caption leaves out are not in its text."""
    rng, picture = np.random.default_rng(0), example(Split.TRAIN, 3).target
    write = lambda only: random_caption(rng, picture.identity, picture.scene, only, held_out=False)  # noqa: E731
    assert write(set()) == ""
    assert picture.identity.describe() in write(set(ATTRIBUTES))
    assert str(picture.identity.shape) in write({"shape", "background"})
    assert str(picture.identity.shape) not in write({"background"})


def test_dla_loss_padding(dla):
    """Padding tokens do not affect the loss."""
    params, frozen, batch = parameters(dla), dla.frozen(), read(dla, 8)
    lose = jax.jit(lambda batch: dla.losses(params, frozen, batch, jax.random.key(1))[0])
    filled = np.where(batch.attention_mask, batch.input_ids, 5)
    np.testing.assert_allclose(lose(replace(batch, input_ids=filled)), lose(batch), atol=1e-6)


def test_dla_evaluate(dla):
    """Evaluation reports losses of velocities, and images."""
    values = list(dla.evaluate(parameters(dla), dla.frozen()))
    captions = {name: value for name, value in values if isinstance(value, float)}
    assert set(captions) == set(dla.meanings)
    assert min(captions[f"dla/{name}{kind}"] for name in ("loss", "silence") for kind in ("", "_seen")) > 0
    widths = [value.shape[2] for _, value in values if isinstance(value, np.ndarray)]
    assert widths == [2 * SIZE, 3 * SIZE]


def test_dla_text_too_long(dla):
    """The error names the config key to raise."""
    with pytest.raises(UserError, match=r"config key pretrain\.dla\.tokens is 6, too few for '.*raise it"):
        read(make("dla", dla.dit.folder, tokens=6), 8)


def test_dla_missing_component(tmp_path, monkeypatch):
    component = make("dla", tmp_path)
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    with pytest.raises(
        UserError,
        match=r"component dla builds on component mllm, which is not in .*; pretrain that first: --component=mllm",
    ):
        component.frozen()
