"""What every command line shares: one-line errors, their exit statuses, and no traceback for what is not a bug."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

from haepo_jax.config import ConfigError, one_line
from haepo_jax.training.cache import keep_compiled

REFUSED = 2
"""Exit status of a command whose settings cannot be used."""
FAILED = 1
INTERRUPTED = 130


class RunError(RuntimeError):
    """A run that could not go on for a reason outside the program, such as a full disk; the message is one line."""


class DeviceError(RunError):
    """A compiled call that failed."""


class Elsewhere(RuntimeError):
    """Another process of the job could not go on; the message is empty where that process has told the user why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Interrupted(RuntimeError):
    """A run that a signal asked to end, and that has ended in good order; the message says how to go on."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def outcome(error: BaseException) -> tuple[int, str] | None:
    """The exit status of an error that a command may end with, and what it tells the user; None for any other."""
    if isinstance(error, Elsewhere):
        return error.status, f"error: {one_line(str(error), 1000)}" if str(error) else ""
    if isinstance(error, ConfigError | RunError):
        return REFUSED if isinstance(error, ConfigError) else FAILED, f"error: {one_line(str(error), 1000)}"
    if isinstance(error, Interrupted):
        return 128 + error.signum, one_line(str(error))
    return (INTERRUPTED, "interrupted") if isinstance(error, KeyboardInterrupt) else None


def entry_point(command: Callable[[list[str]], int]) -> Callable[[Sequence[str] | None], int]:
    """Makes `main(argv) -> exit status` of a command; `argv` is `sys.argv[1:]` where it is None."""

    @functools.wraps(command)
    def main(argv: Sequence[str] | None = None) -> int:
        keep_compiled()
        try:
            status = command(list(sys.argv[1:] if argv is None else argv))
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
