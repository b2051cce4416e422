"""What every command line shares: an error that is not a bug ends it with one line and a status, not a traceback."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

from haepo_jax.runner.cache import keep_compiled
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.errors import FAILED, Elsewhere, Interrupted, RunError, outcome
from haepo_jax.version import __version__


def entry_point(
    help_text: Callable[[list[str]], str],
) -> Callable[[Callable[[list[str]], int]], Callable[[Sequence[str] | None], int]]:
    """Makes `main(argv) -> exit status` of a command; `argv` is `sys.argv[1:]` where it is None. With `--help` or
    `--version` among them, the help text or the version is printed instead."""

    def decorate(command: Callable[[list[str]], int]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(command)
        def main(argv: Sequence[str] | None = None) -> int:
            keep_compiled()
            arguments = list(sys.argv[1:] if argv is None else argv)
            try:
                status = 0
                if "--help" in arguments or "-h" in arguments:
                    print(help_text(arguments), end="")
                elif "--version" in arguments:
                    print(f"haepo_jax {__version__}")
                else:
                    status = command(arguments)
                sys.stdout.flush()
                return status
            except (ConfigError, RunError, Interrupted, Elsewhere, KeyboardInterrupt) as error:
                status, text = outcome(error) or (FAILED, "")
                if text:
                    print(text, file=sys.stderr)
                return status
            except BrokenPipeError:
                # The reader (`| head`) has gone. Python would complain again when it flushes stdout at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return FAILED

        return main

    return decorate
