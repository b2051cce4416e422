"""SIGINT and SIGTERM end a run in good order: the compiled call under way ends and a checkpoint is written.

Python runs its signal handlers between two of its own instructions, so not while a compiled call is under way. The
number of a signal is therefore read, in a thread, from the pipe that the interpreter's C handler writes it to at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted and a second one ends the process at once.

    Before `begin` is called there is nothing to save, and the first one ends the process, too. Off the main thread,
    where Python allows no handlers, it does nothing.

    Args:
      clean_up: called before the process is ended for want of something to save.
      quiet: whether to say nothing of the first one.
      embedded: in a user's program or notebook nothing ends the process: instead of that KeyboardInterrupt is raised, or
        SystemExit for SIGTERM, when the compiled call under way has ended.
    """

    def __init__(self, clean_up: Callable[[], None], *, quiet: bool = False, embedded: bool = False) -> None:
        self._clean_up, self._quiet, self._embedded = clean_up, quiet, embedded
        self._begun = False
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._reader = self._writer = -1
        self._thread: threading.Thread | None = None
        self.signum: int | None = None

    def __call__(self) -> int | None:
        """The number of the signal that asked the run to end, if one did."""
        return self.signum

    def begin(self) -> None:
        """From here on there is something to save."""
        self._begun = True

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._embedded:
            self._previous = {number: signal.signal(number, self._raise_or_note) for number in SIGNALS}
        else:
            self._reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._previous = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._previous_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
            signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._thread is not None:
            os.close(self._writer)
            self._thread.join()
            os.close(self._reader)
            self._thread = None

    def _watch(self) -> None:
        while data := os.read(self._reader, 1):
            if data[0] not in SIGNALS:
                continue
            name = "Ctrl-C" if data[0] == signal.SIGINT else "SIGTERM"
            if self.signum is not None:
                self._leave(data[0], f"{name} again: ending at once")
            if not self._begun:
                self._clean_up()
                self._leave(data[0], f"{name} before training began: there is nothing to save")
            self._note(data[0], name)

    def _raise_or_note(self, signum: int, frame: Any) -> None:
        if self._begun and self.signum is None:
            self._note(signum, "Ctrl-C" if signum == signal.SIGINT else "SIGTERM")
        else:
            raise KeyboardInterrupt if signum == signal.SIGINT else SystemExit(128 + signum)

    def _note(self, signum: int, name: str) -> None:
        self.signum = signum
        if not self._quiet:
            text = f"{name}: ending after the call under way and a checkpoint; once more ends at once"
            print(text, file=sys.stderr, flush=True)

    @staticmethod
    def _leave(signum: int, text: str) -> None:
        # A progress display hides the cursor.
        cursor = "\x1b[?25h" if sys.stdout.isatty() else ""
        os.write(2, f"{cursor}{text}\n".encode())
        os._exit(128 + signum)
