"""Fits a policy to a task's demonstrations: `python -m haepo_jax.pretrain env=haepo/addition`.

It is `python -m haepo_jax.train algo=supervised algo.network=transformer`, with all of its settings; a run of another
algorithm starts from what it leaves with `init_from=<directory>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from haepo_jax.runner.commands.train import main as train

DEFAULTS = ("algo=supervised", "algo.network=transformer")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status of `haepo_jax.train`."""
    given = list(sys.argv[1:] if argv is None else argv)
    # A run that goes on has its algorithm and network already.
    resuming = any(argument.startswith("resume=") and argument != "resume=false" for argument in given)
    return train(given if resuming else [*DEFAULTS, *given])
