"""What a run reports while it trains, and the protocol of those who watch it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from haepo_jax.messages import did_you_mean
from haepo_jax.runner.config import RunConfig
from haepo_jax.statistics import mean_of_known

if TYPE_CHECKING:
    from haepo_jax.algorithms.base import Algorithm
    from haepo_jax.algorithms.state import TrainState


@dataclasses.dataclass(frozen=True)
class Row:
    """A logged update. Lists hold one value per seed.

    Attributes:
      index: index of the row, from 0.
      update: updates done by each seed.
      env_steps: environment steps done by each seed.
      wall_seconds: seconds since training began, without compilation.
      env_steps_per_second: of all seeds together since the previous row, including evaluation.
      metrics: each metric's value per seed; NaN if it has none, such as a return before an episode has ended.
    """

    index: int
    update: list[int]
    env_steps: list[int]
    wall_seconds: float
    env_steps_per_second: float
    metrics: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """A metric's mean over the seeds that have a value; NaN if none has. Raises KeyError for an unknown metric."""
        if name not in self.metrics:
            raise KeyError(f"there is no metric {name!r}{did_you_mean(name, self.metrics)}")
        return float(mean_of_known(self.metrics[name]))

    @property
    def mean_return(self) -> float:
        """Of the evaluation, or without evaluations of training; NaN where neither gave one."""
        name = "eval_return" if "eval_return" in self.metrics else "episode_return"
        return self.mean(name) if name in self.metrics else math.nan

    @property
    def mean_steps(self) -> int:
        """Environment steps per seed, rounded down."""
        return sum(self.env_steps) // len(self.env_steps)

    def to_json(self) -> dict[str, Any]:
        """The row as `metrics.jsonl` holds it: the mean over the seeds that have a value, and every seed's under `seeds`.

        `update` is that of the seed that is furthest, `env_steps` the mean rounded down.
        """
        return {
            "row": self.index,
            "update": max(self.update),
            "env_steps": self.mean_steps,
            "wall_seconds": self.wall_seconds,
            "env_steps_per_second": self.env_steps_per_second,
            **{name: self.mean(name) for name in self.metrics},
            "seeds": {"update": self.update, "env_steps": self.env_steps, **self.metrics},
        }


def divergence_text(seed: dict[str, Any]) -> str:
    """An entry of the summary's `diverged` in words."""
    return f"seed {seed['seed']} diverged: not finite in update {seed['update']}: {', '.join(seed['not_finite'])}"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it starts.

    Attributes:
      rows: logged by the part of the run that it resumes; 0 for a new run.
      resumed_from: environment steps per seed done by that part; None for a new run, 0 where it had no checkpoint yet.
    """

    config: RunConfig
    algorithm: Algorithm
    directory: Path | None
    device: str
    rows: int = 0
    resumed_from: int | None = None


class Observer:
    """Observes a run, as loggers, the progress display and callbacks do. All methods are optional.

    Observers are called in the order in which they were given. `on_slice` is called after every compiled call and may raise
    to end the run; it and `on_row` receive the train state, whose buffers are donated to the next call: copy what you keep.
    """

    def on_start(self, info: RunInfo) -> None:
        """Before anything is compiled."""

    def on_compiled(self, seconds: float) -> None:
        """After compilation, before the first step."""

    def on_slice(self, state: TrainState, env_steps: list[int]) -> None:
        """After every compiled call; `env_steps` per seed."""

    def on_row(self, row: Row, state: TrainState) -> bool | None:
        """After every logged update, with the state behind it. True stops the run here."""
        return None

    def on_evaluation(self, final: bool) -> None:
        """Before an evaluation, which may take long; `final`: that of the trained policy."""

    def on_warning(self, text: str) -> None:
        """A warning for the user, in one line; the run continues."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the final evaluation."""

    def close(self) -> None:
        """Called last, also if the run fails or is interrupted."""
