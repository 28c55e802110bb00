"""Factory of the components, by name."""

from pathlib import Path

from mllmsubj.checkpoints import format as checkpoint
from mllmsubj.checkpoints.components import PARTS
from mllmsubj.config.schema import Experiment
from mllmsubj.errors import UserError, nearest
from mllmsubj.models.subject import SubjectModel
from mllmsubj.toyworld.pretrain.dit import DiTPart
from mllmsubj.toyworld.pretrain.dla import DLAPart
from mllmsubj.toyworld.pretrain.mllm import MLLMPart
from mllmsubj.toyworld.pretrain.part import Part
from mllmsubj.toyworld.pretrain.probe import ProbePart
from mllmsubj.toyworld.pretrain.settings import PretrainConfig
from mllmsubj.toyworld.pretrain.vae import VAEPart
from mllmsubj.train.setup import make_prompt_encoder


def make_part(name: str, experiment: Experiment, workdir: Path) -> Part:
    """Returns the component called `name`.

    `workdir`: folder that may contain components that it builds on. Raises UserError for an unknown name.
    """
    settings, size = PretrainConfig.of(experiment), experiment.sampling.height
    model = SubjectModel(experiment.model, experiment.compute.resolve())
    encoder = make_prompt_encoder(experiment, checkpoint.TINY)
    match name:
        case "vae":
            return VAEPart(model, settings.vae, size)
        case "probe":
            return ProbePart(settings.probe, size)
        case "mllm":
            tile = experiment.model.mllm.vision.image_size
            return MLLMPart(model, settings.mllm, tile, encoder, experiment.reference)
        case "dit" | "dla":
            dit = DiTPart(model, settings.dit, size, encoder, experiment.train.time, experiment.shift, workdir)
            return dit if name == "dit" else DLAPart(settings.dla, dit, experiment.data, experiment.reference)
    raise UserError(f"unknown part {name!r}{nearest(name, PARTS)}; there are {', '.join(PARTS)}")
