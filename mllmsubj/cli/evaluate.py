"""Evaluates a checkpoint, or the result of a training run, on held-out data.

mllmsubj evaluate --checkpoint=DIR|tiny --benchmark=heldout|toyworld --output=DIR [--seed --limit]
[--config.KEY=VALUE …]

"heldout" runs the evaluators that run during training. "toyworld" generates images of held-out subjects and prompts of
toyworld, whose attributes a probe network scores. Writes metrics.json, samples.png and report.html, which opens
offline; earlier results in DIR are replaced. Any key of the checkpoint's config can be replaced, such as
--config.sampling.steps=N, or --config.evals.source=DATA for the data of "heldout". On several hosts the same command
runs on each.
"""

from pathlib import Path

from absl import flags

from mllmsubj.cli.main import require_train_extra, start_logging
from mllmsubj.config.overrides import apply_overrides, parse, split_overrides
from mllmsubj.evals.benchmarks import check_benchmark, names


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("checkpoint", "tiny", "checkpoint folder, a run's workdir, or 'tiny'", flag_values=values)
    flags.DEFINE_string("benchmark", None, " or ".join(names()), flag_values=values)
    flags.DEFINE_string("output", None, "folder to write", flag_values=values)
    flags.DEFINE_integer("seed", 0, "seed of the noise; training uses 0", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_integer(
        "limit", None, "number of examples: of heldout's loss, or of toyworld's 500", 1, flag_values=values
    )
    flags.DEFINE_string("probe", None, "folder of toyworld's probe, by default the shipped one", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Evaluates and writes; nothing is written unless the whole evaluation succeeded."""
    argv, overrides = split_overrides(argv)
    parse(values, argv)

    from mllmsubj.evals.results import lines, output_folder, write  # imports numpy, which --help does not need

    check_benchmark(values.benchmark)
    folder = output_folder(values.output)
    require_train_extra("held-out data are read with")
    if values.limit is not None and values.benchmark == "heldout":
        overrides.append(f"--config.evals.loss.examples={values.limit}")

    start_logging()

    from mllmsubj.checkpoints.format import folder_of, read_config
    from mllmsubj.evals.benchmarks import EvaluationRequest
    from mllmsubj.evals.evaluation import evaluate_checkpoint
    from mllmsubj.evals.report import page
    from mllmsubj.parallel import multihost
    from mllmsubj.parallel.multihost import on_first_process

    multihost.start()
    config = apply_overrides(read_config(folder_of(values.checkpoint)), overrides)
    probe = Path(values.probe) if values.probe else None
    results = evaluate_checkpoint(
        values.checkpoint, config, EvaluationRequest(values.benchmark, values.seed, values.limit, probe)
    )

    def finish() -> None:
        write(results, page(results), folder)
        found = list(lines(results.numbers))
        width = max(len(line.name) for line in found)
        for line in found:
            print(
                "  ".join(
                    filter(None, (f"{line.name:<{width}}", f"{line.value:.4g}", line.interval, line.reference_value))
                )
            )
        print(Path(values.output) / "report.html")

    on_first_process(finish)
