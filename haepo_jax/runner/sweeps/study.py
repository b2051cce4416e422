"""The Optuna study that the workers of a sweep share: which trial comes next, and what became of it.

Every configuration is a trial of the study, including those of a grid or a random search, so Optuna's own tools see the
whole sweep. A configuration has an index, its place in the search. Optuna numbers trials atomically; the n-th trial that
is not a repetition has index n, so workers need no other agreement about who runs what.

A worker records a heartbeat for each trial that it runs. When one stops, Optuna marks the trial as failed and its index
is enqueued again. Of several trials of one index, the one with the lowest number that was not lost counts and the others
give way, so nothing goes wrong if two workers repeat the same index, or if one dies between two steps.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.sweeps.plan import SweepPlan
from haepo_jax.runner.sweeps.space import Choice, Dimension, Values

DATABASE = "study.db"
_INDEX, _RESULT, _IDENTITY = "index", "result", "sweep"
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A trial that this worker runs."""

    trial: Trial
    index: int
    values: Values


class Study:
    """The study of a sweep as one worker sees it; `optuna` is Optuna's own object."""

    def __init__(self, plan: SweepPlan, storage: Any, name: str) -> None:
        """Opens or creates the study; raises ConfigError where that name holds another sweep."""
        self.plan = plan
        self._grid = plan.grid() if plan.search == "grid" else []
        self._storage = storage if isinstance(storage, optuna.storages.RDBStorage) else None
        self._running: dict[int, int | None] = {}  # this worker's trials: number -> the storage's id
        self._first_seen: dict[int, float] = {}
        with _quiet():
            self.optuna = optuna.create_study(
                study_name=name, storage=storage, sampler=self._sampler(), direction="maximize", load_if_exists=True
            )
        identity = self.optuna.user_attrs.get(_IDENTITY)
        if identity is None:
            self.optuna.set_user_attr(_IDENTITY, plan.identity())
        elif identity != plan.identity():
            raise ConfigError(
                f"the study {name!r} is of another sweep: its space or settings differ; choose another run_dir"
            )

    def _sampler(self) -> optuna.samplers.BaseSampler:
        # With several workers the same seed gives other suggestions: a search repeats with one worker only.
        seed = self.plan.settings.search_seed
        if self.plan.search == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if self.plan.search == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return _Planned()

    # Trials and their indices.

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    @staticmethod
    def indices(trials: Sequence[FrozenTrial]) -> dict[int, int]:
        """The index of each trial, by number."""
        found, fresh = {}, 0
        for trial in trials:
            if _INDEX in trial.user_attrs:
                found[trial.number] = int(trial.user_attrs[_INDEX])
            else:
                found[trial.number], fresh = fresh, fresh + 1
        return found

    def by_index(self, trials: Sequence[FrozenTrial] | None = None) -> dict[int, FrozenTrial]:
        """The trial that counts for each index that has one: the first that was not lost."""
        trials = self.trials() if trials is None else trials
        indices = self.indices(trials)
        found: dict[int, FrozenTrial] = {}
        for trial in trials:
            if not _lost(trial) and indices[trial.number] < self.plan.num_configs:
                found.setdefault(indices[trial.number], trial)
        return found

    def values(self, trial: FrozenTrial) -> Values:
        """The configuration of a trial; one that was interrupted while it was claimed may miss some keys."""
        return {d.key: from_optuna(d, trial.params[d.key]) for d in self.plan.dimensions if d.key in trial.params}

    @staticmethod
    def result(trial: FrozenTrial) -> dict[str, Any] | None:
        """What `finish` recorded; None for a trial that has not ended."""
        return trial.user_attrs.get(_RESULT) if trial.state.is_finished() else None

    # Claiming and finishing.

    def claim(self, count: int) -> list[Claimed]:
        """At most `count` trials for this worker; none where nothing is left to start."""
        claimed: list[Claimed] = []
        with _quiet():
            self._repeat_lost()
            trials = self.trials()
            while len(claimed) < count:
                fresh = sum(_INDEX not in trial.user_attrs for trial in trials)
                waiting = any(trial.state == TrialState.WAITING for trial in trials)
                if not waiting and fresh >= self.plan.num_configs:
                    break
                trial = self.optuna.ask()
                self._start(trial)
                trials = self.trials()
                index = self.indices(trials)[trial.number]
                counts = self.by_index(trials).get(index)
                if counts is None or counts.number != trial.number:
                    self._tell(trial.number, TrialState.FAIL)
                    continue
                if isinstance(self.optuna.sampler, _Planned):
                    grid = self._grid
                    self.optuna.sampler.values = grid[index % len(grid)] if grid else self.plan.drawn(index)
                claimed.append(Claimed(trial, index, self._suggest(trial)))
        return claimed

    def _start(self, trial: Trial) -> None:
        number = trial.number
        self._running[number] = None
        if self._storage is not None:
            study = self._storage.get_study_id_from_name(self.optuna.study_name)
            self._running[number] = self._storage.get_trial_id_from_study_id_trial_number(study, number)
        self._beat()
        trial.set_user_attr("worker", f"{socket.gethostname()}/{os.getpid()}")

    def _suggest(self, trial: Trial) -> Values:
        values: Values = {}
        for dimension in self.plan.dimensions:
            if self.plan.belongs(dimension.key, self.plan.algorithm(values)):
                values[dimension.key] = from_optuna(dimension, _suggested(trial, dimension))
        return values

    def finish(self, claimed: Claimed, value: float, state: str, result: dict[str, Any]) -> bool:
        """Records how a trial ended: `complete`, `stopped` by halving, or `failed`, of which Optuna is told no value.

        Returns False where this worker was taken for dead and others repeat the trial.
        """
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            claimed.trial.set_user_attr(_RESULT, {"value": value, "state": state, **result})
            return self._tell(claimed.trial.number, _STATES[state], value)
        self._running.pop(claimed.trial.number, None)
        return False

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> bool:
        self._running.pop(number, None)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            self.optuna.tell(number, value if state == TrialState.COMPLETE else None, state)
            return True
        return False

    # Workers.

    def _repeat_lost(self) -> None:
        """Enqueues the trials of workers whose heartbeat has stopped."""
        optuna.storages.fail_stale_trials(self.optuna)
        now = time.monotonic()
        for trial in self.trials():
            # A worker killed between claiming a trial and its first heartbeat: Optuna waits for such a trial forever.
            if trial.state == TrialState.RUNNING and not trial.params and trial.number not in self._running:
                since = self._first_seen.setdefault(trial.number, now)
                if now - since > self.plan.settings.worker_timeout:
                    self._tell(trial.number, TrialState.FAIL)
        trials = self.trials()
        indices, present = self.indices(trials), set(self.by_index(trials))
        for trial in trials:
            index = indices[trial.number]
            if _lost(trial) and index not in present and index < self.plan.num_configs:
                self.optuna.enqueue_trial(trial.params, user_attrs={_INDEX: index})
                present.add(index)

    def others_at_work(self) -> int:
        """How many trials other workers are running."""
        return sum(
            trial.state == TrialState.RUNNING and number not in self._running
            for trial in self.by_index().values()
            for number in [trial.number]
        )

    def _beat(self) -> None:
        for identity in list(self._running.values()):
            # A storage that cannot be written for a moment costs a heartbeat, not the sweep.
            with contextlib.suppress(Exception):
                if self._storage is not None and identity is not None:
                    self._storage.record_heartbeat(identity)

    @contextlib.contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Keeps the trials that this worker runs alive while entered, and gives back those unfinished at the end."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.plan.settings.worker_timeout / 4):
                self._beat()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=5)
            for number in list(self._running):
                self._tell(number, TrialState.FAIL)


class _Planned(optuna.samplers.RandomSampler):
    """Suggests what a grid or a random search has planned for the trial that is being claimed."""

    values: Values

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: Any) -> Any:
        return to_optuna(self.values[param_name])


def _lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a result because its worker died or gave way."""
    result = trial.user_attrs.get(_RESULT)
    return trial.state == TrialState.FAIL and (result is None or result["state"] != "failed")


def _suggested(trial: Trial, dimension: Dimension) -> Any:
    key = dimension.key
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(key, [to_optuna(value) for value in dimension.values])
    if dimension.integer:
        return trial.suggest_int(key, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)


def to_optuna(value: Any) -> Any:
    """A value as Optuna stores it: a list, which is not one of its categories, as text."""
    return value_text(value) if isinstance(value, tuple) else value


def from_optuna(dimension: Dimension, value: Any) -> Any:
    """The value that `to_optuna` was given."""
    if not isinstance(dimension, Choice):
        return value
    return next(v for v in dimension.values if to_optuna(v) == value and isinstance(v, bool) == isinstance(value, bool))


def open_storage(url: str | None, directory: Path | None, worker_timeout: int = 60) -> Any:
    """Optuna's storage: at a URL, else a database in the directory, else memory. Raises ConfigError."""
    if url is None and directory is None:
        return optuna.storages.InMemoryStorage()
    where = f"storage={short(url)}" if url is not None else f"run_dir={short(str(directory))}"
    url = f"sqlite:///{directory / DATABASE}" if url is None and directory is not None else str(url)
    # A worker waits for as long as another writes.
    connect = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
    for attempt in range(10):
        try:
            with _quiet():
                return optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=connect,
                    heartbeat_interval=max(1, worker_timeout // 4),
                    grace_period=worker_timeout,
                )
        except Exception as error:  # database drivers share no base class
            # Of two workers that create the tables at the same moment one fails, and finds them when it looks again.
            if attempt == 9 or ("already exists" not in str(error) and "UNIQUE" not in str(error)):
                raise ConfigError(f"{where} cannot be opened: {one_line(str(error), 160)}") from None
            time.sleep(0.2)
    raise AssertionError


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's warnings that a sampler, a heartbeat or a list as a category is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
