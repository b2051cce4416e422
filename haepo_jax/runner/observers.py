"""What a run reports while it trains, and the protocol of those who watch it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.state import CAUSES, TrainState
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.statistics import mean_of_known


@dataclasses.dataclass(frozen=True)
class Row:
    """A logged update. Lists hold one value per seed.

    Attributes:
      index: of the row, counted from 0.
      update: updates done by each seed.
      env_steps: environment steps done by each seed.
      wall_seconds: since training began, compilation left out.
      env_steps_per_second: of all seeds together since the row before, evaluation included.
      metrics: each metric's value per seed; NaN where there is none, such as a return before an episode has ended.
    """

    index: int
    update: list[int]
    env_steps: list[int]
    wall_seconds: float
    env_steps_per_second: float
    metrics: dict[str, list[float]]

    def mean(self, name: str) -> float:
        """A metric's mean over the seeds that have a value; NaN where none has, or the metric is unknown."""
        return float(mean_of_known(self.metrics.get(name, [np.nan])))

    @property
    def mean_steps(self) -> int:
        """Environment steps per seed, rounded down."""
        return sum(self.env_steps) // len(self.env_steps)


@dataclasses.dataclass(frozen=True)
class Counters:
    """How far every seed is, read from a train state; one value per seed in each list (see `TrainState` and `TrainingStatus`)."""

    update: list[int]
    env_steps: list[int]
    diverged_at: list[int]
    cause: list[int]
    skipped: list[int]
    invalid_episodes: list[int]

    @classmethod
    def read(cls, state: TrainState) -> Counters:
        """Waits for the device."""
        status = (getattr(state.status, field.name) for field in dataclasses.fields(cls)[2:])
        values = (state.update, state.env_steps.to_int(), *status)
        return cls(*(np.atleast_1d(np.asarray(value)).tolist() for value in values))

    @property
    def behind(self) -> int | None:
        """The steps of the seed that is least far among those that still run; None where all are frozen."""
        return min((steps for steps, at in zip(self.env_steps, self.diverged_at, strict=True) if at < 0), default=None)

    def before(self, until: int) -> bool:
        """Whether a seed that still runs has fewer than `until` steps."""
        return self.behind is not None and self.behind < until

    def divergences(self, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Each frozen seed, the update that was not finite and what in it."""
        return [
            {"seed": seed, "update": at, "not_finite": not_finite(cause)}
            for seed, at, cause in zip(seeds, self.diverged_at, self.cause, strict=True)
            if at >= 0
        ]


def not_finite(cause: int) -> list[str]:
    """The names behind the bits of `TrainingStatus.cause`."""
    return [name for bit, name in enumerate(CAUSES) if cause >> bit & 1]


def divergence_text(seed: dict[str, Any]) -> str:
    """One of `Counters.divergences` in words."""
    return f"seed {seed['seed']} diverged: not finite in update {seed['update']}: {', '.join(seed['not_finite'])}"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What is known of a run before it starts.

    Attributes:
      rows: logged by the part of the run that it resumes; 0 for a new run.
      logged_steps: environment steps per seed of the last of those.
      resumed_from: environment steps per seed done by that part; None where the run is new, 0 where it had no checkpoint yet.
    """

    config: RunConfig
    algorithm: Algorithm
    directory: Path | None
    device: str
    fallback: str | None
    rows: int = 0
    logged_steps: int = -1
    resumed_from: int | None = None


class Observer:
    """What watches a run: loggers, the progress display, checkpoints. Every method may be left out.

    They are called in the order in which they were given. `on_slice` comes after every compiled call and may raise to
    end the run; it and `on_state` see the train state, whose buffers are donated to the next call: copy what must stay.
    """

    def on_start(self, info: RunInfo) -> None:
        """Before anything is compiled."""

    def on_compiled(self, seconds: float) -> None:
        """After compilation, before the first step."""

    def on_slice(self, state: TrainState, env_steps: list[int]) -> None:
        """After every compiled call; `env_steps` per seed."""

    def on_row(self, row: Row) -> None:
        """After every logged update."""

    def on_state(self, row: Row, state: TrainState) -> bool | None:
        """After `on_row`: the state behind the row; copy what must stay. True ends the run here, in good order."""
        return None

    def on_evaluation(self, final: bool) -> None:
        """While an evaluation is under way that takes longer than a few seconds; `final`: that of the trained policy."""

    def on_warning(self, text: str) -> None:
        """Something that the user should know of, and that does not end the run; one line."""

    def on_end(self, summary: dict[str, Any]) -> None:
        """After the final evaluation."""

    def close(self) -> None:
        """Last, whether the run came to its end or not."""
