"""Parsing of command-line flags, and of `--config.KEY=VALUE`, which overrides keys of a config."""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from mllmsubj.errors import ConfigError, nearest

Overrides = dict[str, Any]
"""Dotted keys of a config -> new values."""


def split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Splits command-line arguments into (the command's own, `--config.…` overrides)."""
    overrides = [arg for arg in argv[1:] if arg.startswith("--config.")]
    return [arg for arg in argv if arg not in overrides], overrides


def apply_overrides(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Returns the config with `--config.KEY=VALUE` applied; raises UserError for an unknown key or invalid value."""
    for override in overrides:
        key, node = override.removeprefix("--config.").partition("=")[0], config
        for name in key.split("."):
            known = list(node) if isinstance(node, ConfigDict) else []
            name = name.partition("[")[0]
            if name not in known:
                raise ConfigError(f"unknown config key {key}{nearest(name, known)}")
            node = node[name]
    values, argv = flags.FlagValues(), ["mllmsubj", *overrides]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        parse(values, argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"config override: {' '.join(str(error).split())}") from error
    return values.config


def parse(values: flags.FlagValues, argv: list[str]) -> None:
    """Parses flags into `values`; raises UserError for an unknown flag or an argument that is not a flag."""
    try:
        words = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(f"unknown flag --{error.flagname}{nearest(error.flagname, values)}") from error
    if words:
        raise ConfigError(f"unexpected argument {words[0]!r}; every argument is a --flag=value")
