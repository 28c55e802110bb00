"""Prints every key of a config with its value and origin: the default, the config or the command line.

mllmsubj config [--config=NAME|FILE[:VARIANT]] [--diff=OTHER[:VARIANT]] [--config.KEY=VALUE …]

With --diff, prints only keys whose values differ from those of OTHER: "-" lines are OTHER's, "+" lines this config's.
"""

from absl import flags

from mllmsubj.config.overrides import parse, split_overrides


def define(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("config", None, "config, by name or file; without it, the defaults", flag_values=values)
    flags.DEFINE_string("diff", None, "config to compare with, by name or file", flag_values=values)


def run(values: flags.FlagValues, argv: list[str]) -> None:
    """Prints the config or the differences."""
    argv, overrides = split_overrides(argv)
    parse(values, argv)

    from mllmsubj.config.origins import as_text, difference, resolved

    here = resolved(values.config, overrides)
    print(difference(here, resolved(values.diff)) if values.diff else as_text(here), end="")
