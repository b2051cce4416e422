"""What ends a run, and the exit status and the one line that come of it on a command line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError

FAILED = 1
"""Exit status of a command that could not do what it was asked for; 2 if its settings cannot be used."""


class RunError(RuntimeError):
    """A run that could not continue for a reason outside the program, such as a full disk; the message is one line."""


class Diverged(RunError):
    """A run that has ended because every seed diverged; it has a summary, and is a result."""


class CheckpointError(RunError):
    """A checkpoint that cannot be read or written."""


class Interrupted(RuntimeError):
    """A run that a signal asked to end, and that has ended in good order; the message says how to resume it."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def outcome(error: BaseException) -> tuple[int, str] | None:
    """The exit status of an error that a command may end with, and what it tells the user; None for any other."""
    text = one_line(str(error), 1000)
    if isinstance(error, ConfigError | RunError):
        return 2 if isinstance(error, ConfigError) else FAILED, f"error: {text}"
    if isinstance(error, Interrupted):
        return 128 + error.signum, text
    return (130, "interrupted") if isinstance(error, KeyboardInterrupt) else None


def warn(text: str) -> None:
    """One line for the user, beside the display."""
    print(f"warning: {one_line(text)}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def disk_errors(directory: Path, what: str = "run", after: Callable[[], str] = str) -> Iterator[None]:
    """A disk that is full, or a directory that has gone, ends a run (or `what` it is) in one line, to which `after` adds."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (OSError, CheckpointError) as error:
        if not directory.is_dir():
            raise RunError(f"run_dir={short(str(directory))} was removed during the {what}") from None
        text = str(error)
        if isinstance(error, OSError):
            place = error.filename if isinstance(error.filename, str) else str(directory)
            text = f"{place}: {error.strerror or error}"
        raise RunError(f"{text}{after()}") from None
