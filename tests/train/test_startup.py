"""Startup time, cold and warm."""

import logging

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from mllmsubj.train.startup import StartupTime


@pytest.fixture
def cache(tmp_path):
    """An empty compilation cache that keeps every program."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (str(tmp_path), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_startup_time_cold_and_warm(cache, caplog):
    """The first start compiles the programs, and the second one reads them from the cache."""
    caplog.set_level(logging.INFO, "mllmsubj")

    def start():
        with StartupTime() as first:
            return first.done(jax.jit(lambda x: jnp.sin(x) + 3)(jnp.arange(5.0)))

    cold = start()
    jax.clear_caches()
    warm = start()
    assert cold["programs_compiled"] >= 1
    assert (warm["programs_compiled"], warm["programs_cached"]) == (0, cold["programs_compiled"])
    assert "(cold: 0 of" in caplog.messages[0]
    assert "(warm: " in caplog.messages[1]
    assert cold["first_step_seconds"] > 0
    with StartupTime() as first:
        pass
    jax.jit(jnp.cos)(jnp.arange(7.0))  # compiled outside the block, so not counted
    assert first.done(None)["programs_compiled"] == 0
