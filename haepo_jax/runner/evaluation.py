"""How much a run evaluates: by default at most as many environment steps as it trains."""

from __future__ import annotations

import dataclasses

from haepo_jax.algorithms.base import Algorithm

FINAL_EPISODES = 128
FEW_EPISODES = 4
KINDS = 2
"""Every evaluation plays sampled and greedy actions."""


@dataclasses.dataclass(frozen=True)
class EvaluationSize:
    """Episodes of each kind; `max_steps` is where they are cut, None: at the environment's horizon."""

    episodes: int
    max_steps: int | None = None


def row_size(algorithm: Algorithm) -> EvaluationSize:
    """The evaluation at a row: as many episodes, up to `eval_episodes`, as keep all rows' evaluations, with every episode
    at full length, within `total_steps`; or else a few, in which case not every row is evaluated (see `Training`)."""
    asked, total = algorithm.eval_episodes, algorithm.total_steps
    horizon = _horizon(algorithm)
    if not asked or horizon is None:
        return EvaluationSize(asked)
    rows = algorithm.log_points
    return _within(min(asked, max(FEW_EPISODES, total // (KINDS * horizon * rows))), total, horizon)


def final_size(asked: int | None, algorithm: Algorithm) -> EvaluationSize:
    """The final evaluation: what was asked for; None: 128 episodes, or as many as at full length fit in `total_steps`."""
    horizon = _horizon(algorithm)
    if asked is not None or horizon is None:
        return EvaluationSize(FINAL_EPISODES if asked is None else asked)
    return _within(FINAL_EPISODES, algorithm.total_steps, horizon)


def _horizon(algorithm: Algorithm) -> int | None:
    return getattr(getattr(algorithm, "env", None), "horizon", None)


def _within(episodes: int, total: int, horizon: int) -> EvaluationSize:
    episodes = max(1, min(episodes, total // (KINDS * horizon)))
    return EvaluationSize(episodes, None if KINDS * horizon <= total else max(1, total // KINDS))
