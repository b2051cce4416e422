"""Which trial comes next and who runs it: an Optuna study, shared by any number of workers.

Every configuration is a trial of the study, those of a grid or a random search too, so Optuna's tools see all of it. A
configuration has an index, its place in the search. Optuna numbers trials atomically, whatever the storage; the n-th
trial that is no repetition has index n, so workers need no other agreement about who runs what.

A worker that dies leaves its trials running. Another worker notices, marks them failed and enqueues their indices again
as repetitions. Of several trials of one index that have not failed, the one with the lowest number counts and the
others give way, so it does no harm if two workers repeat the same one at once, or one dies between two steps.
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
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import value_text
from haepo_jax.runner.sweeps.settings import SweepPlan
from haepo_jax.runner.sweeps.space import Dimension, Interval, Values

JOURNAL = "study.log"
_INDEX, _WORKER, _RESULT, _IDENTITY = "index", "worker", "result", "sweep"

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclasses.dataclass(frozen=True)
class Claimed:
    """A trial that this worker runs."""

    trial: Trial
    index: int
    values: Values


class Study:
    """The study of a sweep, as one worker sees it; `optuna` is Optuna's own."""

    def __init__(self, plan: SweepPlan, storage: Any, name: str) -> None:
        """Opens or creates the study; raises ConfigError where that name holds another sweep."""
        self.plan = plan
        self.worker = _own_name()
        self._grid = plan.grid() if plan.search == "grid" else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna warns of what is experimental in its samplers
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
        # Another machine's clock may be wrong, so what counts is how long ago this worker saw a change.
        self._seen: dict[str, tuple[Any, float]] = {}

    def _sampler(self) -> BaseSampler:
        # Workers with one seed would all suggest the same; what a seed makes repeatable is a search by one worker.
        seed = self.plan.settings.search_seed
        if self.plan.search == "tpe":
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        if self.plan.search == "cmaes":
            return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return _Planned()

    # Claiming.

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    def indices(self, trials: Sequence[FrozenTrial]) -> dict[int, int]:
        """The index of each trial, by number."""
        found, fresh = {}, 0
        for trial in sorted(trials, key=lambda trial: trial.number):
            if _INDEX in trial.user_attrs:
                found[trial.number] = int(trial.user_attrs[_INDEX])
            else:
                found[trial.number], fresh = fresh, fresh + 1
        return found

    def by_index(self) -> dict[int, FrozenTrial]:
        """The trial that counts for each index that has one: the first that has not been lost."""
        trials = self.trials()
        indices = self.indices(trials)
        found: dict[int, FrozenTrial] = {}
        for trial in sorted(trials, key=lambda trial: trial.number):
            if not _lost(trial) and indices[trial.number] < self.plan.num_configs:
                found.setdefault(indices[trial.number], trial)
        return found

    def claim(self, count: int) -> list[Claimed]:
        """At most `count` trials for this worker; none where nothing is left to start."""
        self.repeat_lost()
        claimed: list[Claimed] = []
        while len(claimed) < count:
            trials = self.trials()
            fresh = sum(_INDEX not in trial.user_attrs for trial in trials)
            waiting = any(trial.state == TrialState.WAITING for trial in trials)
            if not waiting and fresh >= self.plan.num_configs:
                break
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self.optuna.ask()
                trial.set_user_attr(_WORKER, self.worker)
                index = self.indices(self.trials())[trial.number]
                counts = self.by_index().get(index)
                if counts is None or counts.number != trial.number:
                    self.optuna.tell(trial, state=TrialState.FAIL)
                    continue
                if isinstance(self.optuna.sampler, _Planned):
                    grid = self._grid
                    self.optuna.sampler.values = grid[index % len(grid)] if grid else self.plan.drawn(index)
                claimed.append(Claimed(trial, index, self._suggest(trial)))
        return claimed

    def _suggest(self, trial: Trial) -> Values:
        values: Values = {}
        for dimension in self.plan.dimensions:
            if self.plan.belongs(dimension.key, self.plan.algorithm(values)):
                # Trial.suggest_* would refuse a list as a category and say so in a warning of its own.
                suggested = trial._suggest(dimension.key, distribution(dimension))
                values[dimension.key] = from_optuna(dimension, suggested)
        return values

    def values(self, trial: FrozenTrial) -> Values:
        """The configuration of a trial; one that was interrupted while it was claimed may miss some keys."""
        return {d.key: from_optuna(d, trial.params[d.key]) for d in self.plan.dimensions if d.key in trial.params}

    # Results.

    def finish(self, trial: Trial, value: float, result: dict[str, Any], *, complete: bool) -> bool:
        """Takes a trial's result down for good; False where others gave this worker up and repeat the trial."""
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            trial.set_user_attr(_RESULT, {"value": value, "complete": complete, **result})
            self._tell(trial.number, value, complete)
            return True
        return False

    def _tell(self, number: int, value: float, complete: bool) -> None:
        if value != value:
            self.optuna.tell(number, state=TrialState.FAIL)
        elif complete:
            self.optuna.tell(number, value)
        else:
            self.optuna.tell(number, state=TrialState.PRUNED)

    @staticmethod
    def result(trial: FrozenTrial) -> dict[str, Any] | None:
        """What `finish` took down."""
        result: dict[str, Any] | None = trial.user_attrs.get(_RESULT)
        return result

    # Workers.

    def repeat_lost(self) -> None:
        """Gives the trials of dead workers back to the study."""
        for trial in self.trials():
            if trial.state == TrialState.RUNNING and not self._alive(trial):
                with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
                    result = self.result(trial)
                    if result is None:
                        self.optuna.tell(trial.number, state=TrialState.FAIL)
                    else:
                        self._tell(trial.number, result["value"], result["complete"])
        trials = self.trials()
        indices = self.indices(trials)
        present = {indices[trial.number] for trial in trials if not _lost(trial)}
        for trial in trials:
            index = indices[trial.number]
            if _lost(trial) and index not in present and index < self.plan.num_configs:
                self.optuna.enqueue_trial(trial.params, user_attrs={_INDEX: index})
                present.add(index)

    def others_at_work(self) -> int:
        """How many trials other workers are running."""
        return sum(
            trial.state == TrialState.RUNNING and trial.user_attrs.get(_WORKER) != self.worker
            for trial in self.by_index().values()
        )

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether the worker of a trial still lives, as far as can be told."""
        worker = trial.user_attrs.get(_WORKER)
        if worker == self.worker:
            return True
        if worker is not None and (here := _lives_here(worker)) is not None:
            return here
        name = worker if worker is not None else f"trial {trial.number}"
        sign = self.optuna.user_attrs.get(f"worker {worker}")
        now = time.monotonic()
        if name not in self._seen or self._seen[name][0] != sign:
            self._seen[name] = (sign, now)
        return now - self._seen[name][1] < self.plan.settings.worker_timeout

    @contextlib.contextmanager
    def signs_of_life(self) -> Iterator[None]:
        """Tells other workers, while it is entered, that this one lives."""
        ended = threading.Event()

        def tell() -> None:
            beat = 0
            while not ended.is_set():
                # A storage that cannot be written for a moment costs one sign, not the sweep.
                with contextlib.suppress(Exception):
                    self.optuna.set_user_attr(f"worker {self.worker}", beat)
                beat += 1
                ended.wait(self.plan.settings.worker_timeout / 4)

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=5)


class _Planned(optuna.samplers.RandomSampler):
    """Suggests what a grid or a random search has planned for the trial that is being claimed."""

    values: Values

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return to_optuna(self.values[param_name])


def _lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a result because its worker died or gave way."""
    return trial.state == TrialState.FAIL and _RESULT not in trial.user_attrs


def distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    if not isinstance(dimension, Interval):
        return CategoricalDistribution([to_optuna(value) for value in dimension.values])
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def to_optuna(value: Any) -> Any:
    """A value as Optuna stores it: lists, which it does not know, as text."""
    return value_text(value) if isinstance(value, tuple) else value


def from_optuna(dimension: Dimension, value: Any) -> Any:
    """The value that `to_optuna` was given."""
    if isinstance(dimension, Interval):
        return value
    return next(
        own for own in dimension.values if to_optuna(own) == value and isinstance(own, bool) == isinstance(value, bool)
    )


# --- Storage ----------------------------------------------------------------------------------------------------------


def open_storage(url: str | None, directory: Path | None) -> Any:
    """Optuna's storage: of a URL, else a journal file in the directory, else memory. Raises ConfigError."""
    if url is None and directory is None:
        return optuna.storages.InMemoryStorage()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if url is not None:
                return optuna.storages.get_storage(url)
            assert directory is not None
            file = directory / JOURNAL
            _repair(file)
            return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        except Exception as error:  # database drivers share no base class
            where = f"storage={short(url)}" if url is not None else f"run_dir={short(str(directory))}"
            raise ConfigError(f"{where} cannot be opened: {one_line(str(error), 160)}") from None


def _repair(journal: Path) -> None:
    """Takes away the part of a line that a crash may have left at the end: what follows it could not be read either."""
    with contextlib.suppress(FileNotFoundError), journal.open("r+b") as file:
        lock = JournalFileSymlinkLock(str(journal))
        lock.acquire()
        try:
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
        finally:
            lock.release()


# --- Names of workers -------------------------------------------------------------------------------------------------


def _own_name() -> str:
    return f"{_place()}/{os.getpid()}/{_born(os.getpid())}"


def _place() -> str:
    """Where process numbers mean what they mean here: the machine, and its namespace of processes."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _born(process: int) -> str:
    """When a process began, in the kernel's ticks; empty where it cannot be told, or has ended but for its parent."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "ZX" else fields[18]
    except (OSError, IndexError):
        return ""


def _lives_here(worker: str) -> bool | None:
    """Whether a worker of this machine lives; None for another machine's."""
    place, process, born = worker.rsplit("/", 2)
    if place != _place() or not born:
        return None
    return _born(int(process)) == born
