"""Compiles a step for a TPU slice ahead of time, without the TPU and without weights.

mllmsubj compile --config=FILE[:VARIANT] --topology=v5p:4x4x4 --step=train|sample|encode [--json=FILE]

Reports whether the step fits, its best possible speed, and the communication between chips. Exits with 2 if it does
not fit. train: both programs of a training step, the frozen encoders and the update; sample: one batch of images;
encode: the frozen encoders alone.
"""

import json
import os
from pathlib import Path
from typing import Any

from absl import flags

from mllmsubj.cli.main import require_train_extra
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.errors import UserError
from mllmsubj.io import writing

GIB = 2**30


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config, by name or file, such as paper:v5p-64", flag_values=values)
    flags.DEFINE_string("topology", None, "slice, such as v5p:4x4x4; by default that of the config", flag_values=values)
    flags.DEFINE_enum("step", "train", ["train", "sample", "encode"], "program to compile", flag_values=values)
    flags.DEFINE_string("json", None, "file to write the report to", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Compiles, prints the report, and writes it with --json."""
    argv, overrides = split_overrides(argv)
    parse(values, argv)
    for name in ("config", "topology"):
        if not values[name].value:
            raise UserError(f"no {name}; start with mllmsubj compile --config=paper:v5p-64 --topology=v5p:2x4x4")
    if values.json and not Path(values.json).absolute().parent.is_dir():
        raise UserError(f"cannot write {values.json!r}: its folder does not exist")
    require_train_extra("compiling needs")
    os.environ["JAX_PLATFORMS"] = "cpu"  # compiling needs no accelerator of this machine

    from mllmsubj.compile.report import report
    from mllmsubj.config.load import load_config
    from mllmsubj.config.schema import Experiment
    from mllmsubj.parallel.topologies import find_slice

    config = apply_overrides(load_config(values.config), overrides)
    found = report(values.step, Experiment.from_config(config), find_slice(values.topology))
    print("\n".join(lines(found)))
    if values.json:
        with writing(Path(values.json)) as partial:
            partial.write_text(json.dumps(found, indent=2) + "\n")
    if not found["fits"]:
        over = found["peak_bytes_per_chip"] - found["hbm_bytes_per_chip"]
        raise UserError(
            f"{values.config} --step={values.step} does not fit {values.topology}: "
            f"{found['peak_bytes_per_chip'] / GIB:.1f} GiB a chip of {found['hbm_bytes_per_chip'] / GIB:.0f}, "
            f"{over / GIB:+.1f}; take more chips, a smaller batch or train.grad_accum_steps"
        )


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the lines of the report."""
    table = [f"{found['step']} on {found['topology']}: {found['chips']} chips, mesh {found['mesh']}"]
    for row in found["programs"]:
        seconds = "does not fit" if row["predicted_seconds"] is None else f"{row['predicted_seconds']:8.3f} s"
        table.append(
            f"  {row['name']:<10}{row['peak_bytes'] / GIB:7.2f} GiB a chip "
            f"(arguments {row['argument_bytes'] / GIB:.2f}, temporaries {row['temporary_bytes'] / GIB:.2f}, "
            f"others {row['resident_bytes'] / GIB:.2f}){row['model_flops'] / 1e12:10.1f} TFLOP {seconds}"
        )
    sent = ", ".join(f"{kind} {count / 1e9:.2f} GB" for kind, count in found["collectives"].items())
    table.append(f"  collectives a chip: {sent or 'none'}")
    verdict = "fits" if found["fits"] else "does not fit"
    table.append(
        f"  {verdict}: {found['peak_bytes_per_chip'] / GIB:.2f} of {found['hbm_bytes_per_chip'] / GIB:.0f} GiB a chip"
    )
    if found["predicted_seconds"] is not None:
        table.append(
            f"  at best {found['predicted_seconds']:.3f} s, {100 * found['predicted_mfu']:.0f} % of peak "
            f"(a roofline; compiled in {found['compile_seconds']:.0f} s)"
        )
    return table
