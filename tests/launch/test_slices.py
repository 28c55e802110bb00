"""The table of TPU slices, compared with single slices in Google's documentation."""

import subprocess
import sys

import pytest

from tests.environment import ROOT
from tests.launch.launching import flag, launch, printed

# name, chips, hosts, chips per host, topology, GKE's name, runtime
KNOWN = """
v4-8          4    1 4 2x2x1    tpu-v4-podslice      tpu-ubuntu2204-base
v4-32        16    4 4 2x2x4    tpu-v4-podslice      tpu-ubuntu2204-base
v5litepod-1   1    1 1 1x1      tpu-v5-lite-podslice v2-alpha-tpuv5-lite
v5litepod-4   4    1 4 2x2      tpu-v5-lite-podslice v2-alpha-tpuv5-lite
v5litepod-8   8    1 8 2x4      tpu-v5-lite-podslice v2-alpha-tpuv5-lite
v5litepod-16 16    4 4 4x4      tpu-v5-lite-podslice v2-alpha-tpuv5-lite
v5p-8         4    1 4 2x2x1    tpu-v5p-slice        v2-alpha-tpuv5
v5p-64       32    8 4 2x4x4    tpu-v5p-slice        v2-alpha-tpuv5
v5p-128      64   16 4 4x4x4    tpu-v5p-slice        v2-alpha-tpuv5
v5p-12288  6144 1536 4 16x16x24 tpu-v5p-slice        v2-alpha-tpuv5
v6e-1         1    1 1 1x1      tpu-v6e-slice        v2-alpha-tpuv6e
v6e-8         8    1 8 2x4      tpu-v6e-slice        v2-alpha-tpuv6e
v6e-256     256   64 4 16x16    tpu-v6e-slice        v2-alpha-tpuv6e
"""
TABLE = """
import slices
for name, part in slices.BY_NAME.items():
    kind = part.generation
    print(name, part.chips, part.hosts, part.chips_per_host, part.topology, kind.gke_accelerator, kind.runtime_version)
"""


@pytest.fixture(scope="module")
def table():
    """Columns of the table by slice name; a subprocess prints them, since the launchers are not a package."""
    done = subprocess.run(
        [sys.executable, "-c", TABLE], cwd=ROOT / "launch", capture_output=True, text=True, check=True
    )
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("line", KNOWN.strip().splitlines(), ids=lambda line: line.split()[0])
def test_slices_known(table, line):
    assert table[line.split()[0]] == line.split()[1:]


def test_slices_chip_counts(table):
    """The chips per host and the topology agree with the number of chips."""
    for name, (chips, hosts, chips_per_host, topology, *_) in table.items():
        assert int(hosts) * int(chips_per_host) == int(chips), name
        assert eval(topology.replace("x", "*")) == int(chips), name


@pytest.mark.parametrize(
    ("name", "type_"), [("v5p:4x4x4", "v5p-128"), ("v5e:4x4", "v5litepod-16"), ("v5e-16", "v5litepod-16")]
)
def test_slices_aliases(name, type_):
    [create] = printed("tpu_vm", "create", "--name=a", "--zone=b", f"--accelerator-type={name}")
    assert flag(create, "accelerator-type") == type_


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("v5p-65", "v5p-64"), ("v6-16", "v6e-16"), ("v5p:4x4x5", "v5p:4x4x8"), ("tpu", "v5p-64")],
)
def test_slices_unknown_name(name, nearest):
    """The error gives the nearest known name."""
    done = launch("tpu_vm", "create", "--name=a", "--zone=b", f"--accelerator-type={name}", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"launch: unknown TPU slice {name!r}; give one such as {nearest!r}\n"
