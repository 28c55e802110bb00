"""The streaming import of model folders: results, resuming, damaged sources and memory."""

import hashlib
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from mllmsubj import convert
from mllmsubj.bench.importing import write_models
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.importing import leaves, run, streaming
from mllmsubj.checkpoints.importing.leaves import LeafLayout, write_layer
from mllmsubj.checkpoints.importing.models import component_folder, open_model
from mllmsubj.checkpoints.importing.sizes import with_sizes
from mllmsubj.checkpoints.importing.tensors import list_tensors
from mllmsubj.checkpoints.initial import load_params
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel.sharding import make_mesh, sharded_shapes
from mllmsubj.tree import flatten, unflatten
from tests.environment import ROOT, environment
from tests.small import small_config, small_model

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FOLDERS = {"transformer": "transformer", "vae": "vae", "clip": "text_encoder", "mllm": "mllm"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The small model as folders of sharded files."""
    root = tmp_path_factory.mktemp("models")
    write_models(root, small_model(lora=True).config, shard=20_000)
    return root


@pytest.fixture
def root(written, tmp_path):
    """A copy of `written` that a test may modify."""
    return shutil.copytree(written, tmp_path / "models")


def imported(root, workdir, dtype=BFLOAT16, on_bytes_read=lambda count: None):
    models = [open_model(role, root / name, dtype) for role, name in FOLDERS.items()]
    config = with_sizes(small_config(), {model.role: model.config for model in models})
    tokenizers = {"tokenizer": root / "mllm", "clip_tokenizer": root / "tokenizer"}
    run.import_models(workdir, config, models, tokenizers, dtype, on_bytes_read)
    return workdir


def expected(root, dtype):
    """Parameters of the same folders, read by the loaders that hold everything in memory."""
    load = (convert.load_transformer, convert.load_vae, convert.load_clip_text, convert.load_mllm)
    params = {role: f(root / name)[1] for f, (role, name) in zip(load, FOLDERS.items(), strict=True)}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def restored(workdir, params, mesh):
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    return checkpoint.restore(workdir, sharded_shapes(shapes, mesh))


def assert_equal(found, want):
    jax.tree.map(np.testing.assert_array_equal, found, want)


@pytest.fixture
def in_pieces(monkeypatch):
    """Splits small leaves into as many pieces as large ones."""
    monkeypatch.setattr(leaves, "MIN_PIECE_BYTES", 8)


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float32)], ids=str)
def test_import_restore_sharded(written, tmp_path, dtype, in_pieces):
    workdir, params = imported(written, tmp_path / "new" / "workdir", dtype), expected(written, dtype)
    found = restored(workdir, params, make_mesh(fsdp=4, tensor=2))
    assert_equal(found, params)
    assert not found["transformer"]["single_blocks"]["proj_out"]["kernel"].is_fully_replicated
    with ocp.StandardCheckpointer() as checkpointer:
        assert_equal(checkpointer.restore(workdir / "params"), params)
    assert [path.name for path in workdir.parent.iterdir()] == ["workdir"]


def test_import_metadata(written, tmp_path):
    """files.json has the sizes and hashes of the checkpoint's files, import.json those of the sources."""
    workdir = imported(written, tmp_path / "workdir")
    listing = json.loads((workdir / "files.json").read_text())
    files = {name: [size, sha256(workdir / name)] for name, size in checkpoint.sizes(workdir).items()}
    assert files.keys() - listing.keys() == {"files.json", "config.json"}
    assert listing == {name: files[name] for name in listing}
    for name, folder in (("tokenizer", "mllm"), ("clip_tokenizer", "tokenizer")):
        assert (workdir / name / "tokenizer.json").read_bytes() == (written / folder / "tokenizer.json").read_bytes()
    said = json.loads((workdir / "import.json").read_text())
    for role, folder in FOLDERS.items():
        files = {p.name: [p.stat().st_size, sha256(p)] for p in (written / folder).glob("*.safetensors")}
        assert said["models"][role]["files"] == files
    assert said["models"]["transformer"]["config"]["num_layers"] == 2
    assert said["dtype"] == "bfloat16"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_load_params_imported(written, tmp_path):
    """Training starts from the imported parameters; all others are trained ones."""
    workdir, model = imported(written, tmp_path / "workdir"), small_model(lora=True)
    mesh = make_mesh(devices=jax.devices()[:1])  # initialization compiles for a long time on several devices
    params = flatten(load_params(workdir, model, model.abstract_params(mesh), 0))
    want = flatten(expected(written, np.float32))
    assert_equal({path: params[path] for path in want}, want)
    assert all(is_trained(path) for path in set(params) - set(want))
    assert set(params) - set(want)


def test_leaf_files_plan(tmp_path):
    """Each layer is a file, whose pieces are split along the "fsdp" axis."""
    spec = PartitionSpec(None, "tensor", "fsdp")
    leaf = LeafLayout.plan("transformer/single_blocks/proj_out/kernel", (38, 15360, 3072), spec, BFLOAT16, 0)
    assert (leaf.shard, leaf.piece) == ((1, 15360, 3072), (1, 15360, 48))
    assert leaf.file(7) == "transformer.single_blocks.proj_out.kernel/c/7/0/0"
    spec = PartitionSpec("fsdp", None, "tensor")
    leaf = LeafLayout.plan("transformer/modulation/single/kernel", (3072, 38, 9216), spec, BFLOAT16, 1)
    assert (leaf.shard, leaf.piece, leaf.file(7)[-5:]) == ((3072, 1, 9216), (96, 1, 9216), "0/7/0")
    assert LeafLayout.plan("mllm/text/norm/scale", (3584,), PartitionSpec(), BFLOAT16, None).pieces == 1


@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16], ids=lambda kind: np.dtype(kind).name)
@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("laid_out", [lambda x: x, lambda x: x.T, lambda x: x[:, 2:6]], ids=["same", "linear", "rows"])
def test_write_layer_contents(tmp_path, source, dtype, laid_out):
    """A file has the pieces of a layer in order, then the index of their offsets and sizes."""
    layer = laid_out(np.random.default_rng(0).standard_normal((8, 600)).astype(source))
    leaf = LeafLayout("x", (3, *layer.shape), dtype, 0, 2, 2)
    size, digest = write_layer(tmp_path / "file", leaf, layer)
    raw = (tmp_path / "file").read_bytes()
    assert (size, digest) == (len(raw), hashlib.sha256(raw).hexdigest())
    length, half = layer.size * dtype.itemsize // 2, layer.shape[1] // 2
    assert np.frombuffer(raw[-32:], "<u8").tolist() == [0, length, length, length]
    for i in range(2):
        piece = np.frombuffer(raw[i * length :][:length], dtype).reshape(-1, half)
        np.testing.assert_array_equal(piece, layer[:, i * half :][:, :half].astype(dtype))


class Stopped(Exception):
    """Stops an import in this process, in place of SIGKILL."""


def after(count):
    """Returns a callback that stops an import after `count` tensors."""
    left = iter(range(count))

    def on_bytes_read(_):
        if next(left, None) is None:
            raise Stopped

    return on_bytes_read


def stop(root, workdir, count=70):
    with pytest.raises(Stopped):
        imported(root, workdir, on_bytes_read=after(count))
    assert not workdir.exists()
    return workdir.with_name(f".{workdir.name}.import")


def times(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("c/**/*") if path.is_file()}


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tests.checkpoints.test_importing import imported

left, log = iter(range(70)), Path(sys.argv[2]).with_name(".workdir.import") / "progress.jsonl"

def advance(count):
    if next(left, None) is None:
        while log.read_text().count("\\n") < 25:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

imported(Path(sys.argv[1]), Path(sys.argv[2]), on_bytes_read=advance)
"""


def test_import_resume_after_kill(root, tmp_path):
    """Finished files are kept, and damaged ones are written again."""
    workdir, draft = tmp_path / "workdir", tmp_path / ".workdir.import"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), str(workdir)], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not workdir.exists()
    assert not (draft / "checkpoint" / "config.json").exists()
    lines = (draft / "progress.jsonl").read_text().splitlines()
    files = [json.loads(line)["file"] for line in lines[1:]]
    assert len(files) > 20
    with (draft / "progress.jsonl").open("a") as file:
        file.write('{"file": "cut sho')  # as if it was killed in the middle of a line
    (draft / "checkpoint" / files[3]).write_bytes(b"other")  # and as if the power had failed
    zeros = draft / "checkpoint" / files[5]
    zeros.write_bytes(bytes(zeros.stat().st_size))
    before = times(draft / "checkpoint")
    imported(root, workdir)
    after = times(workdir)
    kept = [Path(name) for name in files if name not in (files[3], files[5])]
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    params = expected(root, BFLOAT16)
    assert_equal(restored(workdir, params, make_mesh()), params)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "workdir"]


def flip(path):
    """Changes the first number of a file's data."""
    raw = bytearray(path.read_bytes())
    raw[8 + int.from_bytes(raw[:8], "little")] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("change", ["number", "file", "dtype"])
def test_import_resume_mismatch(root, tmp_path, change):
    """A stopped import does not resume with other data, source files or dtype."""
    draft, dtype = stop(root, tmp_path / "workdir"), BFLOAT16
    first = shards(root)[0]
    if change == "number":
        flip(first)
        says = rf"{first} changed since the import began, at or before tensor '.*'; .* delete {draft} to start again"
    elif change == "file":
        first.rename(first.with_name("model-0.safetensors"))
        (root / "transformer" / "model.safetensors.index.json").unlink()
        says = rf"{draft} holds an import .* other source files; .* delete that folder"
    else:
        dtype, says = np.dtype(np.float32), rf"{draft} holds an import .* other dtype"
    with pytest.raises(UserError, match=says):
        imported(root, tmp_path / "workdir", dtype)
    assert not (tmp_path / "workdir").exists()


def test_import_locked_workdir(root, tmp_path):
    """A second import into the same workdir is an error."""

    def on_bytes_read(_):
        with pytest.raises(UserError, match="is being written by another import"):
            imported(root, tmp_path / "workdir")
        raise Stopped

    with pytest.raises(Stopped):
        imported(root, tmp_path / "workdir", on_bytes_read=on_bytes_read)


def test_import_existing_workdir(written, tmp_path):
    (tmp_path / "workdir").mkdir()
    with pytest.raises(UserError, match=r"workdir exists already; give another folder or delete it"):
        imported(written, tmp_path / "workdir")
    assert [path.name for path in tmp_path.iterdir()] == ["workdir"]


def test_import_disk_full(written, tmp_path, monkeypatch):
    """Free space is checked first; an import resumes after a failed write."""
    workdir = tmp_path / "workdir"
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=run.SPARE_BYTES))
        with pytest.raises(UserError, match=r"has room for 0\.02 GB, the checkpoint needs .* GB more; make room"):
            imported(written, workdir)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, hard))  # files of more bytes than that cannot be written
    try:
        with pytest.raises(UserError, match=r"cannot write .*File too large; what is done is kept in .*\.import"):
            imported(written, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not workdir.exists()
    params = expected(written, BFLOAT16)
    assert_equal(restored(imported(written, workdir), params, make_mesh()), params)


def shards(root, role="transformer"):
    return sorted((root / FOLDERS[role]).glob("*.safetensors"))


def edited(path, edit):
    """Changes the tensors of a file with `edit`; returns its path."""
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    return path


def replaced(make):
    """Returns an edit of the first tensor with two axes."""

    def edit(tensors):
        name = next(name for name, tensor in tensors.items() if tensor.ndim == 2)
        tensors[name] = make(tensors[name])

    return edit


def cut(root):
    path = shards(root)[1]
    path.write_bytes(path.read_bytes()[:-100])
    return rf"{path} has \d+ bytes, its header says \d+, and tensor '.*' is cut off; copy it again"


def cut_in_header(root):
    path = shards(root)[1]
    path.write_bytes(path.read_bytes()[:100])
    return rf"{path} is cut short or no safetensors file"


def garbled_header(root):
    path = shards(root)[1]
    raw = bytearray(path.read_bytes())
    raw[8:12] = b"\xff\xfe\x00\x01"
    path.write_bytes(raw)
    return rf"{path} is damaged: its header is no list of tensors; copy it again"


def garbled_data(root):
    path = edited(shards(root)[1], replaced(lambda tensor: tensor * np.asarray(np.nan, tensor.dtype)))
    return rf"{path}: tensor '.*' holds NaN or infinity; the file is damaged"


def missing_shard(root):
    path = shards(root)[1]
    path.unlink()
    return rf"model.safetensors.index.json names shards that are not in {path.parent}: {path.name}"


def integers(root):
    path = edited(shards(root)[1], replaced(lambda tensor: tensor.astype(np.int8)))
    return rf"{path.name}: tensor '.*' is I8, not F32 or F16 or BF16"


def eight_bits(root):
    path = shards(root)[1]
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    tensor = next(said for said in header.values() if len(said["shape"]) == 2)
    tensor.update(dtype="F8_E4M3", shape=[2 * tensor["shape"][0], tensor["shape"][1]])
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return rf"{path.name}: tensor '.*' is F8_E4M3, not F32 or F16 or BF16"


def transposed(root):
    path = edited(shards(root)[1], replaced(lambda tensor: np.ascontiguousarray(np.zeros((5, 7), tensor.dtype))))
    return rf"{path.name}: '.*' has shape \(\d+, \d+\), but '.*' expects"


def extra_tensor(root):
    edited(shards(root)[1], lambda tensors: tensors.update(spare=np.zeros(3, np.float32)))
    return r"transformer does not contain this model: unexpected tensor 'spare'"


def missing_tensor(root):
    edited(shards(root)[1], lambda tensors: tensors.pop(next(iter(tensors))))
    return r"transformer does not contain this model: missing tensor"


def twice(root):
    first, second = shards(root)[:2]
    edited(second, lambda tensors: tensors.update(load_file(first)))
    return rf"tensor '.*' is in both {first} and {second.name}; leave one"


def other_model(root):
    shutil.rmtree(root / "transformer")
    shutil.copytree(root / "vae", root / "transformer")
    return r"--transformer=.*transformer holds AutoencoderKL, not transformer weights: it belongs to --vae"


def text_encoder_2(root):
    (root / "text_encoder" / "config.json").write_text('{"model_type": "t5"}')
    return r"--clip=.* holds t5, not clip weights: it is no part of this model"


def mixed_files(root):
    shutil.copyfile(root / "vae" / "model.safetensors", root / "transformer" / "other.safetensors")
    return "transformer does not contain this model: unexpected tensor '"


def pickled(root):
    for path in (root / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    return r"vae/model\.bin is a pickle, .* never read; .*save_pretrained\(FOLDER, safe_serialization=True\)"


def nothing(root):
    shutil.rmtree(root / "mllm")
    return r"mllm.* is not there"


def empty(root):
    for path in (root / "text_encoder").glob("*.safetensors"):
        path.unlink()
    return r"text_encoder contains no \.safetensors file"


BAD = (cut, cut_in_header, garbled_header, garbled_data, missing_shard, integers, eight_bits, transposed, extra_tensor)
BAD += (missing_tensor, twice, other_model, text_encoder_2, mixed_files, pickled, nothing, empty)


@pytest.mark.parametrize("damage", BAD, ids=lambda damage: damage.__name__)
def test_import_invalid_source(root, tmp_path, damage):
    """The error is one line; no workdir is written."""
    says = damage(root)
    with pytest.raises(UserError, match=says) as error:
        imported(root, tmp_path / "workdir")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "workdir").exists()
    draft = tmp_path / ".workdir.import"
    assert draft.exists() == (damage is garbled_data)  # all else is found before anything is written
    assert not (draft / "checkpoint" / "config.json").exists()


def test_import_hub_cache_hash(root, tmp_path):
    """The Hugging Face cache names files by SHA-256; a file with another hash is an error."""
    path = shards(root)[1]
    blob = tmp_path / sha256(path)
    path.rename(blob)
    path.symlink_to(blob)
    imported(root, tmp_path / "workdir")
    flip(blob)
    with pytest.raises(UserError, match=rf"{path} is damaged: its SHA-256 is .*, and it was downloaded as {blob.name}"):
        imported(root, tmp_path / "again")


def test_with_sizes_dla(written):
    """Sizes of the DLA follow from the imported models; sizes that disagree are an error."""
    sizes = small_model(lora=True).config
    parts = {role: getattr(sizes, role) for role in FOLDERS}
    config = with_sizes(load_config(str(ROOT / "configs" / "paper.py")), parts)
    dla = config.model.dla
    assert (dla.num_states, dla.input_dim, dla.context_dim) == (3, 16, 12)
    assert (dla.width, dla.num_heads, dla.num_kv_heads, dla.intermediate_size) == (16, 2, 2, 43)
    assert config.model.lora.rank == 512
    narrow = replace(parts["clip"], hidden_size=6)
    with pytest.raises(UserError, match=r"pooled_projection_dim is 8 but clip\.hidden_size is 6"):
        with_sizes(small_config(), parts | {"clip": narrow})


def test_part_folder_flux(written):
    assert component_folder("transformer", written) == written / "transformer"
    assert component_folder("clip", written) == written / "text_encoder"
    assert component_folder("vae", written / "vae") == written / "vae"


def test_import_memory_bound(written, tmp_path, monkeypatch):
    """No more bytes are in memory at once than the largest tensor has."""
    held, most = [0], [0]

    class Counted(streaming._MemoryBudget):
        def take(self, tensor):
            data = super().take(tensor)
            held[0] += len(data)
            most[0] = max(most[0], held[0])
            return data

        def give(self, size):
            held[0] -= size
            super().give(size)

    monkeypatch.setattr(streaming, "_MemoryBudget", Counted)
    monkeypatch.setattr(streaming, "MAX_BUFFERED_BYTES", 0)
    imported(written, tmp_path / "workdir")
    largest = max(t.stop - t.start for name in FOLDERS.values() for t in list_tensors(written / name).values())
    assert most[0] == largest
    assert held[0] == 0


RESTORED = """
import sys
from pathlib import Path
import jax
rank, port, workdir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.parallel.sharding import make_mesh
from tests.checkpoints.test_importing import shapes_in

def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])

shapes, mesh = shapes_in(workdir), make_mesh(fsdp=4)
before = bytes_read()
params = checkpoint.restore(workdir, sharded_shapes(shapes, mesh))
count = bytes_read() - before
print(count, sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards))
"""


def shapes_in(workdir):
    model = SubjectModel(Experiment.from_config(checkpoint.read_config(workdir)).model, Compute(BFLOAT16))
    return unflatten({path: leaf for path, leaf in flatten(model.abstract_params()).items() if not is_trained(path)})


@pytest.mark.slow
def test_restore_multihost_bytes_read(tmp_path, monkeypatch):
    """Each of two hosts reads about as many bytes as its own shards have."""
    monkeypatch.setattr(leaves, "MIN_PIECE_BYTES", 1 << 16)
    sizes = small_model(lora=True).config
    wide = dict(num_attention_heads=4, attention_head_dim=128, axes_dims_rope=(16, 56, 56))
    write_models(tmp_path, replace(sizes, transformer=replace(sizes.transformer, **wide)))
    workdir = imported(tmp_path, tmp_path / "workdir")
    total = sum(path.stat().st_size for path in (workdir / "params").rglob("*") if path.is_file())
    with socket.socket() as sock:
        sock.bind(("localhost", 0))
        port = str(sock.getsockname()[1])
    command = [sys.executable, "-c", RESTORED]
    hosts = [
        subprocess.Popen(
            [*command, str(rank), port, str(workdir)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for host in hosts:
        count, held = map(int, host.communicate(timeout=300)[0].split()[-2:])
        assert host.returncode == 0
        assert held < 0.6 * total
        assert count < held + 4e6  # files.json, shapes, and offsets of the pieces
