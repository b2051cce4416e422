"""Trains a cohort of trials together: independently, with successive halving, or as a population."""

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
from haepo_jax.runner.sweeps.compiled import Programs, Shape, stack
from haepo_jax.runner.sweeps.population import Lane

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
      env: trials are compared only with those of the same environment.
    """

    number: int
    algorithm: Algorithm
    seed: int
    env: str


@dataclasses.dataclass
class Outcome:
    """What became of a trial; S seeds, P curve points.

    Attributes:
      number: of the trial.
      state: `complete`; `stopped` by halving; `failed`: a seed diverged or its return is not finite.
      returns: (S,) evaluation return per seed; NaN for a seed that diverged.
      env_steps, updates: (S,) done.
      diverged_at: (S,) the update at which a seed was frozen, or -1.
      curve: (P, S) mean training return in each part of the run; NaN where no episode ended in it.
      changed: population-based training: the perturbed numbers after each round.
    """

    number: int
    state: str
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

    def __init__(self, candidates: Sequence[Candidate], programs: Programs, num_seeds: int) -> None:
        self.candidates = list(candidates)
        self.programs = programs
        self.num_seeds = num_seeds
        self.total_steps = self.candidates[0].algorithm.total_steps
        self.real = len(self.candidates) * num_seeds
        # Lanes past the real ones repeat the first, so that the devices share the stack equally.
        lanes = np.resize(np.arange(self.real), -(-self.real // programs.num_devices) * programs.num_devices)
        self._size = len(lanes)
        first = np.array([candidate.seed for candidate in self.candidates])
        self._seeds = (first[lanes // num_seeds] + lanes % num_seeds).astype(np.uint32)
        leaves = stack([candidate.algorithm for candidate in self.candidates])
        self._numbers = [leaf[lanes // num_seeds] for leaf in programs.select(leaves)]
        self._updates_per_call = 1
        programs.compile(self._numbers)
        self._lanes = self._start()
        self._read()

    def lanes_of(self, trials: Sequence[int] | Ints) -> Ints:
        """The lanes of trials, by their places in `candidates`."""
        return (np.asarray(trials, np.int64)[:, None] * self.num_seeds + np.arange(self.num_seeds)).reshape(-1)

    def _start(self) -> Lane:
        lanes: Lane | None = None
        for chunk, indices in self._batches(np.arange(self._size)):
            started = self.programs.start([x[indices] for x in self._numbers], self._seeds[indices])
            if lanes is None:
                lanes = self.programs.place(_take(started, np.resize(np.arange(len(indices)), self._size)))
            lanes = _put(lanes, self._own(chunk, indices), started)
        placed: Lane = self.programs.place(lanes)
        return placed

    def _batches(self, lanes: Ints) -> list[tuple[Ints, Ints]]:
        """Lanes in batches: those of each, and the same repeated until the batch is full."""
        size = self.programs.size
        chunks = [lanes[first : first + size] for first in range(0, len(lanes), size)]
        return [(chunk, np.resize(chunk, size)) for chunk in chunks]

    def _own(self, chunk: Ints, indices: Ints) -> Ints:
        """Where a full batch is written back: its copies past the end of the stack, which drops them."""
        return np.where(np.arange(len(indices)) < len(chunk), indices, self._size)

    # Training.

    def train(self, trials: Sequence[int], share: float, on_call: Callable[[int, float], None]) -> None:
        """Trains these trials up to a share of their run; `on_call(steps, best training return)` after every call."""
        until = math.ceil(self.total_steps * share - 1e-9)
        lanes = self.lanes_of(trials)
        while (left := lanes[(self.env_steps[lanes] < until) & (self.diverged_at[lanes] < 0)]).size:
            for chunk, indices in self._batches(self._by_length(left)):
                on_call(self._call(chunk, indices, until), self._best_training_return())

    def _by_length(self, lanes: Ints) -> Ints:
        return lanes[np.argsort(self._length[lanes], kind="stable")]

    def _call(self, chunk: Ints, indices: Ints, until: int) -> int:
        """One compiled call on a batch of lanes; returns the valid steps done."""
        steps, updates = self.env_steps[chunk].sum(), self.updates[chunk]
        begin = time.perf_counter()
        batch = self.programs.place(_take(self._lanes, indices))
        batch = self.programs.advance([x[indices] for x in self._numbers], batch, until, self._updates_per_call)
        self._lanes = self.programs.place(_put(self._lanes, self._own(chunk, indices), batch))
        self._read()
        if made := int((self.updates[chunk] - updates).max()):
            self._updates_per_call = max(1, int(CALL_SECONDS * made / (time.perf_counter() - begin)))
        return int(self.env_steps[chunk].sum() - steps)

    def _read(self) -> None:
        """Brings the lanes' counters to the host; waits for the device."""
        state = self._lanes.state
        self.env_steps: Ints = np.asarray(state.env_steps.to_int())[: self.real]
        self.updates: Ints = np.asarray(state.update, np.int64)[: self.real]
        self.diverged_at: Ints = np.asarray(state.status.diverged_at, np.int64)[: self.real]
        self._length = np.asarray(self._lanes.episode_length, np.float64)[: self.real]

    def _best_training_return(self) -> float:
        """The best trial's, by the last update of each seed; NaN before an episode has ended in all seeds of one."""
        known = (np.asarray(self._lanes.curve_count)[: self.real].sum(axis=1) > 0) & (self.diverged_at < 0)
        returns = np.where(known, np.asarray(self._lanes.episode_return, np.float64)[: self.real], -np.inf)
        best = float(returns.reshape(-1, self.num_seeds).mean(axis=1).max())
        return best if math.isfinite(best) else math.nan

    # What a trial is worth.

    def evaluate(self, trials: Sequence[int]) -> Floats:
        """The mean evaluation return of each seed, (trials, S): NaN for one that diverged, whatever it returned before."""
        lanes = self.lanes_of(trials)
        values = np.full(self.real, np.nan)
        for chunk, indices in self._batches(self._by_length(lanes)):
            batch = self.programs.place(_take(self._lanes, indices))
            values[chunk] = self.programs.evaluate([x[indices] for x in self._numbers], batch)[: len(chunk)]
        values[self.diverged_at >= 0] = np.nan
        return values[lanes].reshape(len(trials), self.num_seeds)

    def outcome(self, trial: int, state: str, returns: Floats, changed: dict[str, list[float]]) -> Outcome:
        """A trial's counters and curve as they are now."""
        lanes = self.lanes_of([trial])
        sums = np.asarray(self._lanes.curve_sum, np.float64)[lanes]
        counts = np.asarray(self._lanes.curve_count, np.float64)[lanes]
        curve = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0).T
        number = self.candidates[trial].number
        counters = (self.env_steps[lanes], self.updates[lanes], self.diverged_at[lanes])
        return Outcome(number, state, returns, *counters, curve, changed)

    # Population-based training.

    def mutate(
        self, key: jax.Array, trials: Sequence[int], values: Floats, ranges: dict[str, tuple[float, float]]
    ) -> None:
        """The worst trials continue from the best, their numbers perturbed; `values` (trials,) says which is which."""
        exploit_key, explore_key = jax.random.split(key)
        chosen = np.asarray(_exploit(exploit_key, values.astype(np.float32)))
        source = np.arange(len(self.candidates))
        source[list(trials)] = np.asarray(trials)[chosen]
        copied = source != np.arange(len(source))
        lanes = np.arange(self._size)
        lanes[: self.real] = self.lanes_of(source)
        self._lanes = self.programs.place(_inherit(self._lanes, lanes))
        places = self._places()
        for name in ranges.keys() & places.keys():
            own = self._numbers[places[name]]
            numbers = own[: self.real : self.num_seeds][source]
            # Each hyperparameter has a key of its own, so that sweeping another changes none of its draws.
            perturbed = np.asarray(_explore(jax.random.fold_in(explore_key, places[name]), numbers, *ranges[name]))
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
    on_call: Callable[[int, float], None] = lambda steps, training_return: None,
    on_rung: Callable[[int, int, float], None] = lambda number, steps, value: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> None:
    """Trains every trial of a cohort until it ends, fails, or is stopped by halving.

    A trial fails where a seed diverges or its return is not finite. In population-based training it continues from one
    of the best; only one that fails in the last round has failed.

    Args:
      groups: the trials, by shape.
      rules: halving, population-based training or neither.
      on_call: given the valid steps of every compiled call, and the best training return so far of its group.
      on_rung: given a trial's number, valid steps and mean return where it was evaluated before the end.
      on_outcome: given what became of each trial, as soon as that is known.
    """
    active = [(group, trial) for group in groups for trial in range(len(group.candidates))]
    changed: dict[int, dict[str, list[float]]] = {c.number: {} for group in groups for c in group.candidates}
    shares = rules.shares()
    for turn, share in enumerate(shares):
        last = turn == len(shares) - 1
        returns: dict[int, Floats] = {}
        for group in groups:
            trials = [trial for owner, trial in active if owner is group]
            if not trials:
                continue
            group.train(trials, share, on_call)
            evaluated = group.evaluate(trials)
            for trial, own in zip(trials, evaluated, strict=True):
                number, failed = group.candidates[trial].number, not np.isfinite(own).all()
                returns[number] = own
                for name, value in group.numbers(trial, list(rules.pbt_ranges)).items():
                    changed[number].setdefault(name, []).append(value)
                if last or (failed and not rules.pbt_rounds):
                    on_outcome(group.outcome(trial, "failed" if failed else "complete", own, changed[number]))
                elif not failed:
                    on_rung(number, int(group.env_steps[group.lanes_of([trial])].mean()), float(own.mean()))
            if rules.pbt_rounds and not last:
                key = jax.random.fold_in(jax.random.key(rules.seed), turn)
                means = evaluated.mean(axis=1)
                group.mutate(key, trials, np.where(np.isfinite(means), means, np.nan), rules.pbt_ranges)
        if rules.halving is not None and not last:
            kept = _kept(active, {number: float(own.mean()) for number, own in returns.items()}, rules.halving)
            for group, trial in active:
                number = group.candidates[trial].number
                if number not in kept and np.isfinite(returns[number]).all():
                    on_outcome(group.outcome(trial, "stopped", returns[number], {}))
            active = [(group, trial) for group, trial in active if group.candidates[trial].number in kept]


def _kept(active: Sequence[tuple[Group, int]], values: dict[int, float], eta: int) -> set[int]:
    """The numbers of the trials that survive a rung: the best of each environment's, none that failed."""
    kept: set[int] = set()
    candidates = [group.candidates[trial] for group, trial in active]
    for env in {candidate.env for candidate in candidates}:
        numbers = [candidate.number for candidate in candidates if candidate.env == env]
        known = [values[number] if math.isfinite(values[number]) else math.nan for number in numbers]
        kept |= {numbers[int(place)] for place in population.survivors(known, eta)}
    return kept


def group_candidates(candidates: Sequence[Candidate]) -> dict[Shape, list[Candidate]]:
    """The candidates by shape, in the order in which the shapes first come."""
    groups: dict[Shape, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(Shape.of(candidate.algorithm), []).append(candidate)
    return groups
