"""Report of a step on a slice: memory use, work and predicted speed. No TPU is needed.

The prediction is a roofline over the compiled program: each instruction at the chip's public peak of whatever limits
it (FLOP/s or HBM bytes/s), times loop iterations; collectives at the peak of all links, hidden behind the other work of
the same loop body if they are shorter. It omits what keeps an instruction below its peak (partially filled tiles,
vector arithmetic, a kernel's own overhead), waiting between instructions, the host and input.
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

from mllmsubj.compile.hlo import Module, PeakRates, Work
from mllmsubj.compile.programs import OutOfMemoryError, Program, Step, compile_programs
from mllmsubj.config.schema import Experiment
from mllmsubj.parallel.chips import GIB, Chip
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.parallel.topologies import Slice

RESERVED = 0.025
"""Fraction of HBM that programs cannot use: libtpu leaves 15.75 of a v5e's 16 GiB, 31.25 of a v6e's 32."""


@dataclass(frozen=True)
class ProgramReport:
    """Report of one program; bytes, FLOPs and collectives are per chip."""

    name: str
    peak_bytes: int
    """Peak memory, including `resident_bytes`."""
    argument_bytes: int
    temporary_bytes: int
    resident_bytes: int
    model_flops: int
    """Model FLOPs over all chips."""
    compiled_flops: int
    """FLOPs of the compiled program, including rematerialization and work that several chips repeat."""
    hbm_bytes: int
    collectives: dict[str, int]
    compiler_cycles: int
    """Cycles that the compiler estimates, without custom kernels: a cross-check of `predicted_seconds`."""
    predicted_seconds: float | None
    """Predicted time of a run; None if the program does not fit."""
    compile_seconds: float


def report(step: Step, experiment: Experiment, where: Slice) -> dict[str, Any]:
    """Returns the report that `mllmsubj compile` prints.

    Raises UserError for a mesh or batch that does not divide.
    """
    mesh = make_mesh(**asdict(experiment.mesh), devices=list(where.devices))
    rows: list[ProgramReport] = []
    try:
        rows.extend(_row(program, where.chip) for program in compile_programs(step, experiment, mesh))
    except OutOfMemoryError as error:
        rows.append(_failed(error, where.chip))
    fits = all(row.peak_bytes <= where.chip.hbm_bytes * (1 - RESERVED) for row in rows)
    flops = sum(row.model_flops for row in rows)
    known = [row.predicted_seconds for row in rows if row.predicted_seconds is not None]
    seconds = sum(known) if len(known) == len(rows) else None
    return {
        "topology": where.name,
        "step": step,
        "chips": where.chips,
        "mesh": dict(mesh.shape),
        "fits": fits,
        "peak_bytes_per_chip": max(row.peak_bytes for row in rows),
        "hbm_bytes_per_chip": where.chip.hbm_bytes,
        "model_flops": flops,
        "predicted_seconds": seconds,
        "predicted_mfu": flops / (seconds * where.chip.flops * where.chips) if seconds else None,
        "compile_seconds": sum(row.compile_seconds for row in rows),
        "collectives": _added([row.collectives for row in rows]),
        "programs": [asdict(row) for row in rows],
    }


def _row(program: Program, chip: Chip) -> ProgramReport:
    memory: Any = program.compiled.memory_analysis()
    work = _work(program, chip)
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Temporaries are not all live at once, so their sum can exceed the memory; the compiler reports the actual peak.
    own = memory.peak_memory_in_bytes or arguments + temporary + results
    own += memory.generated_code_size_in_bytes
    return ProgramReport(
        name=program.name,
        peak_bytes=chip.devices * (own + program.resident),
        argument_bytes=chip.devices * arguments,
        temporary_bytes=chip.devices * temporary,
        resident_bytes=chip.devices * program.resident,
        model_flops=program.flops,
        compiled_flops=chip.devices * work.flops,
        hbm_bytes=chip.devices * work.bytes,
        collectives={kind: round(chip.devices * sent) for kind, sent in sorted(work.collectives.items())},
        compiler_cycles=round(work.cycles),
        predicted_seconds=work.seconds,
        compile_seconds=program.seconds,
    )


def _work(program: Program, chip: Chip) -> Work:
    n = chip.devices
    roof = PeakRates(chip.flops / n, chip.hbm_bandwidth / n, chip.link_bandwidth / 2 / n)
    text = program.compiled.as_text()
    assert text is not None
    return Module(text).work(roof)


def _failed(error: OutOfMemoryError, chip: Chip) -> ProgramReport:
    """Returns the row of a program that does not fit, from "Used 20.79G of 15.75G hbm" or "(64.00G) exceeds"."""
    name, message, seconds = error.args
    used = re.search(r"(?:Used |\()([\d.]+)([KMG])(?: of [\d.]+[KMG] hbm|\) exceeds)", message)
    scale = {"K": 2**10, "M": 2**20, "G": GIB}
    need = round(float(used[1]) * scale[used[2]]) if used else chip.hbm_bytes + 1
    return ProgramReport(name, chip.devices * need, 0, 0, 0, 0, 0, 0, {}, 0, None, seconds)


def _added(parts: list[dict[str, int]]) -> dict[str, int]:
    kinds = sorted({kind for part in parts for kind in part})
    return {kind: sum(part.get(kind, 0) for part in parts) for kind in kinds}
