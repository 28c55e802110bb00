"""mllmsubj evaluate --checkpoint=DIR|tiny --benchmark=heldout|toyworld --output=DIR [--seed --limit]
[--config.KEY=VALUE …]

Judges a checkpoint, or the result of a training run: "heldout" with the evaluators that run during training, "toyworld"
by what a probe network reads off pictures of subjects and prompts of the drawn world that training never saw. Writes
metrics.json, samples.png and report.html, which opens offline; earlier results in DIR are replaced. Any key of the
checkpoint's config can be replaced, such as --config.sampling.steps=N, or --config.evals.source=DATA for the data that
"heldout" judges on. On several hosts the same command runs on each.
"""

import logging
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mllmsubj.app.cli import need_train_extra, parse, start_logging
from mllmsubj.app.overrides import divided, overridden
from mllmsubj.evals.benchmarks import BENCHMARKS, check_benchmark
from mllmsubj.evals.results import Results, lines, output_folder, write

if TYPE_CHECKING:
    from mllmsubj.evals.evaluator import Evaluator
    from mllmsubj.experiment import Experiment
    from mllmsubj.train.run import Run

RANDOM = "Not trained yet: {}. These weights are random, and what is below says nothing about the method."


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    known = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    flags.DEFINE_string("checkpoint", "tiny", "checkpoint folder, a run's workdir, or 'tiny'", flag_values=values)
    flags.DEFINE_string("benchmark", None, known, flag_values=values)
    flags.DEFINE_string("output", None, "folder to write", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise; 0 is what training takes", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_integer("limit", None, "examples to judge by, heldout's loss or toyworld's 500", 1, flag_values=values)
    flags.DEFINE_string("probe", None, "folder of toyworld's probe, if not the one that is shipped", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Judges and writes; nothing is written unless all of it was made."""
    argv, overrides = divided(argv)
    parse(values, argv)
    check_benchmark(values.benchmark)
    folder = output_folder(values.output)
    need_train_extra("held-out data are read with")
    if values.limit is not None and values.benchmark == "heldout":
        overrides.append(f"--config.evals.loss.examples={values.limit}")

    start_logging()

    from mllmsubj import distributed  # starts JAX: only after the flags are right
    from mllmsubj.checkpoint import on_first_process
    from mllmsubj.evals.report import page

    distributed.start()
    results = _judged(values, overrides)

    def finish() -> None:
        write(results, page(results), folder)
        found = list(lines(results.numbers))
        width = max(len(line.name) for line in found)
        for line in found:
            print("  ".join(filter(None, (f"{line.name:<{width}}", f"{line.value:.4g}", line.interval, line.beside))))
        print(Path(values.output) / "report.html")

    on_first_process(finish)


@dataclass(frozen=True)
class Plan:
    """A benchmark on one checkpoint, before its weights are read."""

    evaluators: Callable[["Run"], Sequence["Evaluator"]]
    counted: str
    """Name of the one whose examples are the benchmark's; so `drawing`, that draws pictures."""
    drawing: str
    data: str
    steps: int
    """Of its sampler."""


def _heldout(values: flags.FlagValues, experiment: "Experiment") -> Plan:
    from mllmsubj.data.sources import open_source
    from mllmsubj.evals import suite
    from mllmsubj.evals.held_out import SEED, held_out

    data = held_out(experiment)
    open_source(data, SEED)  # what is wrong with it
    steps = experiment.evals.samples.steps or experiment.sampling.steps
    return Plan(lambda run: suite.all_evaluators(run, values.seed), "loss", "samples", data.source, steps)


def _toyworld(values: flags.FlagValues, experiment: "Experiment") -> Plan:
    from mllmsubj.checkpoint import TINY
    from mllmsubj.evals.toyworld.benchmark import EXAMPLES, Toyworld, check_size
    from mllmsubj.evals.toyworld.probe import ProbeReader

    check_size(experiment)
    probe = ProbeReader.load(Path(values.probe) if values.probe else TINY)
    examples = values.limit or EXAMPLES
    name = Toyworld.name
    return Plan(lambda run: [Toyworld(run, probe, values.seed, examples)], name, name, name, experiment.sampling.steps)


PLANS = {"heldout": _heldout, "toyworld": _toyworld}
"""By benchmark."""


def _judged(values: flags.FlagValues, overrides: list[str]) -> Results:
    """What all evaluators say of a checkpoint whose config has these overrides."""
    import jax

    from mllmsubj import checkpoint as checkpoints
    from mllmsubj.evals.evaluator import sort
    from mllmsubj.experiment import Experiment
    from mllmsubj.sharding import make_mesh
    from mllmsubj.train.run import restored
    from mllmsubj.weights import untrained

    folder = checkpoints.folder_of(values.checkpoint)
    config = overridden(checkpoints.read_config(folder), overrides)
    experiment = Experiment.from_config(config)
    plan = PLANS[values.benchmark](values, experiment)
    mesh = make_mesh(**asdict(experiment.mesh))
    with jax.set_mesh(mesh):
        run, params = restored(experiment, folder, mesh)
        evaluators = plan.evaluators(run)
        for each in evaluators:
            logging.getLogger("mllmsubj").info("%s: %d held-out examples", each.name, each.examples)
        numbers, pictures, texts = sort(chain.from_iterable(each.run(params) for each in evaluators))
    counts = {each.name: each.examples for each in evaluators}
    return Results(
        benchmark=values.benchmark,
        checkpoint=values.checkpoint,
        fingerprint=checkpoints.fingerprint(folder),
        seed=values.seed,
        examples=counts[plan.counted],
        settings={
            "data": f"{plan.data}, held-out",
            "pictures": f"{counts[plan.drawing]}, {_sampler(experiment, plan.steps)}",
            "machine": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {run.model.compute.dtype}",
            "made by": f"mllmsubj {version('mllmsubj')}",
        },
        config=checkpoints.config_text(config),
        numbers=numbers,
        pictures=pictures,
        texts=texts,
        meanings=ChainMap(*(dict(each.meanings) for each in evaluators)),
        caution=RANDOM.format(", ".join(missing)) if (missing := untrained(folder)) else "",
    )


def _sampler(experiment: "Experiment", steps: int) -> str:
    """On one line."""
    sampling = experiment.sampling
    size, taus = f"{sampling.width} × {sampling.height}", f"τ1 {sampling.tau1:g}, τ2 {sampling.tau2:g}"
    return f"{size}, {steps} steps, {taus}, guidance {sampling.guidance:g}"
