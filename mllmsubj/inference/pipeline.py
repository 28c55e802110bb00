"""The Python API: `Pipeline.load("tiny").generate(references=[photo], prompt="…").images`."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from mllmsubj.checkpoints import format as checkpoints
from mllmsubj.checkpoints.format import folder_of
from mllmsubj.config.load import typed
from mllmsubj.config.sampling import SamplingConfig
from mllmsubj.config.schema import Experiment
from mllmsubj.convert import load_lora
from mllmsubj.data.images import to_pil
from mllmsubj.inference import parameters
from mllmsubj.inference.generator import Generator
from mllmsubj.inference.offload import cpu_offload, on_device
from mllmsubj.inference.request import Reference, RequestReader
from mllmsubj.io import write_png
from mllmsubj.models.subject import SubjectModel
from mllmsubj.parallel.sharding import make_mesh
from mllmsubj.typing import Params

Lora = tuple[str | Path, float]
"""A LoRA's file or folder, and the weight that it is added with."""


@dataclass(frozen=True)
class Result:
    """Generated images and their metadata."""

    images: list[Image.Image]
    metadata: list[dict[str, Any]]
    """One dict per image: prompt, seed, index, settings and checkpoint; `save` writes it into the PNG."""

    def save(self, path: str | Path, index: int = 0) -> None:
        """Writes image `index` as a PNG, whole or not at all; raises UserError if it cannot be written."""
        info = PngInfo()
        info.add_text("Software", f"mllmsubj {version('mllmsubj')}")
        info.add_itxt("Description", self.metadata[index]["prompt"])
        info.add_itxt("mllmsubj", json.dumps(self.metadata[index], ensure_ascii=False))
        write_png(self.images[index], Path(path), pnginfo=info)


class Pipeline:
    """A checkpoint ready to generate images."""

    def __init__(
        self,
        experiment: Experiment,
        model: SubjectModel,
        params: Params,
        reader: RequestReader,
        mesh: jax.sharding.Mesh,
        checkpoint: str,
        loras: Sequence[Lora] = (),
    ) -> None:
        """Creates a pipeline; `checkpoint` (its fingerprint) and `loras` (those folded in) become image metadata."""
        self.experiment, self.params, self.mesh, self.checkpoint = experiment, params, mesh, checkpoint
        self.loras = [[Path(path).name, weight] for path, weight in loras]
        run = cpu_offload(mesh) if experiment.compute.offload else on_device
        self._reader, self._generator = reader, Generator(model, experiment.shift, run)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = "tiny",
        config: ConfigDict | None = None,
        loras: Sequence[Lora] = (),
        frozen_dtype: str | None = None,
        offload: bool | None = None,
    ) -> "Pipeline":
        """Loads a checkpoint folder, a training run's workdir, or "tiny", which is shipped.

        `config` replaces the checkpoint's own. `loras`: files or folders as diffusers saves LoRA, each with a weight,
        folded into the transformer. `frozen_dtype` replaces `model.frozen_dtype`: "int8" halves memory. `offload`
        replaces `compute.offload`: with True only the parameters in use are on the devices; the images are the same.
        Raises UserError for a folder that is not a checkpoint, lacks its tokenizers or is damaged, an invalid config,
        parameters of other shapes, and devices without room for them.
        """
        folder = folder_of(checkpoint)
        config = (checkpoints.read_config(folder) if config is None else config).copy_and_resolve_references()
        with config.unlocked():
            config.model.frozen_dtype = config.model.frozen_dtype if frozen_dtype is None else frozen_dtype
            config.compute.offload = config.compute.offload if offload is None else offload
        experiment = Experiment.from_config(config)
        read = [load_lora(path, experiment.model.transformer, foldable=True) for path, _ in loras]
        adapters = [(*lora, weight) for lora, (_, weight) in zip(read, loras, strict=True)]
        mesh, reader = make_mesh(**asdict(experiment.mesh)), RequestReader(experiment, folder)
        model, params = parameters.load(folder, experiment, mesh, adapters)
        return cls(experiment, model, params, reader, mesh, checkpoints.fingerprint(folder), loras)

    def generate(
        self,
        references: Sequence[Reference] | Reference,
        prompt: str,
        num_images: int = 1,
        seed: int = 0,
        progress: bool = False,
        **sampling: Any,
    ) -> Result:
        """Generates images of the subject of `references` by `prompt`.

        `references`: images of one subject or of several, PIL or paths. `seed`: 0 to 2³² − 1; image i depends on
        (seed, i) alone. `progress` shows a bar on stderr and runs each step as a separate call. `sampling`
        overrides the config's `sampling` keys (height, width, steps, tau1, tau2, guidance, …).
        Raises UserError for an invalid argument.
        """
        settings = self.settings(**sampling)
        if isinstance(references, Image.Image | str | Path):
            references = [references]
        inputs = self._reader(references, prompt, num_images, seed)
        with jax.set_mesh(self.mesh), _Bar() as bar:
            pixels = self._generator(self.params, inputs, settings, seed, num_images, bar.update if progress else None)
        shared = {
            "prompt": prompt,
            "seed": seed,
            **asdict(settings),
            "checkpoint": self.checkpoint,
            "loras": self.loras,
        }
        shared["references"] = [Path(r).name if isinstance(r, str | Path) else None for r in references]
        return Result([to_pil(p) for p in pixels], [shared | {"index": i} for i in range(num_images)])

    def settings(self, **sampling: Any) -> SamplingConfig:
        """Returns the config's sampling settings with some replaced; raises UserError for an unknown or invalid one."""
        return typed(SamplingConfig, asdict(self.experiment.sampling) | sampling, "sampling")


class _Bar:
    """A tqdm bar on stderr, created at the first update, when the number of steps is known."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def update(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = tqdm(total=total, unit="step", file=sys.stderr, leave=False)
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
