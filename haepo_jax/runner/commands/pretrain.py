"""Fits a policy to a task's demonstrations: `python -m haepo_jax.pretrain env=haepo/addition`.

Short for `python -m haepo_jax.train algo=supervised algo.network=transformer`, with the same settings. Another algorithm
starts from the pretrained policy with `init_from=<directory>`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from haepo_jax.runner.commands.train import main as train

DEFAULTS = ("algo=supervised", "algo.network=transformer")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status of `haepo_jax.train`."""
    given = list(sys.argv[1:] if argv is None else argv)
    # A resumed run has its algorithm and network already.
    resuming = any(argument.startswith("resume=") and argument != "resume=false" for argument in given)
    return train(given if resuming else [*DEFAULTS, *given])
