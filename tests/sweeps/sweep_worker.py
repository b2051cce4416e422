"""A worker of a sweep of the toy algorithm: `python sweep_worker.py <seconds a trial> key=value ...`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from toy_algorithm import Toy

from haepo_jax.config import read_arguments
from haepo_jax.sweeps import run as runs
from haepo_jax.sweeps.display import Display
from haepo_jax.sweeps.settings import read_sweep


def use_toy(seconds: float = 0.0) -> None:
    """Makes every trial of this process one of the toy algorithm that takes so long to build."""

    def build(self: runs._Builder, values: dict[str, object]) -> Toy:
        time.sleep(seconds)
        return Toy(learning_rate=values.get("algo.learning_rate", 0.01), total_steps=self.plan.settings.total_steps)

    runs._Builder.__call__ = build  # type: ignore[assignment]


if __name__ == "__main__":
    use_toy(float(sys.argv[1]))
    plan = read_sweep(read_arguments(sys.argv[2:]).overrides)
    assert plan.settings.run_dir is not None
    directory = Path(plan.settings.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    runs.run(plan, directory, "test", Display())
