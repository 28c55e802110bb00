"""mllmsubj pretrain --config=configs/tiny.py --part=vae|probe|mllm|dit --workdir=DIR [--config.KEY=VALUE …]

Makes a part of the tiny model on toyworld, from nothing; run again, it goes on where it stopped. Writes
DIR/PART.safetensors and DIR/PART.json (where they come from), and into DIR/PART what `mllmsubj train` writes into a
workdir. A part that builds on another one takes it from DIR, else the one that is shipped.
"""

from absl import flags

from mllmsubj.app.cli import keep_compiled, need_train_extra, parse, start_logging
from mllmsubj.app.commands.train import stopped
from mllmsubj.app.files import workdir_path
from mllmsubj.app.overrides import divided, overridden
from mllmsubj.errors import UserError


def define(values: flags.FlagValues) -> None:
    """The command's flags; the config's own come when its file is known."""
    flags.DEFINE_string("config", None, "config file, such as configs/tiny.py", flag_values=values)
    flags.DEFINE_string("part", None, "what to make: vae, probe, mllm or dit", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of all parts, made if it is not there", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Trains; exits 143 after SIGTERM, when all is saved."""
    argv, overrides = divided(argv)
    parse(values, argv)
    for name in ("config", "part", "workdir"):
        if not values[name].value:
            command = "mllmsubj pretrain --config=configs/tiny.py --part=vae --workdir=DIR"
            raise UserError(f"no {name}; start with {command}")
    workdir = workdir_path(values.workdir)
    need_train_extra("training needs")
    keep_compiled(workdir)

    from mllmsubj import distributed  # starts JAX: only after the flags are right
    from mllmsubj.experiment import load_config

    config = overridden(load_config(values.config), overrides)
    distributed.start()
    start_logging()

    from mllmsubj.pretrain.run import pretrain

    with stopped():
        print(pretrain(config, values.part, workdir))
