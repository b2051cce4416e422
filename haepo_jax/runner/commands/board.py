"""One page of runs and sweeps, for the browser: `python -m haepo_jax.board runs/`."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from haepo_jax.messages import short
from haepo_jax.runner.config import ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import output_file, write_output

HELP = """\
Writes one HTML page of any number of runs and sweeps: learning curves, settings, completions, and links to the files,
such as recorded episodes. It needs no server and no network.

usage: python -m haepo_jax.board <folder> [<folder> ...] [out=board.html]

  python -m haepo_jax.board runs/
  python -m haepo_jax.board runs/cartpole runs/sweep out=two.html

A folder is a run or a sweep, finished or not, or contains some at any depth.

settings (key, default, meaning):
{settings}
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoardConfig:
    """The settings of `python -m haepo_jax.board`."""

    run_dir: tuple[str, ...] = setting((), list, "folders of runs and sweeps (required)")
    out: str = setting("board.html", str, "the HTML file to write; its links are relative to it")


@entry_point(lambda argv: help_text(HELP, BoardConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, BoardConfig)
    if not config.run_dir:
        raise ConfigError("no folder is named: name those of runs, for example python -m haepo_jax.board runs/")
    out = output_file(config.out, ".html")

    from haepo_jax.runner.rendering.board_page import board_page, find

    folders: dict[Path, None] = {}  # each once, however often it is named
    for name in config.run_dir:
        found = [path.resolve() for path in find(Path(name))]
        if not found:
            what = "holds no run" if os.path.isdir(name) else "is not a directory"
            raise ConfigError(f"{short(name)} {what}: a run has metrics.jsonl, a sweep has trials.csv")
        folders |= dict.fromkeys(found)
    page, runs, unreadable = board_page(list(folders), out)
    write_output(out, page)
    for text in unreadable:
        print(f"warning: left out: {text}", file=sys.stderr)
    print(f"wrote {out}: {runs} run{'s' if runs != 1 else ''}, {out.stat().st_size / 1000:,.0f} kB")
    return 0
