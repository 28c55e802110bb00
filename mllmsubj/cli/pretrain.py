"""mllmsubj pretrain --config=tiny --part=vae|probe|mllm|dit|dla --workdir=DIR [--config.KEY=VALUE …]

Makes a part of the tiny model on toyworld, from nothing; run again, it goes on where it stopped. Writes
DIR/PART.safetensors and DIR/PART.json (where they come from), and into DIR/PART what `mllmsubj train` writes into a
workdir. A part that builds on another one takes it from DIR, else the one that is shipped.
"""

from absl import flags

from mllmsubj.cli.train import begin, stopped


def define(values: flags.FlagValues) -> None:
    """The command's flags; those of the config are added when its file is known."""
    flags.DEFINE_string("config", None, "config, by name or file, such as tiny", flag_values=values)
    flags.DEFINE_string("part", None, "component to train: vae, probe, mllm, dit or dla", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of all components, made if missing", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains; exits with 143 after SIGTERM, when everything is saved."""
    config, workdir = begin(values, argv, "pretrain", config="tiny", part="vae", workdir="DIR")

    from mllmsubj.toyworld.pretrain.run import pretrain

    with stopped():
        print(pretrain(config, values.part, workdir))
