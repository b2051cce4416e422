"""What ends a run, and the exit status and the one line that come of it on a command line."""

from __future__ import annotations

from haepo_jax.config import ConfigError
from haepo_jax.messages import one_line

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
