"""A worker of a sweep of the toy algorithm: `python sweep_worker.py <seconds a trial> key=value ...`."""

from __future__ import annotations

import sys
import time

from haepo_jax.runner.commands import sweep as command_line
from haepo_jax.runner.sweeps.builder import Builder
from tests.runner.sweeps.toy_algorithm import Toy


def use_toy(seconds: float = 0.0) -> None:
    """Makes every trial of this process one of the toy algorithm that takes so long to build."""

    def build(self: Builder, values: dict[str, object]) -> Toy:
        time.sleep(seconds)
        return Toy(learning_rate=values.get("algo.learning_rate", 0.01), total_steps=self.plan.settings.total_steps)

    Builder.__call__ = build  # type: ignore[assignment]
    Builder.check = lambda self: None  # type: ignore[method-assign]


if __name__ == "__main__":
    use_toy(float(sys.argv[1]))
    sys.exit(command_line.main(sys.argv[2:]))
