"""Draws the learning curves of runs in one figure: `python -m haepo_jax.plot runs/a runs/b out=curves.png`."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

from haepo_jax.runner.config import ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import RunDir, output_file, write_output

HELP = """\
Draws the learning curves of one or more runs in one figure: interquartile means, with bands over seeds.

usage: python -m haepo_jax.plot <run directory> [<run directory> ...] [out=curves.png]

  python -m haepo_jax.plot runs/haepo runs/ppo out=both.png title=CartPole

settings (key, default, meaning):
{settings}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """The settings of `python -m haepo_jax.plot`."""

    run_dir: tuple[str, ...] = setting((), list, "directories of the runs, finished or not (required)")
    out: str = setting("curves.png", str, "the PNG file to write")
    title: str = setting("", str, "title of the figure")


@entry_point(lambda argv: help_text(HELP, PlotConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, PlotConfig)
    if not config.run_dir:
        raise ConfigError("run_dir= is missing: name the directory of a run")
    out = output_file(config.out, ".png")

    from haepo_jax.runner.plots import curves_figure, figure_png, read_curve

    curves = [read_curve(RunDir(Path(path))) for path in config.run_dir]
    times = collections.Counter(curve.label for curve in curves)
    curves = [
        dataclasses.replace(curve, label=path) if times[curve.label] > 1 else curve
        for path, curve in zip(config.run_dir, curves, strict=True)
    ]
    write_output(out, figure_png(curves_figure(curves, title=config.title)))
    print(f"wrote {out}")
    return 0
