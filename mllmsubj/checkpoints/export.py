"""Export of trained weights: the LoRA in diffusers' format, the DLA, and a model card."""

from pathlib import Path

from mllmsubj import convert
from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.card import model_card, read_metrics
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import CheckpointError
from mllmsubj.io import replacing_folder
from mllmsubj.models.layers import Compute
from mllmsubj.models.subject import SubjectModel, is_trained
from mllmsubj.parallel.sharding import make_mesh, sharded_shapes
from mllmsubj.tree import flatten, unflatten
from mllmsubj.typing import Params


def export(where: str | Path, output: Path) -> None:
    """Exports a checkpoint, or that in a run's workdir, to the folder `output`, which is complete or absent.

    Raises UserError if the checkpoint has no trained weights, or if the folder cannot be written.
    """
    folder = checkpoint.folder_of(where)
    experiment = Experiment.from_config(checkpoint.read_config(folder))
    metrics = read_metrics(folder, Path(where).expanduser())
    params = trained_params(folder, experiment)
    try:
        with replacing_folder(output) as partial:
            convert.save_dla(partial, experiment.model.dla, params["dla"])
            if experiment.model.lora is not None:
                convert.save_lora(partial, experiment.model.transformer, experiment.model.lora, params["transformer"])
            (partial / "README.md").write_text(model_card(experiment, metrics, checkpoint.fingerprint(folder)))
    except OSError as error:
        raise CheckpointError(f"cannot write {str(output)!r}: {error.strerror or error}") from error


def trained_params(folder: Path, experiment: Experiment) -> Params:
    """Returns the DLA and adapters of a checkpoint folder; its frozen base need not exist.

    Raises UserError if it has none, or if their paths or shapes differ from those in its config.
    """
    model = SubjectModel(experiment.model, Compute())  # with stacked layers, as in checkpoints
    wanted = {path: leaf for path, leaf in flatten(model.abstract_params()).items() if is_trained(path)}
    stored = {path: leaf for path, leaf in checkpoint.stored(folder).items() if path in wanted}
    if not stored:
        raise CheckpointError(f"checkpoint {folder} is not trained yet; export what mllmsubj train wrote")
    if problems := checkpoint.describe_differences(stored, wanted):
        raise CheckpointError(f"checkpoint {folder} does not fit its config: {problems}")
    target = unflatten(wanted)
    return checkpoint.read(folder, sharded_shapes(target, make_mesh()))
