"""Reading speed of examples on one core and on all: a pack of JPEG pairs through the whole `Loader`."""

import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from mllmsubj.checkpoints.format import TINY
from mllmsubj.config.data import DataConfig, PromptConfig, ReferenceConfig
from mllmsubj.data.example import Example, Index
from mllmsubj.data.loader import make_loader
from mllmsubj.data.pack import PackCallbacks, pack
from mllmsubj.data.sources.array_record import PackSource
from mllmsubj.data.tokenization import PromptEncoder
from mllmsubj.data.transforms import RowReader
from mllmsubj.errors import UserError

TILE = 448
BATCH, PAIRS, ROUNDS = 16, 64, 3
PROMPT = "a photo of the same cat in a small red hat, sitting on wet grass in front of a lighthouse at sunset, number"


class JpegPairs:
    """Pairs of crops of photographs, as JPEG files of quality 90."""

    def __init__(self, size: int) -> None:
        """`size`: side of an image in pixels. Raises UserError if scikit-image is not installed."""
        try:
            import skimage.data
        except ImportError as error:
            raise UserError("bench --what=data reads scikit-image's photographs; pip install scikit-image") from error
        self.size = size
        self._photos = [Image.fromarray(photo()) for photo in (skimage.data.astronaut, skimage.data.coffee)]

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return PAIRS

    def __getitem__(self, number: int, /) -> Example:
        """Returns a pair, always the same one for a number."""
        reference, target = (self._jpeg(np.random.default_rng([number, i])) for i in range(2))
        return Example((reference,), f"{PROMPT} {number}", target, origin=f"photographs, {number}")

    def index(self) -> Index:
        """Returns the sizes and reference counts, which are the same for all examples."""
        side = np.full(PAIRS, self.size, np.int32)
        return Index(side, side, np.ones(PAIRS, np.int32))

    def _jpeg(self, rng: np.random.Generator) -> bytes:
        photo = self._photos[rng.integers(len(self._photos))]
        side = int(min(photo.size) * rng.uniform(0.8, 1))
        left, top = (int(rng.integers(whole - side + 1)) for whole in photo.size)
        window, file = photo.crop((left, top, left + side, top + side)), io.BytesIO()
        window.resize((self.size, self.size), Image.Resampling.LANCZOS).save(file, "JPEG", quality=90)
        return file.getvalue()


def run(size: int, seconds: float) -> dict[str, object]:
    """Measures examples per second of the loader, and of Pillow alone decoding the same JPEGs on one core.

    Values are medians over rounds. On a busy machine, only those per second of CPU time are reliable.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = pack(JpegPairs(size), Path(folder) / "pack", 1, 1, PackCallbacks(lambda _: None, lambda _: None))
        examples = [source[number] for number in range(PAIRS)]
        files = [file for e in examples for file in (*e.references, e.target) if isinstance(file, bytes)]
        cores = len(_cores())

        def decode() -> Iterator[int]:
            while True:
                for pair in zip(files[::2], files[1::2], strict=True):
                    for file in pair:
                        Image.open(io.BytesIO(file)).load()
                    yield 1

        contestants = {
            "one_core": (1, lambda: _batches(source, size, threads=1)),
            "all_cores": (cores, lambda: _batches(source, size, threads=cores)),
            "pillow_decoding_one_core": (1, decode),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for _ in range(ROUNDS):
            for name, (count, start) in contestants.items():
                with _on_cores(count):
                    rates[name].append(_rate(start, seconds))
    pairs = zip(rates["one_core"], rates["pillow_decoding_one_core"], strict=True)
    return {
        "size": size,
        "jpeg_bytes": round(statistics.mean(map(len, files))),
        "cores": cores,
        "pinned": hasattr(os, "sched_setaffinity"),
        "examples_per_second": {name: _summary([wall for wall, _ in rate]) for name, rate in rates.items()},
        "examples_per_cpu_second": {name: _summary([cpu for _, cpu in rate]) for name, rate in rates.items()},
        "share_of_pillow_decoding": round(statistics.median(ours[1] / bound[1] for ours, bound in pairs), 3),
    }


def _summary(rates: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(rates), 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
    }


def _batches(source: PackSource, size: int, threads: int) -> Iterator[int]:
    """Yields the number of examples of each batch."""
    config = DataConfig(
        source="",
        split="train",
        examples=1,
        sizes=((size, size),),
        max_references=1,
        prompt_tokens=256,
        swap=0.0,
        flip=0.0,
        crop=1.0,
        remove_background=0.0,
        min_scores=(),
        max_skipped=0.0,
        threads=threads,
        prefetch=2,
        cache="",
        cached_features="latents",
    )
    reference = ReferenceConfig(size, size, 1, 8.0, (0.5,) * 3, (0.5,) * 3)
    prompts = PromptConfig("You are a helpful assistant.", 256, 64, 77, "prompt")
    encoder = PromptEncoder(TINY / "tokenizer", TINY / "clip_tokenizer", prompts, image_tokens=256, image_token_id=261)
    loader = make_loader(source, RowReader(config, reference, encoder, TILE), BATCH, np.arange(BATCH), seed=0)
    try:
        while True:
            yield len(next(loader).example)
    finally:
        loader.close()


def _rate(start: Callable[[], Iterator[int]], seconds: float) -> tuple[float, float]:
    """Returns items per second, and per second of this process's CPU time, which other processes do not affect."""
    items = start()
    for _ in range(4):  # skip the batches that were prefetched before timing
        next(items)
    begin, cpu, count, took = time.perf_counter(), time.process_time(), 0, 0.0
    while took < seconds:
        count += next(items)
        took = time.perf_counter() - begin
    spent = time.process_time() - cpu
    del items  # stops the loader
    return count / took, count / spent


def _cores() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@contextmanager
def _on_cores(count: int) -> Iterator[None]:
    """Pins this thread and those that it starts to `count` cores; has no effect where pinning is not supported."""
    before = _cores()
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
