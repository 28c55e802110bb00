import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mllmsubj.compile.hlo import Module, PeakRates
from mllmsubj.ops.splash import splash_attend
from mllmsubj.parallel.topologies import compile_there, find_slice

LAYERS, ROWS, WIDTH = 7, 1024, 512
ROOF = PeakRates(197e12, 819e9, 200e9)


def work(mesh, function, *args):
    """Returns the work of a function that is compiled for `mesh`; `args` are (shape, spec) of bfloat16 arrays."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec)) for shape, spec in args]
    return Module(compile_there(jax.jit(function).lower(*shapes)).as_text()).work(ROOF)


def layers(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def test_work_loop_flops(mesh):
    """The body of a loop counts once per iteration."""
    found = work(mesh, layers, ((ROWS, WIDTH), PartitionSpec("fsdp")), ((LAYERS, WIDTH, WIDTH), PartitionSpec()))
    assert found.flops == 2 * LAYERS * ROWS / 4 * WIDTH**2
    assert found.collectives == {}
    assert found.seconds >= found.flops / ROOF.flops
    assert found.cycles > 0


def test_work_gathered_weights(mesh):
    """Gathered weights count as traffic once per layer."""
    spec = PartitionSpec(None, "fsdp")
    found = work(mesh, layers, ((ROWS, WIDTH), PartitionSpec("fsdp")), ((LAYERS, WIDTH, WIDTH), spec))
    assert found.flops == 2 * LAYERS * ROWS / 4 * WIDTH**2
    sent = sum(found.collectives.values())
    # Three quarters of each kernel come from the other chips, by whichever collective the compiler chooses.
    assert sent == pytest.approx(LAYERS * WIDTH * WIDTH * 2 * 3 / 4, rel=0.35)


def test_work_contraction_collectives(mesh):
    """A contraction over a sharded axis needs an all-reduce, or the collectives that replace it."""
    found = work(
        mesh, lambda x, y: x @ y, ((ROWS, ROWS), PartitionSpec(None, "fsdp")), ((ROWS, WIDTH), PartitionSpec("fsdp"))
    )
    assert found.flops == 2 * ROWS * ROWS / 4 * WIDTH
    assert set(found.collectives) & {"all-reduce", "reduce-scatter", "all-gather", "collective-permute"}


@pytest.mark.parametrize("stride", [1, 2])
def test_work_convolution_flops(mesh, stride):
    """Multiplications with padding are not counted."""
    rows, side, channels = 16, 32, 128  # with fewer rows the compiler splits images, which adds borders
    kernel = (3, 3, channels, channels)
    found = work(
        mesh,
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (stride, stride), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        ((4 * rows, side, side, channels), PartitionSpec("fsdp")),
        (kernel, PartitionSpec()),
    )
    along = sum(0 <= o * stride + tap - 1 < side for o in range(side // stride) for tap in range(3))
    assert found.flops == 2 * rows * along**2 * channels**2


def test_work_loop_bytes(mesh):
    """A loop reads one layer per iteration."""
    wide = 4096
    found = work(mesh, layers, ((64, wide), PartitionSpec("fsdp")), ((LAYERS, wide, wide), PartitionSpec()))
    assert found.bytes == pytest.approx(LAYERS * wide * wide * 2, rel=0.2)


def test_work_elementwise_bytes(mesh):
    """The traffic of an elementwise operation is its input plus its output."""
    big = (64 * 1024, 4096)  # half a GB, which does not fit into on-chip memory
    found = work(mesh, lambda x: x * 2 + 1, (big, PartitionSpec("fsdp")))
    assert found.bytes == pytest.approx(2 * big[0] * big[1] * 2 / 4)
    assert found.seconds == pytest.approx(found.bytes / ROOF.hbm)


def test_work_prefetched_slice():
    """A prefetched slice counts as the slice and not as its whole input.

    In the text that XLA writes for TPUs, slice-start returns its input, then the slice, here in on-chip memory.
    """
    lines = """HloModule test

ENTRY %main (p: s8[4096,1024]) -> s8[1024,1024] {
  %p = s8[4096,1024]{1,0:T(8,128)(4,1)} parameter(0)
  %s = ((s8[4096,1024]{1,0:T(8,128)}), s8[1024,1024]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1024]}
  ROOT %d = s8[1024,1024]{1,0:T(8,128)(4,1)S(1)} slice-done(%s)
}
"""
    assert Module(lines).work(ROOF).bytes == 1024 * 1024


def test_work_slice_of_aliased_copy():
    """A slice of a copy in place counts as the slice, in the form that XLA for TPUs writes reads of an 8-bit stack."""
    lines = """HloModule test

%copied (a: s8[38,512,1024]) -> s8[38,512,1024] {
  %a = s8[38,512,1024]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[38,512,1024]{2,1,0:T(8,128)(4,1)} copy(%a)
}

%sliced (x: s8[38,512,1024], i: s32[]) -> s8[1,512,1024] {
  %x = s8[38,512,1024]{2,1,0:T(32,128)(4,1)} parameter(0)
  %f = s8[38,512,1024]{2,1,0:T(8,128)(4,1)} fusion(%x), output_to_operand_aliasing={{}: (0, {})}, calls=%copied
  %i = s32[]{:T(128)} parameter(1)
  %o = s32[]{:T(128)} constant(0)
  ROOT %d = s8[1,512,1024]{2,1,0:T(8,128)(4,1)} dynamic-slice(%f, %i, %o, %o), dynamic_slice_sizes={1,512,1024}
}

ENTRY %main (p: s8[38,512,1024], j: s32[]) -> s8[1,512,1024] {
  %p = s8[38,512,1024]{2,1,0:T(32,128)(4,1)} parameter(0)
  %j = s32[]{:T(128)} parameter(1)
  ROOT %r = s8[1,512,1024]{2,1,0:T(32,128)(4,1)S(1)} fusion(%p, %j), kind=kLoop, calls=%sliced
}
"""
    assert Module(lines).work(ROOF).bytes == pytest.approx(512 * 1024, abs=8)


@pytest.mark.parametrize("rows", [1, 2])
def test_work_splash_attention_flops(rows):
    """FLOPs of the attention kernel are counted with and without a batch axis; a batch of one has none."""
    heads, queries, keys, channels = 2, 1024, 2048, 128

    def attend(*qkv):
        return splash_attend(*qkv, None, split=PartitionSpec(None, None, None, None))

    def lowered():
        device = NamedSharding(jax.sharding.Mesh([find_slice("v5e:2x2").devices[0]], ("fsdp",)), PartitionSpec())
        shapes = [(rows, tokens, heads, channels) for tokens in (queries, keys, keys)]
        arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=device) for shape in shapes]
        return jax.jit(attend).lower(*arrays)

    found = Module(compile_there(lowered()).as_text()).work(ROOF)
    assert found.flops == 4 * rows * heads * queries * keys * channels
