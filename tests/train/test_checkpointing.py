import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from mllmsubj.config.train import CheckpointConfig
from mllmsubj.errors import UserError
from mllmsubj.train.checkpointing import Checkpoints
from tests.environment import ROOT, environment

CONFIG = CheckpointConfig(
    every_steps=10,
    every_minutes=0.0,
    grace_seconds=60.0,
    keep_last=2,
    keep_every_steps=0,
    keep_best=0,
    best="loss/all",
    best_is="min",
)


def state(step: int, size: int = 8, optimizer=optax.adam):
    params = {"dla": {"kernel": jnp.full((size, 4), step, jnp.float32)}, "scale": jnp.asarray(step / 3, jnp.float32)}
    return {"step": jnp.asarray(step, jnp.int32), "params": params, "moments": optimizer(1e-3).init(params)}


def whole(_=None):
    return SingleDeviceSharding(jax.devices()[0])


def abstract(tree, sharding=whole):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), tree)


def put(saves: Checkpoints, *steps: int, **metrics: float):
    for step in steps:
        saves.save(step, state(step), {"read": 7 * step}, {"stage": 1, "seconds": 0.5}, metrics or None)
    saves.wait()


def names(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_restore_round_trip(tmp_path):
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() is None
        put(saves, 3, 5)
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() == 5
        saved = saves.restore(5, abstract(state(5)))
        same(saved.state, state(5))
        assert (saved.loader, saved.meta) == ({"read": 35}, {"stage": 1, "seconds": 0.5})
        same(saves.restore(3, abstract(state(3))).state, state(3))


def test_save_same_step(tmp_path):
    """A second save of a step is ignored."""
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 5)
        saves.save(5, state(6), {}, {})
        same(saves.restore(5, abstract(state(5))).state, state(5))


def test_restore_other_mesh(tmp_path):
    """A checkpoint can be restored with other shardings."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("fsdp",))
    split = lambda leaf: NamedSharding(mesh, PartitionSpec("fsdp") if leaf.shape else PartitionSpec())  # noqa: E731
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 1)
        spread = saves.restore(1, abstract(state(1), split)).state
        same(spread, state(1))
        assert all(leaf.sharding == split(leaf) for leaf in jax.tree.leaves(spread))
        saves.save(2, spread, {}, {})
        saves.wait()
        back = saves.restore(2, abstract(state(1))).state
        same(back, state(1))
        assert all(leaf.sharding == whole() for leaf in jax.tree.leaves(back))


def test_checkpoints_retention(tmp_path):
    config = replace(CONFIG, keep_every_steps=4, keep_best=1)
    with Checkpoints(tmp_path, config) as saves:
        for step, loss in enumerate([9.0, 2.0, 1.0, float("nan"), 5.0, 6.0, None, 7.0], 1):
            put(saves, step, **{} if loss is None else {"loss/all": loss, "other": 0.0})
        assert names(tmp_path) == ["3", "4", "7", "8"]
    with Checkpoints(tmp_path, replace(config, keep_last=0, keep_every_steps=0, best_is="max")) as saves:
        put(saves, 9)
        assert names(tmp_path) == ["8", "9"]


def test_due_schedule(tmp_path):
    now = [100.0]
    with Checkpoints(tmp_path, replace(CONFIG, every_minutes=2.0), clock=lambda: now[0]) as saves:
        assert [step for step in range(1, 31) if saves.due(step)] == [10, 20, 30]
        now[0] += 119
        assert not saves.due(31, log_point=True)
        now[0] += 1
        assert not saves.due(31)
        assert saves.due(31, log_point=True)
        put(saves, 31)
        assert not saves.due(32, log_point=True)
    with Checkpoints(tmp_path, replace(CONFIG, every_steps=0), clock=lambda: now[0]) as saves:
        now[0] += 1e9
        assert not saves.due(10, log_point=True)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (dict(size=16), r"kernel is \(8, 4\), the config says \(16, 4\).*"),
        (dict(optimizer=optax.sgd), r"has unknown moments/0/count; .*\(and 2 more\)"),
        (dict(optimizer=lambda rate: optax.chain(optax.adam(rate), optax.ema(0.9))), r"lacks moments/0/0/count"),
    ],
)
def test_restore_mismatched_state(tmp_path, other, says):
    """The error names the arrays that differ."""
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 1)
        with pytest.raises(UserError, match=rf"checkpoint .*checkpoints/1 does not fit the config: .*{says}") as error:
            saves.restore(1, abstract(state(1, **other)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("which", ["largest", "meta/metadata", "state/_METADATA", "files.json"])
def test_restore_damaged(tmp_path, which, damage, capfd):
    """The error names the damaged file; without that checkpoint, the one before is restored."""
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 1, 2)
    folder = tmp_path / "checkpoints" / "2"
    files = [path for path in folder.rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size) if which == "largest" else folder / which
    whole = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(whole[: len(whole) // 2])
    capfd.readouterr()
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() == 2
        with pytest.raises(UserError, match=rf"checkpoints/2 is damaged: .*{path.name}.*delete that folder"):
            saves.restore(2, abstract(state(2)))
        assert "Traceback" not in capfd.readouterr().err
    shutil.rmtree(folder)
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() == 1
        same(saves.restore(1, abstract(state(1))).state, state(1))


def test_restore_unreadable(tmp_path):
    """Damage that does not change the size of a file is reported when it is read."""
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 1)
        path = tmp_path / "checkpoints" / "1" / "meta" / "metadata"
        path.write_bytes(b"?" * path.stat().st_size)
        with pytest.raises(UserError, match=r"cannot read checkpoint .*checkpoints/1: .*delete that folder") as error:
            saves.restore(1, abstract(state(1)))
    assert "\n" not in str(error.value)


def test_open_incomplete_removal(tmp_path):
    """An interrupted removal of a checkpoint is finished on opening."""
    with Checkpoints(tmp_path, CONFIG) as saves:
        put(saves, 9, 10)
    (tmp_path / "checkpoints" / "9" / "state" / "_METADATA").unlink()
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert names(tmp_path) == ["10"]
        assert saves.latest() == 10


def run(program: str, *arguments: object, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-c", "from tests.train.test_checkpointing import *\n" + program, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


SAVES_FOREVER = """
with Checkpoints(sys.argv[1], CONFIG) as saves:
    first = (saves.latest() or 0) + 1
    for step in range(first, first + 10_000):
        saves.save(step, state(step, 40_000), {"read": 7 * step}, {})
        print(step, flush=True)
"""


def test_save_killed(tmp_path):
    """After SIGKILL at any time, checkpoints are complete, and at most the one being saved is lost."""
    rng = np.random.default_rng()
    found = 0
    for attempt in range(2):
        process = run(SAVES_FOREVER, tmp_path)
        started = int(process.stdout.readline())
        assert started == found + 1
        time.sleep(rng.uniform(0.0, 0.4) + 0.2 * attempt)
        process.kill()
        reported = [started, *map(int, process.communicate()[0].split())][-1]
        with Checkpoints(tmp_path, CONFIG) as saves:
            latest = saves.latest()
            if latest is None:
                assert reported == 1
                continue
            found = latest
            assert reported - 1 <= found <= reported + 1
            saved = saves.restore(found, abstract(state(0, 40_000)))
            same(saved.state, state(found, 40_000))
            assert saved.loader == {"read": 7 * found}
        assert all(name.isdigit() for name in names(tmp_path))
    assert found


def test_open_incomplete_save(tmp_path):
    """What an interrupted save has written is removed on opening."""
    partial = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp-1" / "state"
    partial.mkdir(parents=True)
    for number in range(2000):
        (partial / str(number)).touch()
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert names(tmp_path) == []
        assert saves.latest() is None


STOPS_WHEN_TOLD = """
with Checkpoints(sys.argv[1], CONFIG) as saves:
    print("ready", flush=True)
    step = 1
    while not saves.preempted(step):
        step += 1
        time.sleep(0.01)
    put(saves, step)
    print(step, flush=True)
    if sys.argv[2] == "again":
        time.sleep(60)
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
"""


@pytest.mark.parametrize("then", ["leave", "again"])
def test_preempted_sigterm(tmp_path, then):
    """SIGTERM sets `preempted`, and a second SIGTERM ends the process."""
    process = run(STOPS_WHEN_TOLD, tmp_path, then)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    step = int(process.stdout.readline())
    if then == "again":
        process.terminate()
    assert process.wait(60) == (-signal.SIGTERM if then == "again" else 0), process.stderr.read()
    process.communicate()
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() == step


def test_sigterm_handler_restored(tmp_path):
    """Closing restores the earlier handler of SIGTERM."""
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not saves.preempted(1)
    assert signal.getsignal(signal.SIGTERM) == before


def test_open_invalid_folder(tmp_path):
    (tmp_path / "checkpoints").touch()
    with pytest.raises(UserError, match=r"cannot open .*checkpoints: File exists"):
        Checkpoints(tmp_path, CONFIG)


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


# Writes that tensorstore has started fail after orbax has closed the event loop that receives their errors.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("ask", ["wait", "due", "save", "close"])
def test_save_full_disk(small_disk, ask, caplog):
    """The next call after a failed save raises a one-line error, and older checkpoints can be restored."""
    saves = Checkpoints(small_disk, CONFIG)
    put(saves, 1)
    noise = {"x": jnp.asarray(np.random.default_rng(0).standard_normal(500_000), jnp.float32)}
    saves.save(2, noise, {}, {})
    calls = {
        "wait": saves.wait,
        "close": saves.close,
        "save": lambda: saves.save(3, state(3), {}, {}),
        "due": lambda: any(saves.due(3) or time.sleep(0.01) for _ in range(3000)),
    }
    with pytest.raises(UserError, match=r"cannot save .*checkpoints: No space left on device; older") as error:
        calls[ask]()
    assert "\n" not in str(error.value)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    if ask != "close":
        saves.close()
    with Checkpoints(small_disk, CONFIG) as saves:
        assert saves.latest() == 1
        same(saves.restore(1, abstract(state(1))).state, state(1))


TWO_PROCESSES = """
rank = int(sys.argv[2])
jax.distributed.initialize(f"localhost:{sys.argv[3]}", 2, rank)
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.parallel.sharding import make_mesh, parameter_shardings, sharded_shapes
from tests.checkpoints.test_format import CONFIG as MODEL, TINY
from mllmsubj.train.workdir import open_workdir
workdir = Path(sys.argv[1])
mesh = make_mesh(fsdp=4)
def spread(tree):
    return jax.tree.map(lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: np.asarray(x)[i]), tree,
                        parameter_shardings(tree, mesh))
params = {"vae": {"conv_in": {"kernel": np.arange(64, dtype=np.float32).reshape(1, 1, 4, 16)}},
          "dla": {"layer_scale_x": np.arange(16, dtype=np.float32)}}
now = [0.0]
settings = replace(CONFIG, every_minutes=1.0)
with open_workdir(workdir, MODEL) as resumes, Checkpoints(workdir, settings, lambda: now[0]) as saves:
    assert not resumes
    now[0] = (rank == 1) * 100.0  # the first process's clock counts
    assert not saves.due(1, log_point=True)
    now[0] = (rank == 0) * 100.0
    assert saves.due(1, log_point=True)
    for step in range(1, 2000):
        if saves.preempted(step):
            break
        if step == 1:
            print("ready", flush=True)
        time.sleep(0.01 + 0.01 * rank)
    saves.save(step, spread(params), {"read": 1}, {})
    saves.wait()
    for _ in range(2):
        checkpoint.save(workdir / "model", MODEL, spread(params), TINY, replace=True)
    try:
        checkpoint.save(workdir / "model", MODEL, spread(params), TINY)
    except UserError as error:
        assert "exists already" in str(error)
        print(step, flush=True)
    restored = checkpoint.restore(workdir / "model", sharded_shapes(jax.eval_shape(lambda: params), mesh))
    assert restored["dla"]["layer_scale_x"].sharding.mesh.size == 4
"""


def test_preempted_two_processes(tmp_path):
    """After SIGTERM to one process, both stop at the same step, and what they save together is complete."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [run(TWO_PROCESSES, tmp_path, rank, port, devices=2) for rank in range(2)]
    try:
        for process in processes:
            assert "ready\n" in iter(process.stdout.readline, ""), process.stderr.read()[-3000:]  # gloo prints, too
        processes[1].terminate()
        said = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(err[-2000:] for _, err in said)
    first, second = (int(out.split()[-1]) for out, _ in said)
    assert first == second
    with Checkpoints(tmp_path, CONFIG) as saves:
        assert saves.latest() == first
        scale = {"layer_scale_x": jnp.zeros(16)}
        kernel = {"kernel": jnp.zeros((1, 1, 4, 16))}
        saved = saves.restore(first, abstract({"vae": {"conv_in": kernel}, "dla": scale}))
        np.testing.assert_array_equal(saved.state["vae"]["conv_in"]["kernel"].ravel(), np.arange(64))
        np.testing.assert_array_equal(saved.state["dla"]["layer_scale_x"], np.arange(16))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints", "config.json", "model"]
