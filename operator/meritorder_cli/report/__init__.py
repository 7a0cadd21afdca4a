"""The HTML report: one self-contained page made from the JSON of a run and from nothing else."""

from meritorder_cli.report.page import build

__all__ = ["build"]
