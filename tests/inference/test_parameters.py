"""Parameters for inference: their size in memory, and the peak memory of loading."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import TINY
from mllmsubj.checkpoints.initial import random_params
from mllmsubj.config.load import load_config
from mllmsubj.config.schema import Experiment
from mllmsubj.inference.offload import group_bytes, is_read
from mllmsubj.inference.parameters import groups, inference_shapes
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.tree import flatten
from tests.environment import ROOT
from tests.small import small_config, small_model

SMALLER = 16
"""Factor by which loading groups are reduced for the model whose memory is measured."""

LOAD = """
import json, sys
from pathlib import Path
import jax
from mllmsubj import loading
from mllmsubj.checkpoints.format import read_config
from mllmsubj.config.schema import Experiment
from mllmsubj.parallel.sharding import make_mesh

def peak():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

folder = Path(sys.argv[1])
loading.GROUP //= int(sys.argv[2])
mesh, experiment = make_mesh(), Experiment.from_config(read_config(folder))
jax.block_until_ready(jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8))))
loading.held_shapes(loading.SubjectModel(experiment.model, experiment.compute.resolve()))
before = peak()
params = loading.load(folder, experiment, mesh)[1]
print(json.dumps(dict(before=before, peak=peak(), kept=sum(leaf.nbytes for leaf in jax.tree.leaves(params)))))
"""


@pytest.mark.parametrize(
    ("frozen_dtype", "gigabytes"),
    [
        ("int8", dict(encode=9.72, prepare=3.29, denoise=11.02, decode=0.10)),
        ("auto", dict(encode=16.57, prepare=6.56, denoise=17.24, decode=0.10)),
    ],
)
def test_group_bytes_full_size(frozen_dtype, gigabytes):
    """With int8, each group leaves 5 GB of a 16 GB chip free, and all groups fit in 40 GB of host memory."""
    sizes = Experiment.from_config(load_config(str(ROOT / "configs" / "paper.py"))).model
    stored = SubjectModel(replace(sizes, frozen_dtype=frozen_dtype), Compute(jnp.bfloat16))
    turns = group_bytes(inference_shapes(stored), make_mesh(devices=jax.devices()[:1]))
    assert {turn: size / 1e9 for turn, size in turns.items()} == pytest.approx(gigabytes, abs=0.01)


@pytest.mark.parametrize("frozen_dtype", ["auto", "int8"])
def test_groups_partition(frozen_dtype):
    """Each parameter is in exactly one group."""
    model = small_model(lora=True)
    model = replace(model, config=replace(model.config, frozen_dtype=frozen_dtype))
    paths = [path for group in groups(model) for path in group]
    assert sorted(paths) == sorted(path for path in flatten(model.abstract_params()) if is_read(path))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A bfloat16 checkpoint of 1.2 GB, most of it in projections that are quantized to int8."""
    config = small_config()
    with config.unlocked():
        config.compute.update(dtype="bfloat16", layers="scan", offload=True)
        config.mesh.fsdp = 1
        model = config.model
        model.frozen_dtype = "int8"
        model.mllm.text.update(hidden_size=1024, intermediate_size=4096, num_hidden_layers=16, num_attention_heads=8)
        model.dla.update(num_states=17, states=(0, 17), input_dim=1024, width=256, num_heads=8, num_kv_heads=8)
        model.transformer.update(num_layers=6, num_single_layers=12, num_attention_heads=8, attention_head_dim=128)
        model.transformer.update(axes_dims_rope=(16, 56, 56))
    experiment = Experiment.from_config(config)
    stored = SubjectModel(experiment.model, Compute(jnp.bfloat16))
    folder = tmp_path_factory.mktemp("large") / "checkpoint"
    mesh = make_mesh(devices=jax.devices()[:1])
    checkpoint.save(folder, config, random_params(stored, stored.abstract_params(mesh), 0), TINY)
    return folder, stored


@pytest.mark.slow
def test_load_peak_memory(large):
    """The peak memory is little more than the loaded parameters.

    The rest is a group as stored, its float32 copy during quantization (on CPUs only), and compilation.
    """
    folder, stored = large
    shapes = flatten(stored.abstract_params())
    env = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LOAD, str(folder), str(SMALLER)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in shapes.values())
    assert found["kept"] < 0.55 * whole
    assert found["peak"] - found["before"] < found["kept"] + 3 * largest < whole
