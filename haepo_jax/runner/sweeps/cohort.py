"""Trains a cohort of trials together, each to its end or with successive halving."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.counting import StepCount
from haepo_jax.runner.sweeps.batch import Programs, Run
from haepo_jax.runner.sweeps.plan import SweepConfig

Ints = npt.NDArray[np.int64]

CALL_SECONDS = 2.0
"""How long one compiled call may be expected to take: between two, runs are regrouped and Ctrl-C is heard."""


@jax.jit
def take(stacked: Any, indices: jax.Array) -> Any:
    """The runs of these indices (M,), in that order; an index may come twice."""
    return jax.tree.map(lambda x: x[indices], stacked)


@functools.partial(jax.jit, donate_argnums=0)
def put(stacked: Any, indices: jax.Array, runs: Any) -> Any:
    """The stack with `runs` written at `indices` (M,); an index past the end is left out."""
    return jax.tree.map(lambda x, new: x.at[indices].set(new, mode="drop"), stacked, runs)


def survivors(values: Mapping[int, float], eta: int) -> set[int]:
    """The trials whose values are the best 1 in `eta`, rounded up: a rung of successive halving (Jamieson and Talwalkar 2016,
    arXiv 1502.07943). A value that is not finite stands for a trial that failed, and never survives."""
    known = [trial for trial, value in values.items() if math.isfinite(value)]
    return {*sorted(known, key=values.__getitem__, reverse=True)[: -(-len(values) // eta)]}


class Group:
    """The trials of a cohort that share one shape: their runs in one stack, trained by one set of programs.

    All runs stay on the device. A call trains a batch of them; runs whose episodes are about as long are put into the same
    batch, because a batch takes as many environment steps as its longest episode. A batch that would not be full repeats
    its runs, and the copies are dropped, so that nothing is compiled for it.

    Attributes:
      trials: the numbers of Optuna's trials.
      active: the places in `trials` of those that still train.
      returns: (trials, seeds), the mean return of each seed in the trial's last evaluation; NaN for one that diverged,
        whatever it returned before.
    """

    def __init__(
        self, algorithms: Mapping[int, Algorithm], programs: Programs, seeds: Sequence[int], batch_size: int
    ) -> None:
        """Starts the runs: these seeds of every trial's algorithm, given by its number; at most `batch_size` in a call."""
        self.trials, self.programs, self.num_seeds = [*algorithms], programs, len(seeds)
        self.active = list(range(len(self.trials)))
        self.returns: npt.NDArray[np.float64] = np.full((len(self.trials), self.num_seeds), np.nan)
        self.real = len(self.trials) * self.num_seeds
        # Runs past the real ones repeat the first, so that the devices have shards of equal size.
        self._size, self._batch_size = (
            -(-size // programs.num_devices) * programs.num_devices for size in (self.real, min(batch_size, self.real))
        )
        runs = np.resize(np.arange(self.real), self._size)
        self._numbers = [leaf[runs // self.num_seeds] for leaf in programs.numbers([*algorithms.values()])]
        self._runs: Run = programs.start(self._numbers, np.asarray(seeds, np.uint32)[runs % self.num_seeds])
        self._updates_per_call = 1
        self._read()

    def runs_of(self, places: Sequence[int]) -> Ints:
        """The runs of trials: (trials * seeds,)."""
        return (np.asarray(places, np.int64)[:, None] * self.num_seeds + np.arange(self.num_seeds)).reshape(-1)

    def _batches(self, runs: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Full batches of these runs, similar episode lengths together: what to take, and where to write it back: copies
        past the end, where they are dropped."""
        runs = runs[np.argsort(self._length[runs], kind="stable")]
        for first in range(0, len(runs), self._batch_size):
            chunk = runs[first : first + self._batch_size]
            indices = np.resize(chunk, self._batch_size)
            yield indices, np.where(np.arange(len(indices)) < len(chunk), indices, self._size)

    def _batch(self, indices: Ints) -> tuple[Any, Run]:
        return [leaf[indices] for leaf in self._numbers], take(self._runs, indices)

    def train(self, until: int, on_call: Callable[[int], None]) -> None:
        """Trains the active trials for `until` steps in all; `on_call(steps)` after every call."""
        runs = self.runs_of(self.active)
        while (left := runs[(self.env_steps[runs] < until) & (self.diverged_at[runs] < 0)]).size:
            for indices, back in self._batches(left):
                steps, updates, begin = self.env_steps.sum(), self.updates, time.perf_counter()
                limits = StepCount.of(until), jnp.int32(self._updates_per_call)
                batch = self.programs.advance(*self._batch(indices), *limits)
                self._runs = self.programs.place(put(self._runs, back, batch))
                self._read()
                if made := int((self.updates - updates).max()):
                    self._updates_per_call = max(1, int(CALL_SECONDS * made / (time.perf_counter() - begin)))
                on_call(int(self.env_steps.sum() - steps))

    def _read(self) -> None:
        """Brings the runs' counters to the host; waits for the device."""
        state = self._runs.state
        self.env_steps: Ints = np.asarray(state.env_steps.to_int())[: self.real]
        self.updates: Ints = np.asarray(state.update, np.int64)[: self.real]
        self.diverged_at: Ints = np.asarray(state.status.diverged_at, np.int64)[: self.real]
        self._length = np.asarray(self._runs.episode_length, np.float64)[: self.real]

    def evaluate(self) -> None:
        """Evaluates the active trials: their `returns`."""
        values = np.full(self._size + 1, np.nan)
        for indices, back in self._batches(self.runs_of(self.active)):
            values[back] = self.programs.evaluate(*self._batch(indices))
        known = np.where(self.diverged_at < 0, values[: self.real], np.nan).reshape(-1, self.num_seeds)
        self.returns[self.active] = known[self.active]

    def end(self, place: int) -> dict[str, Any]:
        """Trains a trial no further; what it has come to, as the columns of the sweep's table."""
        self.active.remove(place)
        runs = self.runs_of([place])
        sums, counts = (np.asarray(x, np.float64)[runs] for x in (self._runs.curve_sum, self._runs.curve_count))
        return {
            "return_per_seed": self.returns[place],
            "env_steps_per_seed": self.env_steps[runs],
            "updates_per_seed": self.updates[runs],
            "diverged_at_per_seed": self.diverged_at[runs],
            "curve_return_per_seed": np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0),
        }


def train_cohort(
    groups: Sequence[Group],
    settings: SweepConfig,
    *,
    on_call: Callable[[int], None],
    on_rung: Callable[[int, dict[int, float]], set[int]],
    on_end: Callable[[int, str, dict[str, Any]], None],
) -> None:
    """Trains every trial of a cohort, given by shape, until it ends, is stopped by halving, or fails: a seed diverges, or its
    return is not finite.

    `on_call` is given the valid steps of every compiled call; `on_rung`, at each rung of halving, its number and the mean
    return of every trial that reached it, and returns the trials that continue; `on_end` a trial's number, its state
    (`complete`, `stopped` or `failed`) and what `Group.end` gives.
    """
    for rung, share in enumerate(run_shares(settings)):
        values: dict[int, float] = {}
        for group in groups:
            group.train(math.ceil(settings.total_steps * share - 1e-9), on_call)
            group.evaluate()
            values |= {group.trials[place]: float(group.returns[place].mean()) for place in group.active}
            if share == 1:  # known now, whatever becomes of the other groups
                _end(group, values, set(), "complete", on_end)
        if share < 1:
            # Those that fail end here, too: they count among the trials of which 1 in `halving` survives.
            kept = on_rung(rung, values)
            for group in groups:
                _end(group, values, kept, "stopped", on_end)


def _end(
    group: Group,
    values: Mapping[int, float],
    kept: set[int],
    state: str,
    on_end: Callable[[int, str, dict[str, Any]], None],
) -> None:
    """Ends the trials of a group that are not kept, in this state, and those without a finite value as failed."""
    for place in [*group.active]:
        number = group.trials[place]
        if not math.isfinite(values[number]):
            on_end(number, "failed", group.end(place))
        elif number not in kept:
            on_end(number, state, group.end(place))


def run_shares(settings: SweepConfig) -> list[float]:
    """The shares of a run at which trials are evaluated: for halving eta^-rungs, ..., 1/eta; and 1, its end."""
    rungs = settings.halving_rungs if settings.halving is not None else 0
    return [float(settings.halving or 1) ** -rung for rung in reversed(range(rungs + 1))]
