"""What a sweep shows while it works: a live line on a terminal, at most about twenty plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO

from haepo_jax.messages import duration, number
from haepo_jax.runner.progress import PLAIN_LINES, live_line


class Display:
    """Trials and steps done, best return so far, steps per second and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live: Any = None
        self._trials = self._done = self._steps = self._printed = 0
        self._best = math.nan
        self._share = self._share_before = 0.0
        self._begin: float | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def start(self, trials: int, done: int, best: float) -> None:
        """Begins with `done` of `trials` trials ended already, the best of them `best`."""
        self._trials, self._done, self._best = trials, done, best
        self._share = self._share_before = done / max(1, trials)
        if self._stream.isatty():
            self._live = live_line(self._stream)
            self._live.add_task("sweep", total=1.0, status="compiling")

    def ended(self, done: int, best: float) -> None:
        """So many trials have ended, those of other workers included."""
        self._done, self._best = done, best
        self._show()

    def advanced(self, steps: int, share: float) -> None:
        """This worker has done `steps` more steps, and all workers that share of the sweep."""
        self._share = max(self._share, min(1.0, share))
        if self._begin is None:
            # The clock starts after the first call, in which device and caches warm up.
            self._begin, self._share_before = time.perf_counter(), self._share
        else:
            self._steps += steps
        self._show()

    def _show(self) -> None:
        parts = [f"{self._done}/{self._trials} trials", f"{self._share:.0%} of the steps"]
        if math.isfinite(self._best):
            parts.append(f"best {number(self._best)}")
        if self._steps and self._begin is not None:
            elapsed, gained = time.perf_counter() - self._begin, self._share - self._share_before
            parts.append(f"{self._steps / elapsed:,.0f} steps/s")
            parts += [f"{duration(elapsed * (1 - self._share) / gained)} left"] if gained > 0 else []
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=self._share, status="  ".join(parts))
        elif (line := int(self._share * PLAIN_LINES)) > self._printed:
            self._printed = line
            self.say("  ".join(parts))

    def close(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
