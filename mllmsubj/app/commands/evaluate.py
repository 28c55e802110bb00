"""mllmsubj evaluate --checkpoint=DIR|tiny --benchmark=heldout --output=DIR [--seed --limit] [--config.KEY=VALUE …]

Judges a checkpoint, or the result of a training run, with the evaluators that run during training. Writes metrics.json,
samples.png and report.html, which opens offline; earlier results in DIR are replaced. Any key of the checkpoint's
config can be replaced, such as --config.evals.source=DATA for the data to judge on. On several hosts the same command
runs on each.
"""

import logging
from collections import ChainMap
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mllmsubj.app.cli import need_train_extra, parse, start_logging
from mllmsubj.app.overrides import divided, overridden
from mllmsubj.evals.benchmarks import BENCHMARKS, check_benchmark
from mllmsubj.evals.results import Results, output_folder, write

if TYPE_CHECKING:
    from mllmsubj.experiment import Experiment

RANDOM = "This checkpoint has no trained weights yet: they are random, and what is below says nothing about the method."


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    known = "; ".join(f"{name}: {what}" for name, what in BENCHMARKS.items())
    flags.DEFINE_string("checkpoint", "tiny", "checkpoint folder, a run's workdir, or 'tiny'", flag_values=values)
    flags.DEFINE_string("benchmark", None, known, flag_values=values)
    flags.DEFINE_string("output", None, "folder to write", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the noise; 0 is what training takes", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_integer("limit", None, "examples that the loss is taken over", 1, flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Judges and writes; nothing is written unless all of it was made."""
    argv, overrides = divided(argv)
    parse(values, argv)
    check_benchmark(values.benchmark)
    folder = output_folder(values.output)
    need_train_extra("held-out data are read with")
    if values.limit is not None:
        overrides.append(f"--config.evals.loss.examples={values.limit}")

    start_logging()

    from mllmsubj import distributed  # starts JAX: only after the flags are right
    from mllmsubj.checkpoint import on_first_process
    from mllmsubj.evals.report import page

    distributed.start()
    results = _judged(values.checkpoint, values.benchmark, values.seed, overrides)

    def finish() -> None:
        write(results, page(results), folder)
        width = max(map(len, results.numbers))
        for name, value in results.numbers.items():
            print(f"{name:<{width}}  {value:.4g}")
        print(Path(values.output) / "report.html")

    on_first_process(finish)


def _judged(checkpoint: str, benchmark: str, seed: int, overrides: list[str]) -> Results:
    """What all evaluators say of a checkpoint whose config has these overrides."""
    import jax

    from mllmsubj import checkpoint as checkpoints
    from mllmsubj.data.sources import open_source
    from mllmsubj.evals.evaluator import sort
    from mllmsubj.evals.held_out import SEED, held_out
    from mllmsubj.evals.suite import all_evaluators
    from mllmsubj.experiment import Experiment
    from mllmsubj.sharding import make_mesh
    from mllmsubj.train.run import restored

    folder = checkpoints.folder_of(checkpoint)
    config = overridden(checkpoints.read_config(folder), overrides)
    experiment = Experiment.from_config(config)
    data = held_out(experiment)
    open_source(data, SEED)  # what is wrong with it, before weights are read
    mesh = make_mesh(**asdict(experiment.mesh))
    with jax.set_mesh(mesh):
        run, params = restored(experiment, folder, mesh)
        evaluators = all_evaluators(run, seed)
        for each in evaluators:
            logging.getLogger("mllmsubj").info("%s: %d held-out examples", each.name, each.examples)
        numbers, pictures, texts = sort(chain.from_iterable(each.run(params) for each in evaluators))
    counts = {each.name: each.examples for each in evaluators}
    return Results(
        benchmark=benchmark,
        checkpoint=checkpoint,
        fingerprint=checkpoints.fingerprint(folder),
        seed=seed,
        examples=counts["loss"],
        settings={
            "data": f"{data.source}, held-out",
            "pictures": f"{counts['samples']}, {_sampler(experiment)}",
            "machine": f"{jax.device_count()} × {jax.devices()[0].device_kind}, {run.model.compute.dtype}",
            "made by": f"mllmsubj {version('mllmsubj')}",
        },
        config=checkpoints.config_text(config),
        numbers=numbers,
        pictures=pictures,
        texts=texts,
        meanings=ChainMap(*(dict(each.meanings) for each in evaluators)),
        caution="" if checkpoints.has_params(folder) else RANDOM,
    )


def _sampler(experiment: "Experiment") -> str:
    """On one line."""
    sampling, steps = experiment.sampling, experiment.evals.samples.steps or experiment.sampling.steps
    size, taus = f"{sampling.width} × {sampling.height}", f"τ1 {sampling.tau1:g}, τ2 {sampling.tau2:g}"
    return f"{size}, {steps} steps, {taus}, guidance {sampling.guidance:g}"
