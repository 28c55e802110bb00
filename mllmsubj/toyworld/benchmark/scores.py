"""Metrics of the benchmark, each with its 95 % interval and its value for the targets of the same examples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mllmsubj.toyworld import Example
from mllmsubj.toyworld.benchmark.tallies import (
    Tally,
    accuracy,
    all_right,
    copy_chance,
    identity,
    pose_copy,
    prompt,
    reasoning,
    truth,
)
from mllmsubj.typing import Float, Int

RESAMPLES = 2000
"""Number of bootstrap resamples of the images for an interval."""
SEED = 0
"""Seed of the resamples, fixed so that runs are comparable."""
MAX_PSNR = 20 * np.log10(255.0)
"""Upper limit in dB: the value of images that differ by one level everywhere, and of equal ones."""

Statistic = Callable[[Any, Float[np.ndarray, "b n"]], Float[np.ndarray, " b"]]
"""Function of results for n images, and of how often each image counts in each of b resamples."""

TALLIES: Mapping[str, Callable[..., Tally]] = {
    "identity": identity,
    "prompt": prompt,
    "reasoning": reasoning,
    "pose_copy": pose_copy,
}
ACCURACIES = ("identity", "prompt", "reasoning")
"""Tallies whose share of right values is an accuracy."""

MEANINGS: Mapping[str, str] = {
    "identity_accuracy": "How often the probe reads the reference's shape, colours, texture and accessory, but for "
    "what the prompt recolours: mean over these",
    "prompt_accuracy": "How often it reads what the prompt asks: mean over scene, time, position, size, …, recolouring",
    "reasoning_accuracy": "the same on prompts that only the reference resolves",
    "pose_copy_rate": "How often the reference's pose is repeated where the prompt leaves it free: chance is best",
    "pose_copy_chance": "the rate for two independent pictures, exactly",
    "identity_all_right": "Share of pictures with every attribute of the identity right",
    "prompt_all_right": "with all that the prompt asks",
    "reasoning_all_right": "with all that a prompt asks that only the reference resolves",
    "all_right": "with identity and prompt",
    "copy_psnr": "How near the picture is to the reference's own pixels, dB: the targets' is right, more is copying",
    "probe_accuracy": "How often the probe reads an attribute of the targets right: mean over all",
    "probe_least": "of the one that it reads worst",
}


def scores(
    examples: Sequence[Example], drawn: Int[np.ndarray, "n attributes"], real: Int[np.ndarray, "n attributes"]
) -> Iterator[tuple[str, float]]:
    """Yields (name, value) pairs; "NAME/low" and "NAME/high" are its interval, "NAME/real" is that of the targets.

    `drawn`, `real`: the probe's readings of the generated images and of the targets.
    """
    score = partial(_score, len(examples))
    tallies = {name: (tally(examples, drawn), tally(examples, real)) for name, tally in TALLIES.items()}
    everything = tuple(who.concatenate(what) for who, what in zip(tallies["identity"], tallies["prompt"], strict=True))
    for name in ACCURACIES:
        yield from score(f"{name}_accuracy", accuracy, tallies[name])
    yield from score("pose_copy_rate", accuracy, tallies["pose_copy"])
    yield "pose_copy_chance", copy_chance(tallies["pose_copy"][0])
    for name in ACCURACIES:
        yield from score(f"{name}_all_right", all_right, tallies[name])
    yield from score("all_right", all_right, everything)
    for name, pair in tallies.items():
        for column in pair[0].names:
            yield from score(f"{name}/{column}", accuracy, tuple(tally.column(column) for tally in pair))


def copy_scores(
    drawn: UInt8[np.ndarray, "n height width 3"],
    references: UInt8[np.ndarray, "n height width 3"],
    targets: UInt8[np.ndarray, "n height width 3"],
) -> Iterator[tuple[str, float]]:
    """Yields the copy control, "copy_psnr", in the format of `scores`."""
    yield from _score(len(drawn), "copy_psnr", _mean, (psnr(drawn, references), psnr(targets, references)))


def probe_scores(examples: Sequence[Example], real: Int[np.ndarray, "n attributes"]) -> Iterator[tuple[str, float]]:
    """Yields the probe's accuracy on the targets, which limits what it can measure in generated images."""
    found = truth(examples, real)
    shares = found.right.mean(axis=0)
    yield "probe_accuracy", float(shares.mean())
    yield "probe_least", float(shares.min())
    for name, share in zip(found.names, shares, strict=True):
        yield f"probe/{name}", float(share)


def psnr(one: UInt8[np.ndarray, "n height width 3"], other: np.ndarray) -> Float[np.ndarray, " n"]:
    """Returns the peak signal-to-noise ratio of each pair in dB, at most `MAX_PSNR`."""
    error = np.mean((one.astype(np.float64) - other) ** 2, axis=(1, 2, 3))
    return MAX_PSNR - 10 * np.log10(np.maximum(error, 1.0))


def interval(statistic: Statistic, found: Any, pictures: int) -> tuple[float, float]:
    """Returns the 95 % percentile bootstrap interval over images; NaN if nothing is evaluated."""
    values = statistic(found, _resamples(pictures))
    values = values[np.isfinite(values)]  # a resample may lack all of the few images that are evaluated
    low, high = np.percentile(values, (2.5, 97.5)) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


@lru_cache(1)
def _resamples(pictures: int) -> Float[np.ndarray, "b n"]:
    """Returns how often each image is in each resample."""
    shares = np.full(pictures, 1 / pictures)
    return np.random.default_rng(SEED).multinomial(pictures, shares, RESAMPLES).astype(np.float64)


def _score(pictures: int, name: str, statistic: Statistic, found: Sequence[Any]) -> Iterator[tuple[str, float]]:
    """Yields a statistic; `found`: its first argument for the images, and for their targets."""
    once = np.ones((1, pictures))
    value, real = (float(statistic(each, once)[0]) for each in found)
    low, high = interval(statistic, found[0], pictures)
    yield from ((name, value), (f"{name}/low", low), (f"{name}/high", high), (f"{name}/real", real))


def _mean(values: Float[np.ndarray, " n"], weights: Float[np.ndarray, "b n"]) -> Float[np.ndarray, " b"]:
    return weights @ values / weights.sum(axis=1)
