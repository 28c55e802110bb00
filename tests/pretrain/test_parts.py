"""Parts of the tiny model, small: what they read, lose and say; one of them made by the real loop."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj import checkpoint, shipped
from mllmsubj.data.plan import Bucket
from mllmsubj.data.toyworld import Split, caption
from mllmsubj.data.toyworld.attributes import ATTRIBUTES
from mllmsubj.data.toyworld.pictures import PictureSource
from mllmsubj.data.toyworld.questions import QUESTIONS
from mllmsubj.errors import UserError
from mllmsubj.experiment import Experiment
from mllmsubj.models.layers import unstack
from mllmsubj.pretrain.dit import FIRSTS, UNSAID
from mllmsubj.pretrain.parts import make_part
from mllmsubj.pretrain.run import PartRun, part_experiment, pretrain
from mllmsubj.sharding import flatten, make_mesh, unflatten
from tests.small import small_config

SIZE = 32
BUCKET = Bucket(SIZE, SIZE, 1)


def config(part, **changes):
    config = small_config()
    with config.unlocked():
        config.sampling.update(height=SIZE, width=SIZE)
        config.data.update(examples=50, threads=2)
        config.log.update(tensorboard=False, every_steps=2)
        config.pretrain[part].update(steps=4, batch_size=8, warmup_steps=1, cooldown_steps=2, judged=3)
        config.pretrain[part].update(judge_every_steps=4, **changes)
        config.pretrain.dit.pictures = 8
    return config


def make(part, folder, **changes):
    return make_part(part, Experiment.from_config(config(part, **changes)), folder)


def read(part, rows):
    """A batch of the first training pictures."""
    reader = part.reader(Experiment.from_config(config(part.name)).data)
    source = part.source(PictureSource(Split.TRAIN, rows, SIZE), threads=2)
    batch = reader.empty(BUCKET, rows)
    for row in range(rows):
        reader.read(source[row], BUCKET, np.random.default_rng(row), batch, row)
    return batch


def parameters(part):
    params = jax.jit(part.init)(jax.random.key(0))
    assert not any("/0/" in path for path, _ in flatten(params))  # stacked
    return params if part.model.compute.scan_layers else unstack(params)


def binned(part, metrics):
    """Sums over counts of the part's one metric with bins, those bins that something fell into."""
    ((name, bins),) = part.bins.items()
    sums, counts = np.asarray(metrics[name])
    return {bin: sums[i] / counts[i] for i, bin in enumerate(bins.names) if counts[i]}


@pytest.fixture(scope="module")
def network():
    """The smallest probe."""
    look = dict(stem=4, widths=(8, 8), blocks=(1, 1))
    return dict(network=dict(whole=look, close=look, cut=16, span=1.4, norm_num_groups=2, maps=1))


def test_a_part_is_made_and_written_down(tmp_path, network):
    assert pretrain(config("probe", **network), "probe", tmp_path) == tmp_path / "probe.safetensors"
    logged = [json.loads(line) for line in (tmp_path / "probe" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [2, 4]

    part, found = make("probe", tmp_path, **network), shipped.read(tmp_path, ("probe",))
    again, judged = dict(part.judge(unflatten(found), {})), logged[-1]
    assert again["probe/mean"] == pytest.approx(judged["probe/mean"], abs=0.1)  # rounded to 16 bits
    about = shipped.provenance(tmp_path, "probe")
    assert about["metrics"]["probe/mean"] == judged["probe/mean"]
    assert (about["steps"], about["seed"], about["pretrain"]["batch_size"]) == (4, 0, 8)
    assert about["started_from"] is None
    assert about["seconds"] > 0

    pretrain(config("probe", **network), "probe", tmp_path)  # ended before: nothing is left to do, nothing is lost
    assert shipped.provenance(tmp_path, "probe")["metrics"] == pytest.approx(about["metrics"], abs=0.1)


def test_a_part_goes_on_from_one_that_is_there(tmp_path, network):
    def start(part):
        whole = Experiment.from_config(config("probe", **network))
        run = PartRun(part_experiment(whole, part), make_mesh(), part)
        return run, dict(flatten(run.start()))

    _, random = start(make("probe", tmp_path, **network))
    shipped.write(tmp_path, "probe", unflatten(random), {"steps": 4})
    run, found = start(make("probe", tmp_path, start_from=str(tmp_path), **network))
    assert all((leaf == np.float32(np.float16(random[path]))).all() for path, leaf in found.items())
    about = run.provenance(config("probe"), {}, 1.0)
    assert about["started_from"] == {"steps": 4}
    (tmp_path / "probe.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*probe\.json, which says where part probe comes from"):
        run.start()
    shipped.write(tmp_path, "probe", unflatten(random), {})
    wrong = network | dict(network=network["network"] | dict(maps=2))
    with pytest.raises(UserError, match=r"pretrain\.probe\.start_from: .*probe\.safetensors does not fit the config"):
        start(make("probe", tmp_path, start_from=str(tmp_path), **wrong))


def test_the_vae_loses_what_its_terms_say(tmp_path):
    part = make("vae", tmp_path, window=16)
    params, batch = parameters(part), read(part, 4)
    assert batch.pixels.shape == (4, 16, 16, 3)
    losses, metrics = jax.jit(part.losses)(params, {}, batch, jax.random.key(1))
    terms = binned(part, metrics)
    assert set(terms) == {"pixels", "gradient", "kl"}
    assert float(jnp.mean(losses)) == pytest.approx(sum(terms.values()), rel=1e-5)
    numbers = dict(part.judge(params, {}))
    assert set(part.meanings) == set(numbers) - {"vae/reconstructions"}
    truth = np.concatenate([PictureSource(Split.TEST, 3, SIZE)[i].render(SIZE)[None] for i in range(3)])
    np.testing.assert_array_equal(numbers["vae/reconstructions"][:, :, :SIZE], truth)
    made = numbers["vae/reconstructions"][:, :, SIZE:]
    squares = np.mean((truth / 255.0 - made / 255.0) ** 2, axis=(1, 2, 3))
    assert numbers["vae/psnr"] == pytest.approx(float(np.mean(-10 * np.log10(squares))), abs=0.05)


def test_an_unknown_part_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown part 'vea' \(did you mean 'vae'\?\)"):
        pretrain(config("vae"), "vea", tmp_path)


def test_a_config_without_pretraining_says_so(tmp_path):
    other = config("vae")
    with other.unlocked():
        other.pretrain = None
    with pytest.raises(UserError, match=r"no section pretrain; use configs/tiny\.py"):
        pretrain(other, "vae", tmp_path)


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    return make("mllm", tmp_path_factory.mktemp("mllm"))


def test_only_answers_count_and_every_one_ends(mllm):
    picture = PictureSource(Split.TRAIN, 5, SIZE)[3]
    said = caption(picture.identity, picture.scene, {"background"})
    ids, answers, mask = mllm.talk([("one", said), ("two", "cat")])
    end = mllm.encoder.ids("<|im_end|>")
    assert ids[answers].tolist() == mllm.encoder.ids(said) + end + mllm.encoder.ids("cat") + end
    assert not answers[~mask].any()
    text = mllm.encoder.ids("\ntwo") + mllm.encoder.ids("<|im_end|>\n<|im_start|>assistant\ncat<|im_end|>")
    assert ids[mask][-len(text) :].tolist() == text


def test_a_talk_that_is_too_long_is_cut_off(mllm):
    ids, answers, mask = mllm.talk([("one", "cat " * 500)])
    assert mask.all()
    assert len(ids) == len(answers) == mllm.config.tokens


def test_talks_are_of_every_kind_and_each_token_of_an_answer_counts_the_same(mllm):
    batch = read(mllm, 24)
    assert set(batch.task.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(batch.pixels[7], PictureSource(Split.TRAIN, 24, SIZE)[7].render(SIZE))
    assert (batch.answers.sum(axis=1) > 0).all()
    losses, metrics = jax.jit(mllm.losses)(parameters(mllm), {}, batch, jax.random.key(1))
    kinds = binned(mllm, metrics)
    tokens = np.asarray([batch.answers[batch.task == task].sum() for task in range(3)])
    assert float(jnp.mean(losses)) == pytest.approx(np.average(list(kinds.values()), weights=tokens), rel=1e-5)


def test_the_mllm_is_judged_by_every_question(mllm):
    numbers = dict(mllm.judge(parameters(mllm), {}))
    assert set(numbers) == set(mllm.meanings) == {f"mllm/{name}" for name in (*QUESTIONS, "mean", "least")}
    assert numbers["mllm/least"] < 0.9  # random weights


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """The transformer's part, on a VAE that lies in its folder."""
    folder = tmp_path_factory.mktemp("dit")
    vae = make("vae", folder)
    shipped.write(folder, "vae", jax.jit(vae.init)(jax.random.key(0)), {})
    return make("dit", folder, judge_steps=2)


def test_a_caption_says_what_is_kept(dit):
    picture = PictureSource(Split.TRAIN, 5, SIZE)[1]
    everything, _ = dit.says(picture, set(ATTRIBUTES))
    assert ((everything >= FIRSTS[:-1]) & (everything < FIRSTS[1:])).all()
    some, ids = dit.says(picture, {"shape", "background"})
    assert [name for name, row in zip(ATTRIBUTES, some, strict=True) if row != UNSAID] == ["shape", "background"]
    nothing, empty = dit.says(picture, set())
    assert (nothing == UNSAID).all()
    assert (ids != empty).any()


def test_the_transformer_reads_its_captions_and_what_is_not_said_is_not_read(dit):
    params, frozen, batch = parameters(dit), dit.frozen(), read(dit, 8)
    lose = jax.jit(lambda params, batch: dit.losses(params, frozen, batch, jax.random.key(1))[0])
    before = lose(params, batch)
    other = batch.replace(said=np.where(batch.said == UNSAID, batch.said, FIRSTS[:-1]).astype(np.int32))
    assert float(jnp.abs(lose(params, other) - before).max()) > 1e-6
    table = params["captions"]["token_embedding"]["embedding"]
    unread = np.setdiff1d(np.arange(len(table)), batch.said)
    changed = params | {"captions": {"token_embedding": {"embedding": table.at[unread].add(1.0)}}}
    np.testing.assert_allclose(lose(changed, batch), before, atol=1e-6)
    assert {path.partition("/")[0] for path, _ in flatten(params)} == {"transformer", "clip", "captions"}


def test_the_transformer_draws_its_captions(dit):
    values = list(dit.judge(parameters(dit), dit.frozen()))
    numbers = {name: value for name, value in values if isinstance(value, float)}
    assert set(numbers) <= set(dit.meanings)
    (drawings,) = (value for _, value in values if isinstance(value, np.ndarray))
    assert (drawings.dtype, drawings.shape) == (np.uint8, (3, SIZE, 2 * SIZE, 3))


def test_the_latents_that_it_learns_from_are_the_frozen_vaes_and_are_kept(dit):
    pictures = PictureSource(Split.TRAIN, 50, SIZE)
    source = dit.source(pictures, threads=2)
    pixels = np.stack([pictures[i].render(SIZE) for i in range(8)])
    mean, std = dit.model.encode_picture(dit.frozen(), pixels.astype(np.float32) / 127.5 - 1.0)
    for number in range(8):
        picture, moments = source[number]
        assert picture == pictures[number]
        np.testing.assert_allclose(moments[0], mean[number], atol=4e-3)
        np.testing.assert_allclose(moments[1], std[number], rtol=2e-3)
    (kept,) = (dit.folder / "dit").iterdir()
    before = kept.stat()
    assert dit.source(pictures, threads=2).moments.shape == source.moments.shape
    assert kept.stat() == before
    assert len(repr(source)) < 200  # goes into every save
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


@pytest.mark.parametrize("key", ["steps", "batch_size", "judged", "pictures"])
def test_nothing_is_not_enough(key):
    wrong = config("dit")
    wrong.pretrain.dit[key] = 0
    with pytest.raises(UserError, match=rf"config key pretrain\.dit\.{key} is 0; it must be at least 1"):
        Experiment.from_config(wrong)


def test_without_the_vae_there_is_no_transformer(tmp_path, monkeypatch):
    part = make("dit", tmp_path)
    monkeypatch.setattr(checkpoint, "TINY", tmp_path)
    with pytest.raises(UserError, match="part dit builds on part vae, which is not in"):
        part.frozen()
