"""The Optuna study that the workers of a sweep share: which trial comes next, and what became of it.

Every configuration is a trial of the study, including those of a grid or a random search, so Optuna's own tools see the
whole sweep. A configuration has an index, its place in the search. Optuna numbers trials atomically, and trial n has index
n, so workers need no other agreement about who runs what.

A worker records a heartbeat for each trial that it runs. When one stops, Optuna marks its trials as failed, and later trials
repeat them, with their index as an attribute. (Optuna's own callback for that would lose a trial if the worker that calls
it dies.) Of several trials of one index, the one with the lowest number that was not lost counts, so nothing goes wrong if
two workers repeat the same index, or if one dies between two steps.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from haepo_jax.messages import one_line, short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.run_dir import json_text
from haepo_jax.runner.sweeps.cohort import survivors
from haepo_jax.runner.sweeps.plan import SweepPlan
from haepo_jax.runner.sweeps.space import Choice, Values, as_stored

DATABASE = "study.db"
STATES = {
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}

optuna.logging.set_verbosity(optuna.logging.ERROR)
# Samplers and heartbeats are experimental, and Optuna does not expect the latter from `ask` and `tell`.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)


class Study:
    """The study of a sweep as one worker sees it; `optuna` is Optuna's own object."""

    def __init__(self, plan: SweepPlan, directory: Path | None) -> None:
        """Opens or creates the study in the plan's storage; raises ConfigError if it holds another sweep."""
        self.plan, self._storage = plan, open_storage(plan.settings.storage, directory, plan.settings.worker_timeout)
        # A directory's own storage holds one study, which keeps its name where the directory is renamed.
        names = [] if plan.settings.storage else optuna.get_all_study_names(self._storage)
        name = names[0] if names else "sweep" if directory is None else directory.resolve().name
        self._running: dict[int, Trial] = {}  # this worker's trials
        # What a search suggests depends on which trials have ended: it repeats with one worker only.
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler()
        if plan.search == "cmaes":
            sampler = optuna.samplers.CmaEsSampler(seed=plan.settings.search_seed, warn_independent_sampling=False)
        self.optuna = optuna.create_study(
            study_name=name, storage=self._storage, sampler=sampler, direction="maximize", load_if_exists=True
        )
        identity = json_text(plan.identity())
        if self.optuna.user_attrs.get("sweep", identity) != identity:
            where = f"run_dir={short(str(directory))}" if plan.settings.storage is None else f"the study {name!r}"
            raise ConfigError(f"{where} holds another sweep: its space or settings differ; choose another run_dir")
        self.optuna.set_user_attr("sweep", identity)

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number."""
        return self.optuna.get_trials(deepcopy=False)

    def by_index(self) -> dict[int, FrozenTrial]:
        """The trial that counts for each index that has one: the first that was not lost."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.trials():
            index = _index(trial)
            if index < self.plan.num_configs and not _lost(trial):
                found.setdefault(index, trial)
        return found

    def values(self, trial: FrozenTrial | Trial) -> Values:
        """The configuration of a trial; one that was interrupted while it was claimed may miss some keys."""
        listed = {d.key: d.categories for d in self.plan.dimensions if isinstance(d, Choice)}
        return {key: listed[key][value] if key in listed else value for key, value in trial.params.items()}

    @staticmethod
    def state(trial: FrozenTrial) -> str:
        """`complete`, `stopped` by halving, `failed` or `running`."""
        return next(name for name, state in STATES.items() if state == trial.state)

    @staticmethod
    def result(trial: FrozenTrial) -> dict[str, Any]:
        """What `finish` recorded; empty for a trial that has not ended."""
        return trial.user_attrs.get("result", {}) if trial.state.is_finished() else {}

    def others_at_work(self) -> int:
        """How many trials other workers are running."""
        return sum(t.state == TrialState.RUNNING and t.number not in self._running for t in self.by_index().values())

    def claim(self, count: int) -> dict[int, Values]:
        """At most `count` trials for this worker: the configuration of each number; none if nothing is left to start."""
        self._fail_stale_trials()
        claimed: dict[int, Values] = {}
        while not claimed and (missing := self._missing()):
            asked = self._ask(missing, count)
            counts = {trial.number for trial in self.by_index().values()}
            for number, trial in asked.items():
                if number in counts:
                    claimed[number] = self.values(trial)
                else:  # another worker was faster
                    self._tell(number, "failed")
        return claimed

    def _missing(self) -> list[int]:
        """Indices without a trial. Looking at all trials is slow where they are many and in a database."""
        known = self.by_index()
        return [index for index in range(self.plan.num_configs) if index not in known]

    def _ask(self, missing: list[int], count: int) -> dict[int, Trial]:
        """At most `count` new trials, by number, with their configurations."""
        asked: dict[int, Trial] = {}
        while missing and len(asked) < count:
            trial = self.optuna.ask()
            self._running[trial.number] = trial
            self._beat([trial.number])
            index = trial.number
            if index not in missing:  # a trial was lost, or others have started the rest meanwhile
                if not (missing := self._missing()):
                    self._tell(trial.number, "failed")
                    break
                index = missing[0]
                trial.set_user_attr("index", index)
            missing.remove(index)
            self._configure(trial, index)
            asked[trial.number] = trial
        return asked

    def _configure(self, trial: Trial, index: int) -> None:
        if self.plan.search in ("grid", "random"):
            planned = {key: as_stored(value) for key, value in self.plan.planned(index).items()}
            self.optuna.sampler = optuna.samplers.PartialFixedSampler(planned, optuna.samplers.RandomSampler())
        elif self.plan.search == "tpe":
            # Its own draws for each trial: other workers, and this one when it resumes, would repeat those of one seed.
            seeds = np.random.SeedSequence([self.plan.settings.search_seed, trial.number])
            self.optuna.sampler = optuna.samplers.TPESampler(seed=int(seeds.generate_state(1)[0]), constant_liar=True)
        for dimension in self.plan.dimensions:
            if isinstance(dimension, Choice):
                trial.suggest_categorical(dimension.key, [*dimension.categories])
            else:
                suggest: Any = trial.suggest_int if dimension.integer else trial.suggest_float
                suggest(dimension.key, *dimension.ends(), log=dimension.log)

    def _fail_stale_trials(self) -> None:
        """Marks the trials of workers whose heartbeat has stopped as failed."""
        optuna.storages.fail_stale_trials(self.optuna)
        oldest = datetime.datetime.now() - datetime.timedelta(seconds=self.plan.settings.worker_timeout)
        for trial in self.trials():
            # A worker killed between claiming a trial and its first heartbeat: Optuna waits for such a trial forever.
            unheard = trial.state == TrialState.RUNNING and not trial.params and trial.number not in self._running
            if unheard and trial.datetime_start is not None and trial.datetime_start < oldest:
                self._tell(trial.number, "failed")

    def survivors(self, rung: int, values: Mapping[int, float]) -> set[int]:
        """The trials that continue from a rung of halving, given the value of each that reached it.

        The values are kept before any trial is stopped. A trial that repeats one of an interrupted worker continues or
        stops as that one did: compared again, with fewer, most of the survivors would be stopped.
        """
        eta, indices = self.plan.settings.halving or 1, {number: _index(self._running[number]) for number in values}
        known, kept = set[int](), set[int]()
        for key, earlier in self.optuna.user_attrs.items():
            if key.startswith(f"rung {rung} from "):
                compared = {int(index): math.nan if value is None else value for index, value in earlier.items()}
                known, kept = known | {*compared}, kept | survivors(compared, eta)
        if new := {indices[number]: value for number, value in values.items() if indices[number] not in known}:
            plain = {str(index): value if math.isfinite(value) else None for index, value in new.items()}
            self.optuna.set_user_attr(f"rung {rung} from {min(new)}", plain)
            kept |= survivors(new, eta)
        return {number for number, index in indices.items() if index in kept}

    def finish(self, number: int, state: str, result: dict[str, Any]) -> None:
        """Records how one of this worker's trials ended: `complete`; `stopped` by halving, of which Optuna is told an
        intermediate value; or `failed`, which has none. The result is as `Group.end` gives it. If this worker was taken for
        dead, others repeat the trial."""
        plain = json.loads(json.dumps(result, default=np.ndarray.tolist), parse_constant=lambda _: None)
        value = None if state == "failed" else float(np.mean(plain["return_per_seed"]))
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
            self._running[number].set_user_attr("result", plain)
            if state == "stopped" and value is not None:  # TPE learns from it
                self._running[number].report(value, int(np.mean(plain["env_steps_per_seed"])))
        self._tell(number, state, value if state == "complete" else None)

    def _tell(self, number: int, state: str, value: float | None = None) -> None:
        self._running.pop(number, None)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):  # another worker has told it
            self.optuna.tell(number, value, STATES[state])

    @contextlib.contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Keeps the trials that this worker runs alive while entered, and gives back those unfinished at the end."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(self.plan.settings.worker_timeout / 4):
                self._beat([*self._running])

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=5)
            for number in [*self._running]:
                self._tell(number, "failed")

    def _beat(self, numbers: Sequence[int]) -> None:
        # A storage that cannot be written for a moment costs a heartbeat, not the sweep; one in memory has none.
        with contextlib.suppress(Exception):
            study = self._storage.get_study_id_from_name(self.optuna.study_name)
            for number in numbers:
                self._storage.record_heartbeat(self._storage.get_trial_id_from_study_id_trial_number(study, number))


def _index(trial: FrozenTrial | Trial) -> int:
    index: int = trial.user_attrs.get("index", trial.number)
    return index


def _lost(trial: FrozenTrial) -> bool:
    """Whether a trial ended without a result because its worker died or gave way; in the result of one that failed a return
    is not finite."""
    return trial.state == TrialState.FAIL and None not in trial.user_attrs.get("result", {}).get("return_per_seed", [])


def open_storage(url: str | None, directory: Path | None, worker_timeout: int) -> Any:
    """Optuna's storage: at a URL, else a database in the directory, else memory. Raises ConfigError."""
    if url is None and directory is None:
        return optuna.storages.InMemoryStorage()
    where = f"storage={short(url)}" if url is not None else f"run_dir={short(str(directory))}"
    if url is None:
        from sqlalchemy.engine import URL

        url = URL.create("sqlite", database=f"{directory}/{DATABASE}").render_as_string()
    keywords: dict[str, Any] = {"heartbeat_interval": max(1, worker_timeout // 4), "grace_period": worker_timeout}
    if url.startswith("sqlite"):
        keywords["engine_kwargs"] = {"connect_args": {"timeout": 60}}  # a worker waits for as long as another writes
    while True:
        try:
            return optuna.storages.RDBStorage(url, **keywords)
        except Exception as error:  # database drivers share no base class
            # Of two workers that create the tables at the same moment one fails, and finds them when it looks again.
            if "already exists" not in str(error) and "UNIQUE" not in str(error):
                raise ConfigError(f"{where} cannot be opened: {one_line(str(error), 160)}") from None
            time.sleep(0.2)
