"""A worker of a sweep of the toy algorithm: `python sweep_worker.py <seconds a trial> key=value ...`.

Seconds are those of the first process, the second and so on: `20,0.2`. In the place of a number there may be a file: no
trial is trained before it is there.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from haepo_jax.runner.commands import sweep as command_line
from haepo_jax.runner.sweeps.builder import Builder
from tests.runner.sweeps.toy_algorithm import Toy


def use_toy(pause: str = "0") -> None:
    """Makes every trial of this process one of the toy algorithm that takes so long to build."""
    start = Path() if pause.replace(".", "").isdigit() else Path(pause)
    seconds = float(pause) if start == Path() else 0.0

    def build(self: Builder, values: dict[str, object]) -> Toy:
        time.sleep(seconds)
        while not start.exists():
            time.sleep(0.05)
        return Toy(learning_rate=values.get("algo.learning_rate", 0.01), total_steps=self.plan.settings.total_steps)

    Builder.__call__ = build  # type: ignore[assignment]
    Builder.check = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    use_toy(sys.argv[1].split(",")[int(os.environ.get("JAX_PROCESS_ID", 0))])
    sys.exit(command_line.main(sys.argv[2:]))
