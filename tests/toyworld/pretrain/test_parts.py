"""Small components of the tiny model: their batches, losses and metrics, and one pretraining by the real loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mllmsubj.checkpoints import components
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.toyworld import Split, caption
from mllmsubj.toyworld.dataset.images import PictureSource
from mllmsubj.toyworld.pretrain import run as run_module
from mllmsubj.toyworld.pretrain.run import PretrainingTask, component_experiment, pretrain
from mllmsubj.toyworld.pretrain.settings import PretrainConfig
from mllmsubj.toyworld.prompts.questions import QUESTIONS
from mllmsubj.toyworld.world.attributes import ATTRIBUTES
from mllmsubj.tree import flatten, unflatten
from tests.toyworld.pretrain.parts import SIZE, config, make, parameters, read
from tests.train.runs import on_one_device


def binned(component, metrics):
    """Returns the mean of each non-empty bin of the component's only binned metric."""
    ((name, bins),) = component.bins.items()
    sums, counts = np.asarray(metrics[name])
    return {bin: sums[i] / counts[i] for i, bin in enumerate(bins.names) if counts[i]}


@pytest.fixture(scope="module")
def network():
    """Settings of the smallest probe."""
    look = dict(stem=4, widths=(8, 8), blocks=(1, 1))
    return dict(network=dict(whole=look, close=look, cut=16, span=1.4, norm_num_groups=2, maps=1))


def test_pretrain_probe(tmp_path, network, monkeypatch):
    """The trained component is written with its provenance, and a finished pretraining is not repeated."""
    on_one_device(monkeypatch, run_module)
    assert pretrain(config("probe", **network), "probe", tmp_path) == tmp_path / "probe.safetensors"
    logged = [json.loads(line) for line in (tmp_path / "probe" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [2, 4]

    component, found = make("probe", tmp_path, **network), components.read(tmp_path, ("probe",))
    again, numbers = dict(component.evaluate(unflatten(found), {})), logged[-1]
    assert again["probe/mean"] == pytest.approx(numbers["probe/mean"], abs=0.1)  # weights are stored in 16 bits
    about = components.provenance(tmp_path, "probe")
    assert about["metrics"]["probe/mean"] == numbers["probe/mean"]
    assert (about["steps"], about["seed"], about["pretrain"]["batch_size"]) == (4, 0, 8)
    assert about["started_from"] is None
    assert about["seconds"] > 0

    pretrain(config("probe", **network), "probe", tmp_path)  # finished: no steps are left
    assert components.provenance(tmp_path, "probe")["metrics"] == pytest.approx(about["metrics"], abs=0.1)


def test_pretrain_start_from(tmp_path, network):
    """Pretraining can start from an existing component."""

    def start(component):
        whole = Experiment.from_config(config("probe", **network))
        run = PretrainingTask(component_experiment(whole, component), make_mesh(), component)
        return run, flatten(run.start())

    _, random = start(make("probe", tmp_path, **network))
    components.write(tmp_path, "probe", unflatten(random), {"steps": 4})
    run, found = start(make("probe", tmp_path, start_from=str(tmp_path), **network))
    assert all((leaf == np.float32(np.float16(random[path]))).all() for path, leaf in found.items())
    about = run.provenance(config("probe"), {}, 1.0)
    assert about["started_from"] == {"steps": 4}
    (tmp_path / "probe.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*probe\.json, which says where part probe comes from"):
        run.start()
    components.write(tmp_path, "probe", unflatten(random), {})
    wrong = network | dict(network=network["network"] | dict(maps=2))
    with pytest.raises(UserError, match=r"pretrain\.probe\.start_from: .*probe\.safetensors does not fit the config"):
        pretrain(config("probe", start_from=str(tmp_path), **wrong), "probe", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_update_rng_per_step(tmp_path, network):
    """The same parameters and batch give another loss at another step, and the same at the same step."""
    component = make("probe", tmp_path, **network)
    run = PretrainingTask(
        component_experiment(Experiment.from_config(config("probe", **network)), component),
        make_mesh(1, 1, 1, devices=jax.devices()[:1]),
        component,
    )
    state, batch = run.init_state(jax.jit(component.init)(jax.random.key(0))), read(component, 8)
    update = jax.jit(run.step.update)
    first, again, later = (
        float(update(state.replace(step=jnp.asarray(step, jnp.int32)), {}, batch)[1]["loss_sum"]) for step in (0, 0, 7)
    )
    assert first == again != later


def test_vae_loss_terms(tmp_path):
    """The VAE's loss is the sum of its terms, and its PSNR is that of the logged reconstructions."""
    component = make("vae", tmp_path, crop_size=16)
    params, batch = parameters(component), read(component, 4)
    assert batch.pixels.shape == (4, 16, 16, 3)
    losses, metrics = jax.jit(component.losses)(params, {}, batch, jax.random.key(1))
    terms = binned(component, metrics)
    assert set(terms) == {"pixels", "gradient", "kl"}
    assert float(jnp.mean(losses)) == pytest.approx(sum(terms.values()), rel=1e-5)
    numbers = dict(component.evaluate(params, {}))
    assert set(component.meanings) == set(numbers) - {"vae/reconstructions"}
    truth = np.concatenate([PictureSource(Split.TEST, 3, SIZE)[i].render(SIZE)[None] for i in range(3)])
    np.testing.assert_array_equal(numbers["vae/reconstructions"][:, :, :SIZE], truth)
    made = numbers["vae/reconstructions"][:, :, SIZE:]
    squares = np.mean((truth / 255.0 - made / 255.0) ** 2, axis=(1, 2, 3))
    assert numbers["vae/psnr"] == pytest.approx(float(np.mean(-10 * np.log10(squares))), abs=0.05)


def test_pretrain_unknown_component(tmp_path):
    """The error suggests the nearest name."""
    with pytest.raises(UserError, match=r"unknown component 'vea' \(did you mean 'vae'\?\)"):
        pretrain(config("vae"), "vea", tmp_path)


def test_pretrain_missing_section(tmp_path):
    other = config("vae")
    with other.unlocked():
        other.pretrain = None
    with pytest.raises(UserError, match=r"no section pretrain; use --config=tiny"):
        pretrain(other, "vae", tmp_path)


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    return make("mllm", tmp_path_factory.mktemp("mllm"))


def test_mllm_answer_mask(mllm):
    """The mask covers the answers alone, each with its end token."""
    picture = PictureSource(Split.TRAIN, 5, SIZE)[3]
    captions = caption(picture.identity, picture.scene, {"background"})
    ids, answers, mask = mllm.tokenize([("one", captions), ("two", "cat")])
    end = mllm.encoder.ids("<|im_end|>")
    assert ids[answers].tolist() == mllm.encoder.ids(captions) + end + mllm.encoder.ids("cat") + end
    assert not answers[~mask].any()
    text = mllm.encoder.ids("\ntwo") + mllm.encoder.ids("<|im_end|>\n<|im_start|>assistant\ncat<|im_end|>")
    assert ids[mask][-len(text) :].tolist() == text


def test_mllm_tokens_truncated(mllm):
    """Tokens beyond the configured length are cut off."""
    ids, answers, mask = mllm.tokenize([("one", "cat " * 500)])
    assert mask.all()
    assert len(ids) == len(answers) == mllm.config.tokens


def test_mllm_loss_answer_tokens(mllm):
    """A batch has VQA rows of every task, and every answer token has the same weight."""
    batch = read(mllm, 24)
    assert set(batch.task.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(batch.pixels[7], PictureSource(Split.TRAIN, 24, SIZE)[7].render(SIZE))
    assert (batch.answers.sum(axis=1) > 0).all()
    losses, metrics = jax.jit(mllm.losses)(parameters(mllm), {}, batch, jax.random.key(1))
    sums, counts = metrics["by_task"]
    talking = slice(int(0.75 * 24), None)
    np.testing.assert_array_equal(
        counts, [batch.answers[talking][batch.task[talking] == task].sum() for task in range(3)]
    )
    assert float(losses[talking].sum()) / 24 == pytest.approx(float(sums.sum() / counts.sum()), rel=1e-5)


def test_mllm_loss_vision_only(mllm):
    """Vision-only rows train the vision tower by the auxiliary head, and no text parameters."""
    batch, params = read(mllm, 24), parameters(mllm)
    vision_only_share = slice(0, int(0.75 * 24))

    def loss(params):
        losses, metrics = mllm.losses(params, {}, batch, jax.random.key(1))
        return losses[vision_only_share].sum() / 24, metrics

    (value, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found = mllm._auxiliary_logits(params, batch.pixels[vision_only_share])
    truth = dict(zip(ATTRIBUTES, batch.truth[vision_only_share].T, strict=True))
    right = [-jnp.take_along_axis(jax.nn.log_softmax(found[name]), truth[name][:, None], 1).mean() for name in truth]
    assert float(value) == pytest.approx(mllm.config.auxiliary_weight * float(np.mean(right)), rel=1e-5)
    np.testing.assert_array_equal(
        metrics["seen"][0], [(found[name].argmax(axis=1) == truth[name]).sum() for name in truth]
    )
    sizes = {path: float(jnp.abs(leaf).max()) for path, leaf in flatten(gradients).items()}
    assert all(size == 0 for path, size in sizes.items() if path.startswith("mllm/text"))
    assert sizes["mllm/vision/patch_embedding/kernel"] > 0


def test_mllm_evaluate(mllm):
    """Evaluation reports a metric for every question."""
    numbers = dict(mllm.evaluate(parameters(mllm), {}))
    assert set(numbers) == set(mllm.meanings) == {f"mllm/{name}" for name in (*QUESTIONS, "mean", "least", "seen")}
    assert numbers["mllm/least"] < 0.9  # random weights


def test_config_silent_below_one():
    with pytest.raises(
        UserError, match=r"config key pretrain\.mllm\.vision_only_share is 1\.0; it must be at least 0 and below 1"
    ):
        PretrainConfig.of(Experiment.from_config(config("mllm", vision_only_share=1.0)))


@pytest.mark.parametrize("key", ["steps", "batch_size", "num_eval_examples", "pictures"])
def test_config_counts_at_least_one(key):
    wrong = config("dit")
    wrong.pretrain.dit[key] = 0
    with pytest.raises(UserError, match=rf"config key pretrain\.dit\.{key} is 0; it must be at least 1"):
        PretrainConfig.of(Experiment.from_config(wrong))


@pytest.mark.parametrize("key", ["pose_randomness", "drop_scene"])
def test_config_shares_at_most_one(key):
    with pytest.raises(UserError, match=rf"config key pretrain\.dit\.{key} is 1\.5; it must be from 0 to 1"):
        PretrainConfig.of(Experiment.from_config(config("dit", **{key: 1.5})))
