"""Trains a cohort of trials together: a bracket of successive halving, a population, or just some batches."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
import numpy.typing as npt

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.runner.sweeps import population
from haepo_jax.runner.sweeps.population import Lane
from haepo_jax.runner.sweeps.program import BatchSize, Programs, Shape, stack

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CALL_SECONDS = 2.0
"""How long one compiled call may be expected to take: between two, lanes are regrouped and Ctrl-C is heard."""

_take = jax.jit(population.take)
_put = jax.jit(population.put, donate_argnums=0)
_inherit = jax.jit(population.inherit)
_exploit = jax.jit(population.exploit, static_argnames="fraction")
_explore = jax.jit(population.explore, static_argnames="factors")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A configuration to train.

    Attributes:
      number: of its trial.
      algorithm: on its environment.
      seed: the first of its seeds.
      rivals: trials are only compared with those of the same word, such as the environment.
    """

    number: int
    algorithm: Algorithm
    seed: int
    rivals: str


@dataclasses.dataclass
class Outcome:
    """What became of a trial; S seeds, P curve points.

    Attributes:
      number: of the trial.
      complete: it trained to its end; else halving stopped it.
      returns: (S,) final evaluation return per seed.
      env_steps, updates: (S,) done.
      diverged_at: (S,) the update at which a seed was frozen, or -1.
      curve: (P, S) mean training return in each part of the run; NaN where no episode ended in it.
      changed: population-based training: the perturbed numbers after each round.
    """

    number: int
    complete: bool
    returns: Floats
    env_steps: Ints
    updates: Ints
    diverged_at: Ints
    curve: Floats
    changed: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a cohort trains.

    Attributes:
      halving: eta, or None.
      halving_rungs: rungs before the end.
      pbt_rounds: how often the population copies and perturbs; 0: never.
      pbt_ranges: the hyperparameters that are perturbed, each with its lowest and highest value.
      seed: of the random choices in population-based training.
    """

    halving: int | None = None
    halving_rungs: int = 2
    pbt_rounds: int = 0
    pbt_ranges: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def shares(self) -> list[float]:
        """The shares of a run at which trials are evaluated; the last is 1."""
        if self.halving is not None:
            return population.rung_shares(self.halving, self.halving_rungs)
        if self.pbt_rounds:
            return [(turn + 1) / self.pbt_rounds for turn in range(self.pbt_rounds)]
        return [1.0]


class Group:
    """The trials of a cohort that share one shape: their lanes in one stack, trained by one set of programs.

    All lanes stay on the device. A call trains a batch of them; lanes whose episodes are about as long are put into the
    same batch, because a batch takes as many environment steps as its longest episode. A batch that would not be full
    repeats its lanes, and the copies are dropped, so that nothing is compiled for it.
    """

    def __init__(
        self, candidates: Sequence[Candidate], programs: Programs, batch: BatchSize, num_seeds: int, points: int
    ) -> None:
        self.candidates = list(candidates)
        self.programs, self.batch = programs, batch
        self.num_seeds = num_seeds
        self.total_steps = self.candidates[0].algorithm.total_steps
        self.later_steps = 0
        self._points = points
        self._seconds_per_update: dict[int, float] = {}
        self._rate = 0.0

        real = len(self.candidates) * num_seeds
        devices = programs.num_devices
        # RolloutState past the real ones exist where the stack could not be shared equally by the devices otherwise.
        self._size = -(-real // devices) * devices
        of_trial = np.resize(np.repeat(np.arange(len(self.candidates)), num_seeds), self._size)
        seeds = np.array([c.seed for c in self.candidates])[of_trial] + np.resize(
            np.tile(np.arange(num_seeds), len(candidates)), self._size
        )
        self._seeds = seeds.astype(np.uint32)
        leaves = stack([c.algorithm for c in self.candidates])
        self._numbers = [leaf[of_trial] for leaf in programs.select(leaves)]
        self.real = real
        self.env_steps = np.zeros(real, np.int64)
        self.updates = np.zeros(real, np.int64)
        self.diverged_at = np.full(real, -1, np.int64)
        self._length = np.zeros(real)
        if batch.size > self._size and not programs.is_compiled(batch.size):
            batch.size = self._size
        batch.compile_first(self._numbers)
        self._lanes = self._start()

    def lanes_of(self, trials: Sequence[int] | Ints) -> Ints:
        """The lanes of trials, by their places in `candidates`."""
        return (np.asarray(trials, np.int64)[:, None] * self.num_seeds + np.arange(self.num_seeds)).reshape(-1)

    def _start(self) -> Lane:
        size = self.batch.size
        chunks = [
            np.resize(np.arange(first, min(first + size, self._size)), size) for first in range(0, self._size, size)
        ]
        parts = [self.programs.start([x[chunk] for x in self._numbers], self._seeds[chunk]) for chunk in chunks]
        if size == self._size:
            return parts[0]
        lanes = _take(parts[0], np.resize(np.arange(size), self._size))
        for chunk, part in zip(chunks[1:], parts[1:], strict=True):
            lanes = _put(lanes, chunk, part)
        placed: Lane = self.programs.place(lanes)
        return placed

    # Training.

    def train(self, trials: Sequence[int], share: float, on_call: Callable[[int], None]) -> None:
        """Trains these trials up to a share of their run; `on_call(steps)` after every compiled call."""
        until = math.ceil(self.total_steps * share - 1e-9)
        lanes = self.lanes_of(trials)
        while (left := self._unfinished(lanes, until)).size:
            size = self._size_for(left, until)
            for first in range(0, len(left), size):
                on_call(self._call(left[first : first + size], size, until))
            self._consider_batch_size(size, lanes, until)

    def _unfinished(self, lanes: Ints, until: int) -> Ints:
        left = lanes[(self.env_steps[lanes] < until) & (self.diverged_at[lanes] < 0)]
        return left[np.argsort(self._length[left], kind="stable")]

    def _call(self, chunk: Ints, size: int, until: int) -> int:
        """One compiled call on a chunk of lanes; returns the live steps done."""
        per_update = self._seconds_per_update.get(size)
        updates = 1 if per_update is None else max(1, int(CALL_SECONDS / per_update))
        before_steps, before_updates = self.env_steps[chunk].sum(), self.updates[chunk].copy()
        begin = time.perf_counter()
        whole = size == self._size and len(chunk) == self.real
        if whole:
            self._lanes = self.programs.advance(self._numbers, self._lanes, [until] * size, updates)
        else:
            indices = np.resize(chunk, size)
            part = self.programs.place(_take(self._lanes, indices))
            part = self.programs.advance([x[indices] for x in self._numbers], part, [until] * size, updates)
            own = np.where(np.arange(size) < len(chunk), indices, self._size)
            self._lanes = self.programs.place(_put(self._lanes, own, part))
        self._read()
        seconds = time.perf_counter() - begin
        made = int((self.updates[chunk] - before_updates).max())
        steps = int(self.env_steps[chunk].sum() - before_steps)
        if made:
            self._seconds_per_update[size] = seconds / made
        # Copies work too, but for nothing: the rate is that of the lanes that count.
        self._rate = steps / seconds
        return steps

    def _read(self) -> None:
        """Brings the lanes' counters to the host; waits for the device."""
        state = self._lanes.state
        self.env_steps = np.asarray(state.env_steps.to_int())[: self.real]
        self.updates = np.asarray(state.update, np.int64)[: self.real]
        self.diverged_at = np.asarray(state.health.diverged_at, np.int64)[: self.real]
        self._length = np.asarray(self._lanes.episode_length, np.float64)[: self.real]

    def _seconds_left(self, lanes: Ints, until: int) -> float:
        return float(np.maximum(until - self.env_steps[lanes], 0).sum()) / self._rate if self._rate else 0.0

    def _consider_batch_size(self, size: int, lanes: Ints, until: int) -> None:
        left = self._unfinished(lanes, until)
        if len(left) >= size and self.updates[lanes].min() > 1:
            seconds = self._seconds_left(lanes, until) + (self.later_steps / self._rate if self._rate else 0.0)
            self.batch.measured(size, self._rate, len(left), seconds, self._numbers)

    def _size_for(self, left: Ints, until: int) -> int:
        """The number of lanes for a call: the batch's, or a smaller one where few lanes are left for long enough.

        Only a CPU's time shrinks with the lanes; an accelerator takes about as long for a few as for many.
        """
        size, devices = self.batch.size, self.programs.num_devices
        small = devices * 2 ** math.ceil(math.log2(-(-len(left) // devices)))
        if small >= size or self.programs.mesh.devices.flat[0].platform != "cpu":
            return size
        cost = 1.5 * self.programs.compile_seconds / max(1, self.programs.compilations)
        if not self.programs.is_compiled(small):
            if self._seconds_left(left, until) * (1 - small / size) < cost:
                return size
            self.programs.compile(small, self._numbers)
        return small

    # What a trial is worth.

    def evaluate(self, trials: Sequence[int]) -> Floats:
        """The mean evaluation return of each seed: (trials, S)."""
        lanes = self.lanes_of(trials)
        order = lanes[np.argsort(self._length[lanes], kind="stable")]
        values = np.full(self.real, np.nan)
        size = self.batch.size
        for first in range(0, len(order), size):
            chunk = order[first : first + size]
            indices = np.resize(chunk, size)
            part = self.programs.place(_take(self._lanes, indices))
            values[chunk] = self.programs.evaluate([x[indices] for x in self._numbers], part)[: len(chunk)]
        return values[lanes].reshape(len(trials), self.num_seeds)

    def outcome(self, trial: int, *, complete: bool, returns: Floats, changed: dict[str, list[float]]) -> Outcome:
        """A trial's counters and curve as they are now."""
        lanes = self.lanes_of([trial])
        sums = np.asarray(self._lanes.curve_sum, np.float64)[lanes]
        counts = np.asarray(self._lanes.curve_count, np.float64)[lanes]
        curve = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0).T
        number = self.candidates[trial].number
        counters = (self.env_steps[lanes], self.updates[lanes], self.diverged_at[lanes])
        return Outcome(number, complete, returns, *counters, curve, changed)

    # Population-based training.

    def mutate(
        self, key: jax.Array, trials: Sequence[int], values: Floats, ranges: dict[str, tuple[float, float]]
    ) -> None:
        """The worst trials go on from the best, their numbers perturbed; `values` (trials,) says which is which."""
        exploit_key, explore_key = jax.random.split(key)
        chosen = np.asarray(_exploit(exploit_key, values.astype(np.float32)))
        source = np.arange(len(self.candidates))
        source[list(trials)] = np.asarray(trials)[chosen]
        copied = source != np.arange(len(source))
        lanes = np.arange(self._size)
        lanes[: self.real] = self.lanes_of(source)
        self._lanes = self.programs.place(_inherit(self._lanes, lanes))
        places = self._places()
        for name, (low, high) in ranges.items():
            if name not in places:
                continue
            own = self._numbers[places[name]]
            numbers = own[: self.real : self.num_seeds][source]
            # Each hyperparameter has a key of its own, so that sweeping another changes none of its draws.
            perturbed = np.asarray(_explore(jax.random.fold_in(explore_key, places[name]), numbers, low, high))
            own[: self.real] = np.repeat(np.where(copied, perturbed, numbers), self.num_seeds)
        self._read()

    def numbers(self, trial: int, names: Sequence[str]) -> dict[str, float]:
        """A trial's hyperparameters as they are now, those that are one number."""
        places = self._places()
        return {name: float(self._numbers[places[name]][trial * self.num_seeds]) for name in names if name in places}

    def _places(self) -> dict[str, int]:
        """Where each hyperparameter that is one number stands among the leaves that vary."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.candidates[0].algorithm)]
        varying = [path for path, varies in zip(paths, self.programs.varying, strict=True) if varies]
        return {
            path[0].name: place
            for place, path in enumerate(varying)
            if len(path) == 1 and self._numbers[place].ndim == 1
        }


def train_cohort(
    groups: Sequence[Group],
    rules: Rules,
    *,
    on_call: Callable[[int], None] = lambda steps: None,
    on_rung: Callable[[int, int, float], None] = lambda number, steps, value: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Trains every trial of a cohort to its end, or until halving stops it.

    Args:
      groups: the trials, by shape.
      rules: halving, population-based training or neither.
      on_call: told the live steps of every compiled call.
      on_rung: told every trial's number, live steps and mean return where it was evaluated before the end.
      on_outcome: told what became of each trial, as soon as that is known.
    """
    active = [(group, trial) for group in groups for trial in range(len(group.candidates))]
    changed: dict[int, dict[str, list[float]]] = {c.number: {} for group in groups for c in group.candidates}
    shares = rules.shares()
    for turn, share in enumerate(shares):
        last = turn == len(shares) - 1
        values: dict[int, float] = {}
        per_seed: dict[int, Floats] = {}
        for group in groups:
            trials = [trial for owner, trial in active if owner is group]
            if not trials:
                continue
            group.train(trials, share, on_call)
            returns = group.evaluate(trials)
            for trial, own in zip(trials, returns, strict=True):
                number = group.candidates[trial].number
                values[number], per_seed[number] = float(own.mean()), own
                for name, value in group.numbers(trial, list(rules.pbt_ranges)).items():
                    changed[number].setdefault(name, []).append(value)
                if last:
                    on_outcome(group.outcome(trial, complete=True, returns=own, changed=changed[number]))
                else:
                    on_rung(number, int(group.env_steps[group.lanes_of([trial])].mean()), values[number])
            if rules.pbt_rounds and not last:
                key = jax.random.fold_in(jax.random.key(rules.seed), turn)
                group.mutate(
                    key,
                    trials,
                    np.array([values[group.candidates[trial].number] for trial in trials]),
                    rules.pbt_ranges,
                )
        if rules.halving is not None and not last:
            kept = _kept(active, values, rules.halving)
            for group, trial in active:
                number = group.candidates[trial].number
                if number not in kept:
                    on_outcome(group.outcome(trial, complete=False, returns=per_seed[number], changed={}))
            active = [(group, trial) for group, trial in active if group.candidates[trial].number in kept]


def _kept(active: Sequence[tuple[Group, int]], values: dict[int, float], eta: int) -> set[int]:
    """The numbers of the trials that survive a rung: the best of each environment's."""
    kept: set[int] = set()
    for rivals in {group.candidates[trial].rivals for group, trial in active}:
        numbers = [c.number for group, trial in active if (c := group.candidates[trial]).rivals == rivals]
        best = population.survivors([values[number] for number in numbers], eta)
        kept |= {numbers[int(place)] for place in best}
    return kept


def group_candidates(candidates: Sequence[Candidate]) -> dict[Shape, list[Candidate]]:
    """The candidates by shape, in the order in which the shapes first come."""
    groups: dict[Shape, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(Shape.of(candidate.algorithm), []).append(candidate)
    return groups
