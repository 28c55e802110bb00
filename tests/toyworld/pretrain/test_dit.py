"""Pretraining of the tiny transformer: captions, losses and evaluation."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.toyworld import Picture, Split
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain.captions import FIRSTS, OMITTED, encode_caption, token_weights
from mllmsubj.toyworld.world.attributes import ATTRIBUTES
from mllmsubj.toyworld.world.identity import Shape
from mllmsubj.toyworld.world.scene import SCENE_ATTRIBUTES
from mllmsubj.tree import flatten
from mllmsubj.typing import ActiveTokens
from tests.toyworld.pretrain.parts import SIZE, config, make, parameters, read


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """The transformer's component, with a random VAE in its folder."""
    folder = tmp_path_factory.mktemp("dit")
    vae = make("vae", folder)
    components.write(folder, "vae", jax.jit(vae.init)(jax.random.key(0)), {})
    return make("dit", folder, eval_sampling_steps=2)


def test_caption_kept_attributes(dit):
    """Attributes that are not kept have the token UNSAID."""
    picture = PictureSource(Split.TRAIN, 5, SIZE)[1]
    everything, _ = encode_caption(dit.encoder, picture, set(ATTRIBUTES))
    assert ((everything >= FIRSTS[:-1]) & (everything < FIRSTS[1:])).all()
    some, ids = encode_caption(dit.encoder, picture, {"shape", "background"})
    assert [name for name, row in zip(ATTRIBUTES, some, strict=True) if row != OMITTED] == ["shape", "background"]
    nothing, empty = encode_caption(dit.encoder, picture, set())
    assert (nothing == OMITTED).all()
    assert (ids != empty).any()


def test_caption_scene_dropout(dit):
    """Captions keep any number of scene attributes; the mean share of dropped ones is `drop_scene`."""
    reader, rng = dit.reader(Experiment.from_config(config("dit")).data), np.random.default_rng(0)
    component = replace(dit.config, drop_all=0.0, drop_scene=0.4)
    counts = [
        len(replace(reader, component=component).kept(rng, with_reference_view=False) & set(SCENE_ATTRIBUTES))
        for _ in range(2000)
    ]
    assert np.mean(counts) == pytest.approx(0.6 * len(SCENE_ATTRIBUTES), rel=0.03)
    shares = np.bincount(counts, minlength=len(SCENE_ATTRIBUTES) + 1) / len(counts)
    assert min(shares[1], shares[2], shares[-1]) > 0.04  # independent draws give 0.8, 4.1 and 1.7 %


def test_dit_loss_captions(dit):
    """The loss depends on the batch's caption tokens and on no other rows of the embedding table."""
    params, frozen, batch = parameters(dit), dit.frozen(), read(dit, 8)
    lose = jax.jit(lambda params, batch: dit.losses(params, frozen, batch, jax.random.key(1))[0])
    before = lose(params, batch)
    other = replace(batch, captions=np.where(batch.captions == OMITTED, batch.captions, FIRSTS[:-1]).astype(np.int32))
    assert float(jnp.abs(lose(params, other) - before).max()) > 1e-6
    table = params["captions"]["token_embedding"]["embedding"]
    unread = np.setdiff1d(np.arange(len(table)), batch.captions)
    changed = params | {"captions": {"token_embedding": {"embedding": table.at[unread].add(1.0)}}}
    np.testing.assert_allclose(lose(changed, batch), before, atol=1e-6)
    assert {path.partition("/")[0] for path in flatten(params)} == {"transformer", "clip", "captions"}


def test_dit_evaluate(dit):
    """Evaluation reports metrics and images with and without reference views."""
    values = list(dit.evaluate(parameters(dit), dit.frozen()))
    numbers = {name: value for name, value in values if isinstance(value, float)}
    assert set(numbers) <= set(dit.meanings)
    drawings, views = (value for _, value in values if isinstance(value, np.ndarray))
    assert (drawings.dtype, drawings.shape) == (np.uint8, (3, SIZE, 2 * SIZE, 3))
    assert (views.dtype, views.shape) == (np.uint8, (3, SIZE, 3 * SIZE, 3))


@pytest.mark.parametrize(("guidance", "heard"), [(0.0, False), (1.0, True)])
def test_dit_guidance(dit, guidance, heard):
    """Guidance starts at the unconditional velocity: at scale 0, captions do not affect the images."""
    component = replace(dit, config=replace(dit.config, eval_guidance=guidance))
    params, frozen, batch = parameters(component), component.frozen(), read(component, 4)
    other = replace(batch, captions=np.broadcast_to(FIRSTS[:-1], batch.captions.shape))
    # Noise and times are the same; only the captions differ.
    active_tokens = ActiveTokens(text=True)
    generate = jax.jit(
        lambda batch: component.generate(
            params, frozen, component.condition(params, batch), jax.random.key(0), active_tokens
        )
    )
    assert np.any(generate(batch) != generate(other)) == heard


def test_dit_reference_view(dit):
    """Every second row is conditioned on another view of its subject."""
    params, frozen, batch = parameters(dit), dit.frozen(), read(dit, 8)
    source = dit.source(PictureSource(Split.TRAIN, 8, SIZE), threads=2)
    assert len(source.index().width) == dit.config.pictures // 2
    for row in range(8):
        first, second = source.pictures[2 * row], source.pictures[2 * row + 1]
        assert first.identity == second.identity
        assert first.scene != second.scene
        np.testing.assert_array_equal(batch.latent_stats[row], source.latent_stats[2 * row])
        np.testing.assert_array_equal(batch.reference_view[row], source.latent_stats[2 * row + 1])
    lose = jax.jit(lambda batch: dit.losses(params, frozen, batch, jax.random.key(1))[0])
    changed = np.abs(lose(replace(batch, reference_view=batch.reference_view[::-1])) - lose(batch)) > 1e-7
    np.testing.assert_array_equal(changed, np.arange(8) % 2 == 0)


def test_token_weights(dit):
    """Tokens around the subject have a higher weight, and scaling all weights does not change the loss."""
    picture = PictureSource(Split.TRAIN, 5, SIZE)[1]
    grid = (8, 8)
    weights = token_weights(picture, grid, 4.0).reshape(grid)
    other = picture.identity.replace(shape=Shape.HOUSE if picture.identity.shape is not Shape.HOUSE else Shape.FISH)
    differ = np.abs(picture.render(64).astype(int) - Picture(other, picture.scene).render(64)).max(axis=2) > 8
    tokens = differ.reshape(8, 8, 8, 8).any(axis=(1, 3))
    assert (weights[tokens] == 4).all()
    assert 0.2 < (weights == 4).mean() < 0.8
    params, frozen, batch = parameters(dit), dit.frozen(), read(dit, 2)
    lose = jax.jit(lambda batch: dit.losses(params, frozen, batch, jax.random.key(1))[0])
    np.testing.assert_allclose(lose(replace(batch, weights=2 * batch.weights)), lose(batch), rtol=1e-5)


def test_dit_latents_cached(dit):
    """Latents are computed by the frozen VAE and cached in one file per VAE config and image source."""
    pictures = PictureSource(Split.TRAIN, 50, SIZE)
    source = dit.source(pictures, threads=2)
    pixels = np.stack([source.pictures[2 * i].render(SIZE) for i in range(8)])
    mean, std = dit.model.encode_image(dit.frozen(), pixels.astype(np.float32) / 127.5 - 1.0)
    for number in range(8):
        picture, latent_stats, reference_view = source[number]
        assert picture == source.pictures[2 * number]
        np.testing.assert_array_equal(reference_view, source.latent_stats[2 * number + 1])
        np.testing.assert_allclose(latent_stats[0], mean[number], atol=4e-3)
        np.testing.assert_allclose(latent_stats[1], std[number], rtol=2e-3)
    (kept,) = (dit.folder / "dit").iterdir()
    before = kept.stat()
    assert dit.source(pictures, threads=2).latent_stats.shape == source.latent_stats.shape
    assert kept.stat() == before
    assert len(repr(source)) < 200  # stored in every checkpoint
    vae = replace(dit.model.config.vae, scaling_factor=2 * dit.model.config.vae.scaling_factor)
    scaled = replace(dit, model=replace(dit.model, config=replace(dit.model.config, vae=vae)))
    again = scaled.source(pictures, threads=2)
    np.testing.assert_allclose(again[0][1][0], 2 * source[0][1][0], rtol=4e-3, atol=4e-3)
    other = dit.source(PictureSource(Split.TRAIN, 50, SIZE, seed=1), threads=2)
    assert not np.array_equal(other[0][1], source[0][1])
    assert len({repr(each) for each in (source, again, other)}) == 3
    assert len(list((dit.folder / "dit").iterdir())) == 3
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"cannot keep latents in {kept}: .* delete the file"):
        dit.source(pictures, threads=2)
    kept.unlink()


def test_dit_missing_vae(tmp_path, monkeypatch):
    component = make("dit", tmp_path)
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    with pytest.raises(UserError, match="component dit builds on component vae, which is not in"):
        component.frozen()
