"""Evaluators: `run(params) -> (name, value)`, each with its own cadence in training, and alone afterwards."""
