"""A run of seconds: the small model on toyworld at 32 x 32, both stages, a save every second step, no evaluators."""

from ml_collections import ConfigDict

from tests.small import small_config


def get_config(variant: str = "") -> ConfigDict:
    """`variant` is unused."""
    del variant
    config = small_config()
    with config.unlocked():
        config.data.update(sizes=((32, 32),), threads=2, prefetch=2)
        config.reference.update(long_side=32, long_side_multi=32)
        config.sampling.update(height=32, width=32, steps=2)
        config.train.weights = "random"
        config.model.transformer.update(num_layers=1, num_single_layers=1)
        config.compute.layers = "scan"
        config.train.stage1.update(steps=6, warmup_steps=2)
        config.train.stage2.update(steps=6, warmup_steps=2)
        config.checkpoint.update(every_steps=2, every_minutes=0.0)
        config.log.update(every_steps=1, tensorboard=False)
        config.evals.loss.update(every_steps=0, examples=8)
        config.evals.samples.update(every_steps=0, count=2)
    return config
