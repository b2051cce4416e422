"""A worker of a sweep of the toy algorithm: `python sweep_worker.py <seconds a trial> key=value ...`."""

from __future__ import annotations

import sys
import time

from haepo_jax.runner.commands import sweep as command_line
from haepo_jax.runner.sweeps.plan import SweepPlan
from tests.runner.sweeps.toy_algorithm import Toy


def use_toy(seconds: float = 0.0) -> None:
    """Makes every trial of this process one of the toy algorithm that takes so long to build."""

    def build(self: SweepPlan, values: dict[str, object]) -> Toy:
        time.sleep(seconds)
        return Toy(learning_rate=values.get("algo.learning_rate", 0.01), total_steps=self.settings.total_steps)

    SweepPlan.build = build  # type: ignore[assignment,method-assign]
    SweepPlan.check = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    use_toy(float(sys.argv[1]))
    sys.exit(command_line.main(sys.argv[2:]))
