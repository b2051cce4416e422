"""How much a run evaluates: by default at most as many environment steps as it trains; and how to be stopped meanwhile."""

from __future__ import annotations

import atexit
import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from haepo_jax.algorithms.base import Algorithm

T = TypeVar("T")

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
    horizon = getattr(algorithm.env, "horizon", None)
    if not asked or horizon is None:
        return EvaluationSize(asked)
    rows = algorithm.log_points
    return _within(min(asked, max(FEW_EPISODES, total // (KINDS * horizon * rows))), total, horizon)


def final_size(asked: int | None, algorithm: Algorithm) -> EvaluationSize:
    """The final evaluation: what was asked for; None: 128 episodes, or as many as at full length fit in `total_steps`."""
    horizon = getattr(algorithm.env, "horizon", None)
    if asked is not None or horizon is None:
        return EvaluationSize(FINAL_EPISODES if asked is None else asked)
    return _within(FINAL_EPISODES, algorithm.total_steps, horizon)


def _within(episodes: int, total: int, horizon: int) -> EvaluationSize:
    episodes = max(1, min(episodes, total // (KINDS * horizon)))
    return EvaluationSize(episodes, None if KINDS * horizon <= total else max(1, total // KINDS))


def interruptibly(function: Callable[[], T], poll: Callable[[], None]) -> T:
    """Calls a function that may wait long for the device, and meanwhile, a few times a second, `poll`.

    If `poll` raises, that is raised at once and the call is abandoned: a compiled program cannot be stopped, so a process
    that ends before it does not wait for it.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=call, name="evaluation", daemon=True)
    thread.start()
    while not future.done():
        try:
            return future.result(timeout=0.2)
        except TimeoutError:
            if future.done():
                break
        try:
            poll()
        except BaseException as error:
            atexit.register(_leave, thread, 128 + getattr(error, "signum", -127))
            raise
    return future.result()


def _leave(thread: threading.Thread, status: int) -> None:
    if thread.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
