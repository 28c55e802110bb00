"""Writes the table in docs/tpu.md of which variants of configs/paper.py fit, from reports of `mllmsubj compile`.

    python launch/fit_table.py [--variants=v5p-64,colab-v5e-1] [--steps=train,sample] [--table-only]

A report, in docs/fits/, takes minutes and 10 GB of memory. Existing reports of other variants and steps are kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FITS = ROOT / "docs" / "fits"
PAGE = ROOT / "docs" / "tpu.md"
BEGIN, END = "<!-- launch/fit_table.py writes this -->", "<!-- to here -->"
GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    """Compiles, then writes the table; returns 1 if a report could not be made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", help="by default all")
    parser.add_argument("--steps", default="train,sample")
    parser.add_argument("--table-only", "--table_only", action="store_true", help="compile nothing")
    arguments = parser.parse_args(argv)
    topologies = known_variants()
    asked = arguments.variants.split(",") if arguments.variants else list(topologies)
    if unknown := [name for name in asked if name not in topologies]:
        parser.error(f"unknown variant {unknown[0]!r}; known: {', '.join(topologies)}")
    failed = []
    for variant in [] if arguments.table_only else asked:
        for step in arguments.steps.split(","):
            if step == "train" and variant.startswith("colab"):
                continue  # these variants are for sampling only
            if not compiled(variant, topologies[variant], step):
                failed.append(f"{variant} {step}")
    PAGE.write_text(replaced(PAGE.read_text(), table(topologies)))
    if failed:
        print(f"fit_table: no report of {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


def known_variants() -> dict[str, str]:
    """Returns variant -> topology."""
    sys.path.insert(0, str(ROOT))
    from configs import paper

    return {name: slice_["topology"] for name, slice_ in paper.SLICES.items()} | paper.COLAB


def compiled(variant: str, topology: str, step: str) -> bool:
    """Compiles a step of a variant; returns whether a report was written, even if the step does not fit."""
    FITS.mkdir(parents=True, exist_ok=True)
    path = FITS / f"{variant}-{step}.json"
    path.unlink(missing_ok=True)
    config = f"--config={ROOT / 'configs' / 'paper.py'}:{variant}"
    command = [sys.executable, "-m", "mllmsubj", "compile", config, f"--topology={topology}", f"--step={step}"]
    subprocess.run([*command, f"--json={path}"], cwd=ROOT, check=False)
    return path.is_file()


def table(topologies: dict[str, str]) -> str:
    """Returns the table, one row per report, in the order of the variants."""
    names = ("variant", "slice", "chips", "step", "GiB a chip", "fits", "GB sent a chip", "at best", "of peak")
    rows = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for variant, topology in topologies.items():
        for step in ("train", "sample"):
            path = FITS / f"{variant}-{step}.json"
            if path.is_file():
                rows.append(row(variant, topology, json.loads(path.read_text())))
    return "\n".join(rows)


def row(variant: str, topology: str, found: dict) -> str:
    """Returns the row of one report."""
    need, have = found["peak_bytes_per_chip"] / GIB, found["hbm_bytes_per_chip"] / GIB
    fits = "yes" if found["fits"] else f"no, {need - have:+.1f} GiB"
    speed = "– | –"
    if found["fits"]:
        speed = f"{found['predicted_seconds']:.2f} s | {100 * found['predicted_mfu']:.0f} %"
    where = f"| `{variant}` | {topology} | {found['chips']} | {found['step']}"
    sent = sum(found["collectives"].values()) / 1e9
    return f"{where} | {need:.1f} of {have:.0f} | {fits} | {sent:.1f} | {speed} |"


def replaced(page: str, lines: str) -> str:
    """Returns the page with the table between its marks; raises ValueError if it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the page has no marks {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n{lines}\n{END}{after}"


if __name__ == "__main__":
    sys.exit(main())
