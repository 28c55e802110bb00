"""Training with cached features gives the same result as without, whatever happens to the cache's files."""

import contextlib
import itertools
import logging
import shutil
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.models.subject import Features
from mllmsubj.parallel import multihost
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings
from mllmsubj.train import programs
from mllmsubj.train.batches import encoded_batches
from mllmsubj.train.feature_cache import FeatureCache, make_cache
from mllmsubj.train.features import Encoded
from mllmsubj.train.modes import active_tokens_of
from mllmsubj.train.programs import lower_update
from mllmsubj.train.setup import make_stages
from mllmsubj.train.state import state_shardings
from mllmsubj.train.throughput import Throughput
from tests.environment import ROOT, environment
from tests.evals import small_run
from tests.small import random_like, small_batch, small_config, small_model, small_step

ROWS = np.arange(8)
BATCHES = [small_batch(8, seed=seed) for seed in (0, 1, 2, 0, 1)]
"""The batches of five steps on a data set of three batches."""


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mllmsubj"), "propagate", True)
    made = []

    def cache(parts="all", encoders="these", mesh=None, folder=tmp_path / "cache"):
        mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1]) if mesh is None else mesh
        made.append(FeatureCache(folder, parts, encoders, mesh, threads=3))
        return made[-1]

    yield cache
    for one in made:
        one.close()


class Batches:
    """A loader of `BATCHES`."""

    rows = ROWS

    def __init__(self):
        self._batches = iter(BATCHES)

    def __next__(self):
        return next(self._batches)


class Trainer:
    """Training on BATCHES, on one mesh."""

    def __init__(self, mesh, **options):
        self.stage, state, frozen = small_step(**options)
        self.mesh, self.update = mesh, None
        self.state = jax.device_get(state)
        self.frozen = jax.device_put(frozen, parameter_shardings(frozen, mesh))

    def __call__(self, cache=None):
        """Returns (last state, FLOPs of encoding each batch)."""
        state, flops = jax.device_put(self.state, state_shardings(self.state, self.mesh)), []
        encoder, step = self.stage.encoder, self.stage.step
        with (
            jax.set_mesh(self.mesh),
            contextlib.closing(
                encoded_batches(Batches(), 8, lambda _: 0, (encoder,), self.frozen, self.mesh, cache, 0, Throughput())
            ) as batches,
        ):
            for batch in itertools.islice(batches, len(BATCHES)):
                transformer = self.frozen["transformer"]
                self.update = self.update or lower_update(step, state, transformer, batch.inputs, self.mesh).compile()
                state, _ = jax.block_until_ready(self.update(state, transformer, batch.inputs))
                flops.append(batch.flops)
        return jax.device_get(state), flops


RUNS = {
    "one device, two parts": ((1, 1, 1), dict(grad_accum_steps=2)),
    "eight devices": ((8, 1, 1), {}),
    "without references, as stage 1": ((1, 1, 1), dict(modes=(0.0, 0.9, 0.0, 0.1))),
}


SLOW = dict.fromkeys(["eight devices", "without references, as stage 1"], pytest.mark.slow)


@pytest.fixture(
    scope="module", params=[pytest.param(run, marks=SLOW.get(name, ()), id=name) for name, run in RUNS.items()]
)
def trainer(request):
    """A trainer with XLA's fusion emitters, its default; without them, two programs round differently."""
    axes, options = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "compiler_options", lambda: {"xla_cpu_use_fusion_emitters": True})
        yield Trainer(make_mesh(*axes, devices=jax.devices()[: np.prod(axes)]), **options)


@pytest.mark.parametrize("parts", ["latents", "all"])
def test_train_with_cache(trainer, make, parts):
    """Training without a cache, with an empty one and with a full one gives identical states."""
    off, plain = trainer()
    cold, flops = trainer(make(parts, mesh=trainer.mesh))
    assert flops[:3] == plain[:3]
    warm, flops = trainer(make(parts, mesh=trainer.mesh))
    assert all(cached < full for cached, full in zip(flops, plain, strict=True))
    for other in (cold, warm):
        jax.tree.map(np.testing.assert_array_equal, other, off)


@pytest.fixture(scope="module")
def small():
    """The encoding of a stage, its output for a batch of four rows, and the batch."""
    stage, _, frozen = small_step()
    return stage.encoder, jax.jit(stage.encoder.encode)(frozen, small_batch(4)), small_batch(4)


def find(cache, step, batch):
    """Returns (cached features, rows that are missing)."""
    known, keep = cache.find(step, batch, np.arange(4), 4)
    return known, sorted(keep.args[0]) if keep else []


def fill(cache, step, encoded, batch):
    cache.find(step, batch, np.arange(4), 4)[1](encoded)
    cache.close()


def changed(batch, name, row=2):
    array = np.array(getattr(batch, name))
    array[row].flat[-1] ^= 1
    return batch.replace(**{name: array})


@pytest.mark.parametrize(
    ("parts", "read", "not_read"),
    [
        ("latents", ["target", "references"], ["input_ids", "clip_ids", "tiles", "example", "reference_mask"]),
        ("all", ["target", "references", "input_ids", "attention_mask", "clip_ids", "tiles"], ["example", "skipped"]),
    ],
)
def test_cache_key_inputs(make, small, parts, read, not_read):
    """The cache key of a row depends on exactly the inputs that the frozen encoders read."""
    step, encoded, batch = small
    fill(make(parts), step, encoded, batch)
    cache = make(parts)
    assert find(cache, step, batch)[0] is not None
    for name in read:
        assert find(cache, step, changed(batch, name))[1] == [2], name
    for name in not_read:
        if getattr(batch, name).ndim > 1:
            assert find(cache, step, changed(batch, name))[0] is not None, name
    assert find(make(parts, encoders="others"), step, batch)[1] == [0, 1, 2, 3]
    assert find(make("all" if parts == "latents" else "latents"), step, batch)[1] == [0, 1, 2, 3]


def test_cache_key_weights(small, tmp_path):
    """Runs share cached features only if their frozen encoders' weights are the same, wherever these are stored."""
    step, encoded, batch = small
    base = small_run.save(tmp_path / "one" / "base")
    copied = shutil.copytree(base, tmp_path / "copy" / "base")
    other = jax.tree.map(lambda leaf: leaf + 1, small_run.params())
    checkpoint.save(tmp_path / "other" / "base", small_run.config(), other, checkpoint.TINY)

    def cache_of(folder):
        with jax.set_mesh(small_run.mesh_of(1)):
            setup = small_run.run_on(folder, 1)[0]
        data = replace(setup.experiment.data, cache=str(tmp_path / "cache"), cached_features="all")
        return make_cache(replace(setup.experiment, data=data), setup.base, setup.stages[0].encoder, setup.mesh)

    fill(cache_of(base), step, encoded, batch)
    for folder, missing in ((copied, []), (tmp_path / "other" / "base", [0, 1, 2, 3])):
        with closing(cache_of(folder)) as cache:
            assert find(cache, step, batch)[1] == missing


def test_cache_stage1_references(make):
    """Stage 1 encodes references so that stage 2 finds them in the cache; its own losses do not change."""
    config = small_config()
    with config.unlocked():
        config.data.cache = "somewhere"
    params = random_like(small_model(lora=True).abstract_params())
    model = small_model(lora=True)
    stage, second = make_stages(Experiment.from_config(config), model, params, (1, 2, 7, 8, 9), (2, 5))
    first, step = stage.encoder, stage.step
    assert first.with_references
    assert not active_tokens_of(step.stage.modes).reference
    batch = small_batch(4)
    encoded = jax.jit(first.encode)(params, batch)
    fill(make(), first, encoded, batch)
    assert find(make(), second.encoder, batch)[0] is not None

    alone = jax.jit(replace(first, with_references=False).encode)(params, batch)
    assert alone.features.references.size == 0 < encoded.features.references.size
    losses = [
        jax.jit(step.losses)(params, part, step.draw(part, jnp.int32(0)))
        for part in (jax.tree.map(lambda x: x[0], each) for each in (encoded, alone))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_cache_row_order(make, small):
    """Cached rows can be read in another order."""
    step, encoded, batch = small
    fill(make(), step, encoded, batch)
    order = np.array([3, 1, 1, 0])
    known, _ = find(make(), step, jax.tree.map(lambda x: x[order], batch))
    np.testing.assert_array_equal(known["target_mean"], encoded.target_mean[0, order])
    np.testing.assert_array_equal(known["text"], np.swapaxes(encoded.features.text[0], 0, 1)[order])
    np.testing.assert_array_equal(known["null"], encoded.features.null[0])


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-7], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 255])]
)
def test_cache_damaged_file(make, small, caplog, tmp_path, damage):
    """Damaged files, including that of the empty prompt, are rewritten with one warning."""
    step, encoded, batch = small
    fill(make(), step, encoded, batch)
    files = sorted((tmp_path / "cache").glob("??/*.safetensors"))
    assert len(files) == 4 + 1
    whole = [file.read_bytes() for file in files]
    for file, data in zip(files, whole, strict=True):
        file.write_bytes(damage(data))
    cache = make()
    assert find(cache, step, batch)[1] == [0, 1, 2, 3]
    fill(cache, step, encoded, batch)
    assert [file.read_bytes() for file in files] == whole
    assert [record.getMessage().count("rewritten") for record in caplog.records] == [1]
    assert not list((tmp_path / "cache").glob("??/.*"))


def test_cache_bfloat16(make, small, tmp_path):
    step, encoded, batch = small
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, encoded)
    fill(make(), step, half, batch)
    known, _ = find(make(), step, batch)
    assert {array.dtype for array in known.values()} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(known["pooled"], half.features.pooled[0])


def test_cache_invalid_folder(make, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache: cannot create .*file/cache"):
        make(folder=tmp_path / "file" / "cache")


def test_cache_write_failure(make, small, caplog, tmp_path):
    """If files cannot be written, a warning is logged and training continues."""
    step, encoded, batch = small
    for number in range(256):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / f"{number:02x}").write_text("in the way")
    fill(make(), step, encoded, batch)
    assert [record.getMessage().endswith("training continues") for record in caplog.records] == [False, True]


def two_processes(number: int, port: int, folder: str) -> None:
    """Runs process `number` of two; a row is missing in the cache of the second one alone."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    mesh = make_mesh(2, 1, 1)
    rows, batch = multihost.process_rows(4, mesh), small_batch(4)
    own = jax.tree.map(lambda x: x[rows], batch)
    said = {name: np.arange(4 * 6, dtype=np.float32).reshape(4, 2, 3) for name in ("target_mean", "target_std")}
    on_mesh = multihost.make_global_batch({name: x[rows] for name, x in said.items()}, rows, 4, mesh)
    parts = {name: x[None] for name, x in on_mesh.items()}
    features = Features(None, None, None, None, None, parts["target_mean"], None, ())
    encoded = Encoded(features, **parts, row=None, skipped=None, grid=(1, 2))
    step = SimpleNamespace(with_references=True)

    def find():
        cache = FeatureCache(Path(folder), "latents", "these", mesh, threads=2)
        known, keep = cache.find(step, own, rows, 4)
        if keep is not None:
            keep(encoded)
        cache.close()
        multihost_utils.sync_global_devices("written")
        return known

    with jax.set_mesh(mesh):
        assert find() is None
        if number == 1:
            next(Path(folder).glob("*/*.safetensors")).unlink()
        multihost_utils.sync_global_devices("deleted")
        assert find() is None
        known = find()
        for name, want in said.items():
            whole = multihost_utils.process_allgather(known[name], tiled=True)
            np.testing.assert_array_equal(whole, want)
    print("fine")


def test_cache_two_processes(tmp_path):
    """If one process lacks a row, both encode the batch again."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    code = "from tests.train.test_feature_cache import two_processes; two_processes({}, {}, {!r})"
    arguments = [[sys.executable, "-c", code.format(i, port, str(tmp_path / "cache"))] for i in range(2)]
    both = [subprocess.Popen(a, cwd=ROOT, env=environment(), stdout=-1, stderr=-2, text=True) for a in arguments]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert all(text.rstrip().endswith("fine") for text in said), "\n".join(said)
