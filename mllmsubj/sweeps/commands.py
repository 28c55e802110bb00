"""Commands that each run of a sweep requires, as jobs that detect whether they are done."""

import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.io import replacing
from mllmsubj.sweeps.jobs import Job
from mllmsubj.sweeps.names import word
from mllmsubj.sweeps.plan import Record, SweepRun
from mllmsubj.train.workdir import is_locked

LOCAL_PREFIX = (sys.executable, "-m")
"""Prefix of a command that runs on this machine, in this Python."""
COMMAND_FILE = "evaluation.json"
"""File with the command behind `eval/`, which its metrics do not fully record; a different command is run again."""


@dataclass(frozen=True)
class Commands:
    """Arguments of a sweep, and the commands made from them."""

    workdir: Path
    config: str | None
    """FILE[:VARIANT], or None with a checkpoint."""
    checkpoint: str | None
    common: tuple[str, ...]
    """`--config.KEY=VALUE` overrides of all runs."""
    benchmark: str
    limit: int | None

    def train(self, run: SweepRun) -> tuple[str, ...]:
        """Returns the command that trains the model of a run."""
        own = [word(key, value) for key, value in run.training_overrides.items()]
        workdir = f"--workdir={self.workdir / run.training}"
        return ("mllmsubj", "train", f"--config={self.config}", workdir, *self.common, *own)

    def evaluate(self, run: SweepRun) -> tuple[str, ...]:
        """Returns the command that evaluates the model of a run."""
        own = [word(key, value) for key, value in run.evaluation_overrides.items()]
        own += [f"--limit={self.limit}"] if self.limit else []
        output = f"--output={self.workdir / run.name / 'eval'}"
        where = f"--checkpoint={self.checkpoint or self.workdir / run.training}"
        return ("mllmsubj", "evaluate", where, f"--benchmark={self.benchmark}", output, *self.common, *own)


def make_jobs(record: Record, commands: Commands) -> list[Job]:
    """Returns all jobs, each training before its evaluations."""
    jobs: list[Job] = []
    trainings: dict[str, Job] = {}
    for run in record.runs:
        if record.checkpoint is None and run.training not in trainings:
            trainings[run.training] = _training(record, commands, run)
            jobs.append(trainings[run.training])
        jobs.append(_evaluation(commands, run, trainings.get(run.training)))
    return jobs


def runnable(jobs: Sequence[Job]) -> list[Job]:
    """Returns the jobs that could start now."""
    return [job for job in jobs if not job.is_done() and (job.after is None or job.after.is_done())]


def launched(jobs: Sequence[Job], launcher: str) -> list[Job]:
    """Returns the jobs that could start now, each command prefixed with the launcher's words.

    `{}` in these words is replaced by the job's position among all jobs, from 1.
    """
    words, ready = shlex.split(launcher), {job.name for job in runnable(jobs)}
    return [
        replace(job, words=(*(each.replace("{}", str(place)) for each in words), *job.words), after=None)
        for place, job in enumerate(jobs, 1)
        if job.name in ready
    ]


def _training(record: Record, commands: Commands, run: SweepRun) -> Job:
    folder = commands.workdir / run.training

    def is_done() -> bool:
        if not (folder / "model" / "config.json").is_file():
            return False
        # Of the keys that may change when a run resumes, only the last stage's length changes the result.
        made = checkpoint.read_config(folder / "model").train.stage2.steps
        return made == run.training_overrides.get("train.stage2.steps", record.config.train.stage2.steps)

    return Job(
        f"train {run.training}",
        commands.train(run),
        folder / "log.txt",
        is_done=is_done,
        is_busy=lambda: (folder / ".lock").exists() and is_locked(folder),
    )


def _evaluation(commands: Commands, run: SweepRun, training: Job | None) -> Job:
    folder, words = commands.workdir / run.name, commands.evaluate(run)

    call, metrics = json.dumps(words, indent=2) + "\n", folder / "eval" / "metrics.json"

    def is_called() -> bool:
        return (folder / COMMAND_FILE).is_file() and (folder / COMMAND_FILE).read_text() == call

    def is_done() -> bool:
        if not (is_called() and metrics.is_file()):
            return False
        model = checkpoint.folder_of(commands.checkpoint or commands.workdir / run.training)
        return json.loads(metrics.read_text())["checkpoint"] == checkpoint.fingerprint(model)

    def prepare() -> None:
        if not is_called():
            shutil.rmtree(folder / "eval", ignore_errors=True)
            with replacing(folder / COMMAND_FILE) as partial:
                partial.write_text(call)

    return Job(f"evaluate {run.name}", words, folder / "log.txt", training, is_done, prepare=prepare)
