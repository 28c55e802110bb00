"""Rendering speed of toyworld on one core."""

import time

import numpy as np

from mllmsubj.toyworld import random_identity, random_scene, render


def run(size: int, seconds: float) -> dict[str, object]:
    """Measures pictures per second of one thread; subjects, scenes and cached backgrounds are made before timing."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(500)]
    identities = [random_identity(rng) for _ in range(509)]  # a prime: pairs do not repeat for 250,000 pictures
    for identity, scene in zip(identities, scenes, strict=False):
        render(identity, scene, size)
    start = time.perf_counter()
    pictures, took = 0, 0.0
    while took < seconds:
        render(identities[pictures % len(identities)], scenes[pictures % len(scenes)], size)
        pictures += 1
        took = time.perf_counter() - start
    return {
        "size": size,
        "pictures": pictures,
        "seconds": round(took, 3),
        "pictures_per_second": round(pictures / took, 1),
    }
