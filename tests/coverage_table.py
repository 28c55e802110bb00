"""Coverage of lines and branches by package, from coverage.py's JSON report.

    python -m tests.coverage_table FILE [OTHER]

With OTHER, the report of another tree, each row has the difference in percentage points and the exit code is 1 where a
package has lost more than one.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def by_package(report: Path) -> dict[str, tuple[float, float]]:
    """Package below mllmsubj ("." for its own modules) -> percentages of lines and of branches that were run."""
    sums: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTS, 0))
    for file, found in json.loads(report.read_text())["files"].items():
        below = Path(file[file.rindex("mllmsubj/") :]).parts[1:]
        for package in (below[0] if len(below) > 1 else ".", "all"):
            for count in COUNTS:
                sums[package][count] += found["summary"][count]
    return {package: (_share(s, COUNTS[:2]), _share(s, COUNTS[2:])) for package, s in sorted(sums.items())}


def _share(sums: dict[str, int], names: tuple[str, ...]) -> float:
    total, covered = (sums[name] for name in names)
    return 100 * covered / total if total else 100.0


def main(paths: list[str]) -> int:
    """Prints the table; returns the exit code."""
    now = by_package(Path(paths[0]))
    before = by_package(Path(paths[1])) if len(paths) > 1 else now
    print(f"{'package':<12} {'lines':>7} {'branches':>9}" + (f" {'lines':>8} {'branches':>9}" if before != now else ""))
    lost = False
    for package, shares in now.items():
        row = f"{package:<12} {shares[0]:>7.1f} {shares[1]:>9.1f}"
        if package in before and before != now:
            changes = [a - b for a, b in zip(shares, before[package], strict=True)]
            lost |= min(changes) < -1
            row += f" {changes[0]:>+8.1f} {changes[1]:>+9.1f}"
        print(row)
    return int(lost)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
