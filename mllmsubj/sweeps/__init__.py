"""Sweeps: many runs of one experiment, told apart by overrides. What a sweep file needs is here."""

from mllmsubj.config.overrides import Overrides
from mllmsubj.sweeps.axes import grid, listed, product, zipped

__all__ = ["Overrides", "grid", "listed", "product", "zipped"]
