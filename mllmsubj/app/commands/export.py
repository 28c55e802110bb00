"""mllmsubj export --checkpoint=DIR --output=DIR

What was trained, for others: pytorch_lora_weights.safetensors (the LoRA as diffusers' load_lora_weights takes it),
dla.safetensors and dla_config.json, and a model card. The frozen weights are neither needed nor read.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mllmsubj.app.cli import parse
from mllmsubj.errors import UserError
from mllmsubj.files import replacing_folder

if TYPE_CHECKING:
    from mllmsubj.experiment import Experiment
    from mllmsubj.typing import Params


def define(values: flags.FlagValues) -> None:
    """The command's flags."""
    flags.DEFINE_string("checkpoint", None, "a training run's workdir, or a checkpoint folder", flag_values=values)
    flags.DEFINE_string("output", None, "folder to write, which must not be there yet", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Writes the folder, whole or not at all."""
    parse(values, argv)
    for name in ("checkpoint", "output"):
        if not values[name].value:
            raise UserError(f"no {name}; export with --checkpoint=DIR --output=DIR")
    output = Path(values.output).expanduser()
    if output.exists():
        raise UserError(f"output {values.output!r} exists already; give another folder or delete it first")

    from mllmsubj import checkpoint, convert  # starts JAX: only after the flags are right
    from mllmsubj.app.card import model_card, read_metrics
    from mllmsubj.experiment import Experiment

    folder = checkpoint.folder_of(values.checkpoint)
    experiment = Experiment.from_config(checkpoint.read_config(folder))
    metrics = read_metrics(folder, Path(values.checkpoint).expanduser())
    params = trained_params(folder, experiment)
    try:
        with replacing_folder(output) as partial:
            convert.save_dla(partial, experiment.model.dla, params["dla"])
            if experiment.model.lora is not None:
                convert.save_lora(partial, experiment.model.transformer, experiment.model.lora, params["transformer"])
            (partial / "README.md").write_text(model_card(experiment, metrics, checkpoint.fingerprint(folder)))
    except OSError as error:
        raise UserError(f"cannot write {str(output)!r}: {error.strerror or error}") from None
    print(output)


def trained_params(folder: Path, experiment: "Experiment") -> "Params":
    """A checkpoint's DLA and adapters; they lie in its own folder, so its base may be gone.

    Raises UserError if it has none, or others than its config says.
    """
    from mllmsubj import checkpoint
    from mllmsubj.models.layers import Compute
    from mllmsubj.models.subject import SubjectModel, is_trained
    from mllmsubj.sharding import flatten, make_mesh, parameter_shardings, placed, unflatten

    model = SubjectModel(experiment.model, Compute())  # layers stacked, as checkpoints are laid out
    wanted = {path: leaf for path, leaf in flatten(model.abstract_params()) if is_trained(path)}
    stored = {path: leaf for path, leaf in checkpoint.stored(folder).items() if path in wanted}
    if not stored:
        raise UserError(f"checkpoint {folder} is not trained yet; export what mllmsubj train wrote")
    if problems := checkpoint.differences(stored, wanted):
        raise UserError(f"checkpoint {folder} does not fit its config: {problems}")
    target = unflatten(wanted)
    return checkpoint.read(folder, placed(target, parameter_shardings(target, make_mesh())))
