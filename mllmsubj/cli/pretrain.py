"""Trains a component of the tiny model on toyworld, from scratch.

mllmsubj pretrain --config=tiny --component=vae|probe|mllm|dit|dla --workdir=DIR [--config.KEY=VALUE …]

Writes DIR/COMPONENT.safetensors and DIR/COMPONENT.json (their origin), and into DIR/COMPONENT the files of a training
workdir. A component that depends on another one reads it from DIR, or else the shipped one. The same command
resumes an interrupted run.
"""

from absl import flags

from mllmsubj.cli.train import exit_if_preempted, prepare_run


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config, by name or file, such as tiny", flag_values=values)
    flags.DEFINE_string("component", None, "component to train: vae, probe, mllm, dit or dla", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of all components, made if missing", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains; exits with 143 after SIGTERM, when everything is saved."""
    config, workdir = prepare_run(values, argv, "pretrain", config="tiny", component="vae", workdir="DIR")

    from mllmsubj.toyworld.pretrain.run import pretrain

    with exit_if_preempted():
        print(pretrain(config, values.component, workdir))
