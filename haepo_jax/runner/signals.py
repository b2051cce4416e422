"""SIGINT and SIGTERM end a run in good order: after the compiled call under way and a checkpoint.

Python runs signal handlers in the main thread, between two of its own instructions, so not during a compiled call. Whatever
may take long is therefore called by `interruptibly`, in its own thread, while the main thread waits and listens.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Self, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.2


def interruptibly(function: Callable[[], T], poll: Callable[[], None] = lambda: None) -> T:
    """Calls a function that may wait long for the device, while signal handlers run and, a few times a second, `poll`.

    An exception from either is raised at once and the call is abandoned: a compiled program cannot be stopped, so a
    process that ends before it does not wait for it.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="device", daemon=True).start()
    try:
        while not future.done():
            with contextlib.suppress(TimeoutError):
                return future.result(timeout=POLL_SECONDS)
            poll()
    except BaseException as error:
        status = 128 + getattr(error, "signum", signal.SIGINT)
        atexit.register(lambda: None if future.done() else _leave(status))
        raise
    return future.result()


def _leave(status: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted and a second one ends the process at once.

    Within a second of the first, another SIGTERM counts as the same: `timeout` sends it to a process and to its group.

    Before `begin` there is nothing to save, and the first one ends the process, too. Off the main thread, where Python
    allows no handlers, it does nothing.

    Args:
      clean_up: called before the process is ended for want of something to save.
      embedded: in a user's program or notebook nothing ends the process; KeyboardInterrupt is raised instead, or
        SystemExit for SIGTERM.
    """

    def __init__(self, clean_up: Callable[[], None], *, embedded: bool = False) -> None:
        self._clean_up, self._embedded = clean_up, embedded
        self._begun = False
        self._previous: dict[int, Any] = {}
        self._signum: int | None = None
        self._noted = 0.0

    def __call__(self) -> int | None:
        """The number of the signal that asked the run to end, if one did."""
        return self._signum

    def begin(self) -> None:
        """From here on there is something to save."""
        self._begun = True

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, signum: int, frame: Any) -> None:
        name = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
        if signum == signal.SIGTERM == self._signum and time.monotonic() < self._noted + 1:
            return
        if self._begun and self._signum is None:
            self._signum, self._noted = signum, time.monotonic()
            # Not by print, which a handler may have interrupted.
            os.write(2, f"{name}: saving a checkpoint and stopping; once more to quit immediately\n".encode())
            return
        if self._embedded:
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)
        if not self._begun:
            self._clean_up()
        text = f"{name} again: quitting" if self._begun else f"{name} before training began: there is nothing to save"
        # A progress display hides the cursor.
        cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        os.write(2, f"{cursor}{text}\n".encode())
        os._exit(128 + signum)
