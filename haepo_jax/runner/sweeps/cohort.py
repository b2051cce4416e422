"""Trains a cohort of trials together: independently, with successive halving, or as a population."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.counting import StepCount
from haepo_jax.runner.sweeps.lanes import Lane, Programs
from haepo_jax.runner.sweeps.plan import SweepConfig

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CALL_SECONDS = 2.0
"""How long one compiled call may be expected to take: between two, lanes are regrouped and Ctrl-C is heard."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A configuration to train.

    Attributes:
      number: of Optuna's trial.
      algorithm: on its environment.
      seed: the first of its seeds.
      env: the environment's name; trials are compared only within one.
    """

    number: int
    algorithm: Algorithm
    seed: int
    env: str


# --- The stack of lanes -----------------------------------------------------------------------------------------------


@jax.jit
def take(stacked: Any, indices: jax.Array) -> Any:
    """The lanes of these indices (M,), in that order; an index may come twice."""
    return jax.tree.map(lambda x: x[indices], stacked)


@functools.partial(jax.jit, donate_argnums=0)
def put(stacked: Any, indices: jax.Array, lanes: Any) -> Any:
    """The stack with `lanes` written at `indices` (M,); an index past the end is left out."""
    return jax.tree.map(lambda x, new: x.at[indices].set(new, mode="drop"), stacked, lanes)


# --- Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) -----------------------------------------------


def survivors(values: npt.ArrayLike, eta: int) -> Ints:
    """The indices, ascending, of the best 1 in `eta` of `values` (N,), rounded up.

    A value that is not finite stands for a trial that failed, and never survives; of equal values the first does.
    """
    known = np.asarray(values, np.float64)
    best_first = np.argsort(-np.where(np.isfinite(known), known, -np.inf), kind="stable")[: -(-len(known) // eta)]
    return np.sort(best_first[np.isfinite(known[best_first])])


# --- Population-based training (Jaderberg et al. 2017, arXiv 1711.09846) ----------------------------------------------


@jax.jit
def exploit(key: jax.Array, values: jax.Array) -> jax.Array:
    """Whose state each member continues from: (N,) indices.

    The worst quarter (truncation selection), and every member that failed, whose value is not finite, copy members of the
    best quarter, drawn uniformly; all others keep their own. If all failed, all keep their own.
    """
    size = values.shape[0]
    count, failed = size // 4, ~jnp.isfinite(values)
    best_first = jnp.argsort(jnp.where(failed, jnp.inf, -values), stable=True)
    best = jnp.clip(size - jnp.sum(failed), 1, max(count, 1))
    chosen = best_first[jax.random.randint(key, (size,), 0, best)]
    replaced = (jnp.argsort(best_first) >= size - count) | failed
    return jnp.where(replaced & ~jnp.all(failed), chosen, jnp.arange(size))


@jax.jit
def explore(key: jax.Array, values: jax.Array, low: float, high: float) -> jax.Array:
    """Numbers (N,), each multiplied by 0.8 or 1.25, equally likely, and kept within [low, high]."""
    factor = jnp.where(jax.random.bernoulli(key, shape=values.shape), 1.25, 0.8)
    return jnp.clip(values * factor, low, high)


@jax.jit
def inherit(lanes: Lane, source: jax.Array) -> Lane:
    """Stacked lanes, each of which continues from the state of lane `source` (L,): parameters, optimiser and all.

    Keys stay: two lanes that continued from one state with one key would collect the same episodes. So do step counts
    and learning curves, which are each lane's own.
    """
    copied, own = take(lanes, source), lanes.state
    state = dataclasses.replace(copied.state, key=own.key, update=own.update, env_steps=own.env_steps)
    return dataclasses.replace(copied, state=state, curve_sum=lanes.curve_sum, curve_count=lanes.curve_count)


# --- A cohort ---------------------------------------------------------------------------------------------------------


class Group:
    """The trials of a cohort that share one shape: their lanes in one stack, trained by one set of programs.

    All lanes stay on the device. A call trains a batch of them; lanes whose episodes are about as long are put into the
    same batch, because a batch takes as many environment steps as its longest episode. A batch that would not be full
    repeats its lanes, and the copies are dropped, so that nothing is compiled for it.

    Attributes:
      active: the places in `trials` of those that still train.
      changed: population-based training: each trial's perturbed hyperparameters after each round.
    """

    def __init__(self, trials: Sequence[Trial], programs: Programs, num_seeds: int) -> None:
        self.trials, self.programs, self.num_seeds = list(trials), programs, num_seeds
        self.active = list(range(len(self.trials)))
        self.changed: list[dict[str, list[float]]] = [{} for _ in self.trials]
        self.total_steps = self.trials[0].algorithm.total_steps
        self.real = len(self.trials) * num_seeds
        # Lanes past the real ones repeat the first, so that the devices share the stack equally.
        self._size = -(-self.real // programs.num_devices) * programs.num_devices
        lanes = np.resize(np.arange(self.real), self._size)
        first = np.array([trial.seed for trial in self.trials])[lanes // num_seeds]
        seeds = (first + lanes % num_seeds).astype(np.uint32)
        numbers = programs.numbers([trial.algorithm for trial in self.trials])
        self._numbers = [leaf[lanes // num_seeds] for leaf in numbers]
        self._updates_per_call = 1
        stack: Lane | None = None
        for indices, back in self._batches(np.arange(self._size)):
            batch = programs("start", [x[indices] for x in self._numbers], seeds[indices])
            if stack is None:
                stack = programs.place(take(batch, np.resize(np.arange(len(indices)), self._size)))
            stack = put(stack, back, batch)
        self._lanes: Lane = programs.place(stack)
        self._read()

    def lanes_of(self, places: Sequence[int] | Ints) -> Ints:
        """The lanes of trials: (trials * seeds,)."""
        return (np.asarray(places, np.int64)[:, None] * self.num_seeds + np.arange(self.num_seeds)).reshape(-1)

    def _batches(self, lanes: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Full batches of these lanes: what to take, and where to write it back: copies past the end, where they are
        dropped."""
        for first in range(0, len(lanes), self.programs.size):
            chunk = lanes[first : first + self.programs.size]
            indices = np.resize(chunk, self.programs.size)
            yield indices, np.where(np.arange(len(indices)) < len(chunk), indices, self._size)

    def train(self, share: float, on_call: Callable[[int], None]) -> None:
        """Trains the active trials up to a share of their run; `on_call(steps)` after every call."""
        until = math.ceil(self.total_steps * share - 1e-9)
        lanes = self.lanes_of(self.active)
        while (left := lanes[(self.env_steps[lanes] < until) & (self.diverged_at[lanes] < 0)]).size:
            for indices, back in self._batches(self._by_length(left)):
                steps, updates, begin = self.env_steps.sum(), self.updates, time.perf_counter()
                batch = self._run("advance", indices, StepCount.of(until), jnp.int32(self._updates_per_call))
                self._lanes = self.programs.place(put(self._lanes, back, batch))
                self._read()
                if made := int((self.updates - updates).max()):
                    self._updates_per_call = max(1, int(CALL_SECONDS * made / (time.perf_counter() - begin)))
                on_call(int(self.env_steps.sum() - steps))

    def _run(self, program: str, indices: Ints, *limits: Any) -> Any:
        return self.programs(program, [x[indices] for x in self._numbers], take(self._lanes, indices), *limits)

    def _by_length(self, lanes: Ints) -> Ints:
        return lanes[np.argsort(self._length[lanes], kind="stable")]

    def _read(self) -> None:
        """Brings the lanes' counters to the host; waits for the device."""
        state = self._lanes.state
        self.env_steps: Ints = np.asarray(state.env_steps.to_int())[: self.real]
        self.updates: Ints = np.asarray(state.update, np.int64)[: self.real]
        self.diverged_at: Ints = np.asarray(state.status.diverged_at, np.int64)[: self.real]
        self._length = np.asarray(self._lanes.episode_length, np.float64)[: self.real]

    def evaluate(self) -> Floats:
        """The mean evaluation return of each seed of the active trials, (trials, S); NaN for one that diverged, whatever
        it returned before."""
        lanes = self.lanes_of(self.active)
        values = np.full(self._size + 1, np.nan)
        for indices, back in self._batches(self._by_length(lanes)):
            values[back] = self._run("evaluate", indices)
        return np.where(self.diverged_at < 0, values[: self.real], np.nan)[lanes].reshape(-1, self.num_seeds)

    def result(self, place: int, returns: Floats) -> dict[str, Any]:
        """What a trial has come to, as the columns of the sweep's table."""
        lanes = self.lanes_of([place])
        sums, counts = (np.asarray(x, np.float64)[lanes] for x in (self._lanes.curve_sum, self._lanes.curve_count))
        return {
            "return_per_seed": returns,
            "env_steps_per_seed": self.env_steps[lanes],
            "updates_per_seed": self.updates[lanes],
            "diverged_at_per_seed": self.diverged_at[lanes],
            "curve_return_per_seed": np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0),
        } | ({"pbt_values": self.changed[place]} if self.changed[place] else {})

    def note_numbers(self, names: Iterable[str]) -> None:
        """Adds the current values of these hyperparameters to `changed`."""
        for name in names:
            for changed, value in zip(self.changed, self._number(name)[: self.real : self.num_seeds], strict=True):
                changed.setdefault(name, []).append(float(value))

    def _number(self, name: str) -> npt.NDArray[Any]:
        return self._numbers[self.programs.places[name]]

    def mutate(self, key: jax.Array, values: Floats, ranges: Mapping[str, tuple[float, float]]) -> None:
        """The worst trials continue from the best, their numbers perturbed; `values` (trials,) says which is which."""
        exploit_key, explore_key = jax.random.split(key)
        source = np.asarray(exploit(exploit_key, values.astype(np.float32)))
        copied = source != np.arange(len(source))
        lanes = np.arange(self._size)
        lanes[: self.real] = self.lanes_of(source)
        self._lanes = self.programs.place(inherit(self._lanes, lanes))
        for name, bounds in ranges.items():
            numbers = self._number(name)[: self.real : self.num_seeds][source]
            # Each hyperparameter has a key of its own, so that sweeping another changes none of its draws.
            own_key = jax.random.fold_in(explore_key, self.programs.places[name])
            perturbed = np.where(copied, np.asarray(explore(own_key, numbers, *bounds)), numbers)
            self._number(name)[: self.real] = np.repeat(perturbed, self.num_seeds)
        self._read()


def train_cohort(
    groups: Sequence[Group],
    settings: SweepConfig,
    ranges: Mapping[str, tuple[float, float]],
    *,
    on_call: Callable[[int], None] = lambda steps: None,
    on_rung: Callable[[int, int, float], None] = lambda number, steps, value: None,
    on_end: Callable[[int, str, dict[str, Any]], None] = lambda number, state, result: None,
) -> None:
    """Trains every trial of a cohort until it ends, fails, or is stopped by halving.

    A trial fails if a seed diverges or its return is not finite. In population-based training it continues from one of
    the best; only one that fails in the last round has failed.

    Args:
      groups: the trials, by shape.
      settings: of the sweep, for halving and population-based training.
      ranges: the hyperparameters that population-based training perturbs, each with its lowest and highest value.
      on_call: given the valid steps of every compiled call.
      on_rung: given a trial's number, valid steps and mean return where it was evaluated before the end.
      on_end: given a trial's number, its state (`complete`, `stopped` by halving, or `failed`) and its `Group.result`, as
        soon as they are known.
    """
    shares = run_shares(settings)
    for turn, share in enumerate(shares):
        last = turn == len(shares) - 1
        returns: dict[int, Floats] = {}
        for group in groups:
            group.train(share, on_call)
            evaluated = group.evaluate()
            own_ranges = {name: ranges[name] for name in ranges if name in group.programs.places}
            if settings.pbt:
                group.note_numbers(own_ranges)
            for place, own in zip([*group.active], evaluated, strict=True):
                number, failed = group.trials[place].number, not np.isfinite(own).all()
                returns[number] = own
                if last or (failed and not settings.pbt):
                    on_end(number, "failed" if failed else "complete", group.result(place, own))
                    group.active.remove(place)
                elif not failed:
                    steps = group.env_steps[group.lanes_of([place])].mean()
                    on_rung(number, int(steps), float(own.mean()))
            if settings.pbt and not last:
                key = jax.random.fold_in(jax.random.key(settings.search_seed), turn)
                group.mutate(key, evaluated.mean(axis=1), own_ranges)
        if settings.halving is not None and not last:
            _halve(groups, returns, settings.halving, on_end)


def run_shares(settings: SweepConfig) -> list[float]:
    """The shares of a run at which trials are evaluated: for halving eta^-rungs, ..., 1/eta; and 1, its end."""
    if settings.halving is not None:
        return [float(settings.halving) ** -rung for rung in reversed(range(settings.halving_rungs + 1))]
    rounds = settings.pbt_rounds if settings.pbt else 1
    return [(turn + 1) / rounds for turn in range(rounds)]


def share_of_steps(settings: SweepConfig) -> float:
    """The share of all steps that a cohort takes, without those that halving saves."""
    shares, eta = run_shares(settings), settings.halving or 1
    gains = [share - before for share, before in zip(shares, [0.0, *shares], strict=False)]
    return sum(gain * eta**-rung for rung, gain in enumerate(gains))


def _halve(groups: Sequence[Group], returns: Mapping[int, Floats], eta: int, on_end: Callable[..., None]) -> None:
    """Stops the trials that do not survive a rung: of each environment's, failed ones included, the best 1 in eta do."""
    values: dict[str, dict[int, float]] = {}
    for trial in (trial for group in groups for trial in group.trials if trial.number in returns):
        values.setdefault(trial.env, {})[trial.number] = float(returns[trial.number].mean())
    kept = {[*own][place] for own in values.values() for place in survivors([*own.values()], eta)}
    for group in groups:
        for place in [place for place in group.active if group.trials[place].number not in kept]:
            number = group.trials[place].number
            on_end(number, "stopped", group.result(place, returns[number]))
            group.active.remove(place)
