"""How long checkpoints every minute keep a training loop waiting: a CartPole run and a Brax run of a few minutes each.

What is measured is the time for which the loop is blocked, by the clock around every copy and every wait, and not the
difference of two noisy runs. Writing goes on in a thread.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from haepo_jax.runner.checkpoints import Checkpoints, Saver
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.errors import Interrupted
from haepo_jax.runner.loop import run
from haepo_jax.runner.observers import Observer, RunInfo
from haepo_jax.runner.signals import StopSignals

RUNS = {
    "CartPole-v1": ["env=CartPole-v1"],
    "brax/ant": ["env=brax/ant", "algo=ppo", "algo.num_envs=256", "algo.num_steps=16", "env_kwargs.backend=positional"],
}


class Stopwatch(Observer, StopSignals):
    """Ends a run some time after its compilation."""

    def __init__(self, seconds: float) -> None:
        StopSignals.__init__(self, lambda: None)
        self._seconds = seconds
        self._end = 0.0

    def on_start(self, info: RunInfo) -> None:
        print(f"  {info.config.algo.name} on {info.config.env}, {info.device}", file=sys.stderr)

    def on_compiled(self, seconds: float) -> None:
        self._end = time.perf_counter() + self._seconds

    def begin(self) -> None:
        pass

    def __call__(self) -> int | None:
        return 15 if time.perf_counter() > self._end else None


def measure_run(arguments: list[str], minutes: float) -> dict[str, float]:
    """Trains with a checkpoint every minute and returns what the last checkpoint says of the time."""
    shared = ["total_steps=1e12", "algo.log_points=1000000", "algo.eval_episodes=0", "checkpoint_minutes=1"]
    config = compose(read_arguments([*arguments, *shared]).overrides, RunConfig)
    watch = Stopwatch(60 * minutes)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        saver = Saver(Checkpoints(directory / "checkpoints"), keep=1000, minutes=config.checkpoint_minutes)
        with contextlib.suppress(Interrupted):
            run(config, directory, [watch], saver=saver, stop=watch)
        found = Checkpoints(directory / "checkpoints").all()
        position = found[-1].progress()["position"]
        size = sum(file.stat().st_size for file in found[-1].path.rglob("*") if file.is_file())
    return {
        "run_seconds": position["run_seconds"],
        "checkpoints": len(found),
        "bytes_each": size,
        "blocked_seconds": position["checkpoint_seconds"],
        "blocked_share": position["checkpoint_seconds"] / position["run_seconds"],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    minutes = 3.0 if options.size == "full" else 0.2
    return {"minutes": minutes, "results": {name: measure_run(arguments, minutes) for name, arguments in RUNS.items()}}
