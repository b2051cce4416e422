"""What a sweep shows while it works: a live line on a terminal, at most about twenty plain lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, TextIO

from haepo_jax.messages import duration, number
from haepo_jax.runner.progress import PLAIN_LINES, live_line


class Display:
    """Trials done, best return so far, steps per second and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live: Any = None
        self._begin: tuple[float, float, int] | None = None
        self._printed = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def start(self) -> None:
        """Begins to show progress."""
        if self._stream.isatty():
            self._live = live_line(self._stream)
            self._live.add_task("sweep", total=1.0, status="compiling")

    def show(self, trials: str, best: float, share: float, steps: int) -> None:
        """How many trials have ended and the best return, the share of the sweep that all workers have done, and the steps
        that this one has."""
        now = time.perf_counter()
        # The clock starts after the first call, which compiles.
        self._begin = self._begin or (now, share, steps)
        elapsed, gained, taken = now - self._begin[0], share - self._begin[1], steps - self._begin[2]
        parts = [trials, f"{share:.0%} of the steps"]
        if math.isfinite(best):
            parts.append(f"best {number(best)}")
        if taken and gained > 0:
            parts += [f"{taken / elapsed:,.0f} steps/s", f"{duration(elapsed * (1 - share) / gained)} left"]
        if self._live is not None:
            self._live.update(self._live.task_ids[0], completed=share, status="  ".join(parts))
        elif (line := int(share * PLAIN_LINES)) > self._printed:
            self._printed = line
            self.say("  ".join(parts))

    def close(self) -> None:
        """Takes the live line away."""
        if self._live is not None:
            self._live.stop()
            self._live = None
