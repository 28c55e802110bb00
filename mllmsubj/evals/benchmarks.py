"""What `mllmsubj evaluate` can judge a checkpoint by."""

from mllmsubj.errors import UserError, nearest

BENCHMARKS = {
    "heldout": "the config's held-out data: training loss by condition mode, and sample pictures",
    "toyworld": "held-out subjects and prompts of the drawn world: identity, prompt following, pose copying",
}
"""Name -> what it is."""


def check_benchmark(name: str | None) -> None:
    """Raises UserError for one that is not there, or none."""
    if name not in BENCHMARKS:
        wrong = f"unknown benchmark {name!r}{nearest(name, BENCHMARKS)}" if name else "no benchmark"
        raise UserError(f"{wrong}; there are {', '.join(BENCHMARKS)}: --benchmark=heldout")
