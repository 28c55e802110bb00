"""Runs the whole method on this machine, in minutes.

mllmsubj demo [--workdir=demo] [--reference=IMG] [--prompt=TEXT]

Trains both stages for a few steps on the shipped frozen components, evaluates the result and the shipped model on
held-out subjects and prompts, and generates an image of your own subject (scikit-image's cat by default) with the
shipped model. Writes report.html, reference.png and picture.png into WORKDIR, and the training run into WORKDIR/run.
The same command resumes an interrupted training.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from PIL import Image

from mllmsubj.cli.files import workdir_path
from mllmsubj.cli.main import require_train_extra, start_logging
from mllmsubj.config.overrides import parse
from mllmsubj.errors import UserError
from mllmsubj.io import write_png, writing

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mllmsubj.toyworld.paper_tables.report import RowResult


STEPS = (80, 100)
"""Steps of the two stages."""
BATCH_SIZE = 8
WARMUP = 20
"""Warm-up steps of each stage."""
EXAMPLES = 48
"""Held-out examples that each model is evaluated on."""
LEAD = (
    "The method on toyworld, after minutes of training and as shipped. Both models are evaluated on subjects and "
    "prompts that training never saw."
)
ASKS = "Inputs are a reference and a prompt; a probe network scores the attributes of the generated image."


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", "demo", "folder to write to", flag_values=values)
    flags.DEFINE_string("reference", None, "image of the subject, instead of the cat", flag_values=values)
    flags.DEFINE_string(
        "prompt", "the cat in the picture, on the moon", "text of the image to generate", flag_values=values
    )


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains, evaluates, generates, and prints the files."""
    parse(values, argv)
    workdir = workdir_path(values.workdir)
    require_train_extra("the demo trains and needs")
    start_logging()

    from mllmsubj.checkpoints.format import TINY, read_config
    from mllmsubj.cli.train import exit_if_preempted
    from mllmsubj.config.schema import Experiment
    from mllmsubj.data.images import open_image
    from mllmsubj.evals.suite import evaluators
    from mllmsubj.inference.pipeline import Pipeline
    from mllmsubj.inference.request import RequestReader
    from mllmsubj.train.loop import train

    photograph = open_image(values.reference) if values.reference else _cat()
    # Raises errors in the request before training.
    RequestReader(Experiment.from_config(read_config(TINY)), TINY)([photograph], values.prompt, 1, 0)
    config = short_config()
    print(f"1/3  both stages of training, {STEPS[0]} + {STEPS[1]} steps of {BATCH_SIZE}", file=sys.stderr)
    with exit_if_preempted():
        train(config, workdir / "run", evaluators)
    print(f"2/3  {EXAMPLES} images of each of the trained and the shipped model, evaluated", file=sys.stderr)
    report(workdir, config)
    print("3/3  an image of your subject, by the shipped model", file=sys.stderr)
    result = Pipeline.load("tiny").generate(photograph, values.prompt, progress=sys.stderr.isatty())
    result.save(workdir / "picture.png")
    write_png(photograph, workdir / "reference.png")
    print(f"reference  {workdir / 'reference.png'}")
    print(f"prompt     {values.prompt}")
    print(f"image      {workdir / 'picture.png'}")
    print(f"report     {workdir / 'report.html'}")


def short_config() -> "ConfigDict":
    """Returns the shipped model's config with fewer steps and no evaluation during training."""
    from mllmsubj.checkpoints.format import TINY, read_config

    config = read_config(TINY)
    train = config.train
    train.batch_size = BATCH_SIZE
    for stage, steps in zip((train.stage1, train.stage2), STEPS, strict=True):
        stage.update(steps=steps, warmup_steps=WARMUP, decay_steps=steps // 4)
    train.ema_decay = 0.98
    config.evals.loss.every_steps = config.evals.samples.every_steps = 0
    return config


def report(workdir: Path, config: "ConfigDict") -> None:
    """Evaluates the run in `WORKDIR/run` and the shipped model, and writes and prints their table."""
    from mllmsubj.checkpoints.format import config_text
    from mllmsubj.toyworld.paper_tables.report import TableResult, as_text, page
    from mllmsubj.toyworld.paper_tables.tables import Row, Table

    rows = (
        Row(f"trained here, {sum(STEPS)} steps of {BATCH_SIZE}", {"train.stage2.steps": STEPS[1]}),
        Row("shipped", {}),
    )
    found, facts = zip(*(_found(checkpoint) for checkpoint in (workdir / "run", "tiny")), strict=True)
    filled = [TableResult(Table("Scores on held-out subjects", ASKS, rows), found)]
    with writing(workdir / "report.html") as partial:
        partial.write_text(page("mllmsubj demo", LEAD, filled, facts[-1], config_text(config)), encoding="utf-8")
    print(as_text(filled), end="")


def _found(checkpoint: str | Path) -> "tuple[RowResult, dict[str, str]]":
    """Evaluates a checkpoint; returns its metrics and images, and the settings of the evaluation."""
    from mllmsubj.checkpoints.format import folder_of, read_config
    from mllmsubj.config.schema import Experiment
    from mllmsubj.evals.benchmarks import EvaluationRequest
    from mllmsubj.evals.evaluation import evaluate_checkpoint
    from mllmsubj.toyworld.benchmark.benchmark import first_prompts
    from mllmsubj.toyworld.paper_tables.report import RowResult

    config = read_config(folder_of(checkpoint))
    results = evaluate_checkpoint(checkpoint, config, EvaluationRequest("toyworld", limit=EXAMPLES))
    prompts = first_prompts(Experiment.from_config(config), len(results.images["samples"]))
    return RowResult(results.numbers, results.images["samples"], prompts), dict(results.settings)


def _cat() -> Image.Image:
    try:
        from skimage import data
    except ImportError as error:
        raise UserError("the demo's photograph comes with scikit-image: install it, or give --reference=IMG") from error
    return Image.fromarray(data.chelsea())
