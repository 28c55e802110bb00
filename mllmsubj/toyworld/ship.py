"""`make assets`: rewrites the shipped checkpoint's config and tokenizers from configs/tiny.py.

    python -m mllmsubj.toyworld.ship --subject=RUN

copies the parameters that both stages trained, with their scores, into the shipped component "subject". RUN is the
workdir of `mllmsubj train --config=tiny`.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from mllmsubj.checkpoints import components
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.format import config_text
from mllmsubj.config.load import load_config
from mllmsubj.data.byte_tokenizer import save_tokenizers
from mllmsubj.toyworld import Split, caption, example
from mllmsubj.toyworld.prompts.questions import DESCRIBE, QUESTIONS, answer

ASSETS = Path(__file__).parents[1] / "assets"
TOKENIZER_EXAMPLES = 5000
"""Number of toyworld examples whose texts the tokenizers are trained on."""
REGRESSION_EXAMPLES = 64
"""Number of examples that tests/toyworld/pretrain/test_shipped.py evaluates again."""


def texts(system: str) -> Iterator[str]:
    """Yields texts like the inputs and outputs of the tiny model."""
    for i in range(TOKENIZER_EXAMPLES):
        drawn = example(Split.TRAIN, i, pose_randomness=1.0, other=0.0)  # any pose, so that all its words occur
        yield from (drawn.prompt.text, "\n" + drawn.prompt.text, caption(drawn.target.identity, drawn.target.scene))
        yield from (system, "system\n", "user\n", "assistant\n", "\n" + DESCRIBE)
        yield from (f"\n{question}" for question in QUESTIONS.values())
        yield from (answer(drawn.reference, name) for name in QUESTIONS)


def write_config() -> None:
    """Writes the config and the tokenizers to `assets/tiny`."""
    config = load_config("tiny")
    (ASSETS / "tiny" / "config.json").write_text(config_text(config))
    save_tokenizers(ASSETS / "tiny", texts(config.prompt.system))


def ship_subject(run: Path) -> None:
    """Writes the trained parameters of a run to the shipped checkpoint, then evaluates it and adds the metrics."""
    import jax

    from mllmsubj.checkpoints.export import trained_params
    from mllmsubj.config.schema import Experiment
    from mllmsubj.evals.benchmarks import EvaluationRequest
    from mllmsubj.evals.evaluation import evaluate_checkpoint

    folder = checkpoint.folder_of(run)
    config = checkpoint.read_config(folder)
    trained = trained_params(folder, Experiment.from_config(config))
    about = {
        "part": components.SUBJECT,
        "seed": config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "seconds": seconds(run),
        "data": {"examples": config.data.examples, "source": config.data.source},
        "train": json.loads(config_text(config.train)),
    }
    components.write(checkpoint.TINY, components.SUBJECT, trained, about)
    shipped_config = checkpoint.read_config(checkpoint.TINY)
    for name, limit in (("metrics", None), ("guarded", REGRESSION_EXAMPLES)):
        about[name] = dict(
            evaluate_checkpoint("tiny", shipped_config, EvaluationRequest("toyworld", limit=limit)).metrics()
        )
    components.write(checkpoint.TINY, components.SUBJECT, trained, about)


def seconds(run: Path) -> int:
    """Returns the duration of a run's steps in seconds, computed from the speeds in `metrics.jsonl`."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    reports = [line for line in lines if "steps_per_sec" in line]
    steps = [0, *(line["step"] for line in reports)]
    return round(
        sum((now - then) / line["steps_per_sec"] for then, now, line in zip(steps, steps[1:], reports, strict=False))
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subject", type=Path, help="workdir of a run to ship")
    if run := parser.parse_args().subject:
        ship_subject(run)
    else:
        write_config()
