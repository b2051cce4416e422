"""The study that workers share: who runs what, resuming, dead workers, and what Optuna sees of it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.sweeps import study as studies
from haepo_jax.runner.sweeps.plan import SweepPlan, read_sweep
from haepo_jax.runner.sweeps.space import Values
from haepo_jax.runner.sweeps.study import Study, open_storage

RESULT: dict[str, Any] = {
    "return_per_seed": [1.0],
    "env_steps_per_seed": [10],
    "updates_per_seed": [1],
    "diverged_at_per_seed": [-1],
    "curve_return_per_seed": [[1.0] * 20],
}


def plan_of(*arguments: str) -> SweepPlan:
    return read_sweep(
        read_arguments(["env=CartPole-v1", "algo.learning_rate=tag(log,interval(1e-4,1e-2))", *arguments]).overrides
    )


def worker(directory: Path | None, plan: SweepPlan) -> Study:
    """One worker of several: each has its own connection."""
    return Study(plan, directory)


def index_of(study: Study) -> dict[int, int]:
    return {trial.number: trial.user_attrs.get("index", trial.number) for trial in study.trials()}


def claimed_indices(study: Study, count: int) -> list[int]:
    claimed = study.claim(count)
    return [index_of(study)[number] for number in claimed]


def finish(study: Study, claimed: dict[int, Values]) -> None:
    for number in claimed:
        result = RESULT | {"return_per_seed": [float(index_of(study)[number])]}
        study.finish(number, "complete", result)


def kill(directory: Path, claimed: Iterable[int]) -> None:
    """Makes the last heartbeat of these trials an hour old, as that of a worker that was killed."""
    numbers = ",".join(map(str, claimed))
    with contextlib.closing(sqlite3.connect(directory / studies.DATABASE)) as database:
        database.execute(
            "update trial_heartbeats set heartbeat = datetime('now', '-1 hour') where trial_id in "
            f"(select trial_id from trials where number in ({numbers}))"
        )
        database.commit()


def test_workers_share_the_configurations(tmp_path: Path) -> None:
    plan = plan_of("num_configs=7")
    a, b = worker(tmp_path, plan), worker(tmp_path, plan)
    claims = [a.claim(2), b.claim(3), a.claim(5)]
    assert [[index_of(a)[number] for number in claimed] for claimed in claims] == [[0, 1], [2, 3, 4], [5, 6]]
    for number, values in (item for claimed in claims for item in claimed.items()):
        assert values == plan.planned(index_of(a)[number])
    assert b.claim(1) == {} and b.others_at_work() == 4
    finish(a, claims[0] | claims[2])
    finish(b, claims[1])
    assert a.others_at_work() == 0 and a.claim(1) == {}
    assert [trial.value for _, trial in sorted(a.by_index().items())] == [0, 1, 2, 3, 4, 5, 6]


def test_a_claim_sends_one_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one for each of those claimed before, which would make many claims quadratic."""
    study, heard = worker(tmp_path, plan_of("num_configs=4")), []
    monkeypatch.setattr(type(study._storage), "record_heartbeat", lambda _, trial: heard.append(trial))
    assert len(study.claim(4)) == len(heard) == len({*heard}) == 4


def test_the_trials_of_a_dead_worker_are_run_once_more(tmp_path: Path) -> None:
    plan = plan_of("num_configs=6")
    a, b, c = (worker(tmp_path, plan) for _ in "abc")
    (done, *lost), kept = (claimed := a.claim(3)), b.claim(1)
    finish(a, {done: claimed[done]})
    assert claimed_indices(c, 1) == [4], "a is alive"
    kill(tmp_path, lost)
    again = b.claim(10)
    assert sorted(index_of(b)[number] for number in again) == [1, 2, 5]
    assert all(values == plan.planned(index_of(b)[number]) for number, values in again.items())
    finish(b, kept | again)
    assert c.claim(10) == {}
    a.finish(lost[0], "complete", RESULT)
    assert a.trials()[lost[0]].state == TrialState.FAIL, "the dead come too late"
    ended = b.by_index()
    assert sorted(ended) == list(range(6)) and ended[1].value == 1.0
    completed = [trial for trial in b.trials() if trial.state == TrialState.COMPLETE]
    assert len(completed) == 5, "each configuration ended exactly once, and c has one under way"


def test_two_that_repeat_the_same_do_no_harm(tmp_path: Path) -> None:
    plan = plan_of("num_configs=1")
    a, b, c = (worker(tmp_path, plan) for _ in "abc")
    lost = a.claim(1)
    kill(tmp_path, lost)
    # A second repetition, as a worker makes that looked at the same moment.
    first, second = b.claim(1), c.optuna.ask()
    second.set_user_attr("index", 0)
    finish(b, first)
    c.optuna.tell(second, 5.0)
    assert c.claim(1) == {} and c.by_index()[0].value == 0.0, "the first of them counts"


def test_the_slower_of_two_that_claim_the_same_takes_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("num_configs=2")
    a, b, c = (worker(tmp_path, plan) for _ in "abc")
    kill(tmp_path, a.claim(2))
    faster = c.optuna.ask()  # whose index b does not see yet
    configure = b._configure

    def late(trial: Any, index: int) -> None:
        faster.set_user_attr("index", 0)
        configure(trial, index)

    monkeypatch.setattr(b, "_configure", late)
    assert claimed_indices(b, 1) == [1]
    assert b.claim(1) == {} and b.by_index()[0].number == faster.number


def test_a_claim_looks_twice_however_many_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a database's trials, which would make a large cohort quadratic."""
    study, looks = worker(tmp_path, plan_of("num_configs=8")), []
    by_index = study.by_index
    monkeypatch.setattr(study, "by_index", lambda: looks.append(0) or by_index())
    assert len(study.claim(8)) == 8 and len(looks) == 2


def test_a_worker_that_died_between_result_and_end_is_repeated(tmp_path: Path) -> None:
    plan = plan_of("num_configs=1")
    a, b = worker(tmp_path, plan), worker(tmp_path, plan)
    a.claim(1)
    a.optuna._storage.set_trial_user_attr(a.trials()[0]._trial_id, "result", RESULT)
    assert a.result(a.by_index()[0]) == {}
    kill(tmp_path, [0])
    again = b.claim(1)
    assert list(again) == [1] and index_of(b)[1] == 0
    finish(b, again)
    assert b.by_index()[0].value == 0.0


def test_a_worker_killed_before_its_first_heartbeat_is_given_up(tmp_path: Path) -> None:
    plan = plan_of("num_configs=1", "worker_timeout=60")
    a, b = worker(tmp_path, plan), worker(tmp_path, plan)
    a.optuna.ask()
    assert b.claim(1) == {} and b.others_at_work() == 1
    with contextlib.closing(sqlite3.connect(tmp_path / studies.DATABASE)) as database:
        database.execute("update trials set datetime_start = datetime(datetime_start, '-61 seconds')")
        database.commit()
    assert claimed_indices(worker(tmp_path, plan), 1) == [0]


def test_an_interrupted_worker_gives_its_trials_back_and_a_live_one_keeps_them(tmp_path: Path) -> None:
    plan = plan_of("num_configs=2", "worker_timeout=1")
    a, b = worker(tmp_path, plan), worker(tmp_path, plan)
    with pytest.raises(KeyboardInterrupt), a.heartbeats():
        claimed = a.claim(2)
        finish(a, {0: claimed[0]})
        kill(tmp_path, claimed)
        studies.time.sleep(1.0)
        assert b.claim(2) == {}, "its thread has recorded another heartbeat"
        raise KeyboardInterrupt
    assert claimed_indices(b, 2) == [1]


def test_a_trial_that_failed_is_told_so_and_not_repeated(tmp_path: Path) -> None:
    study = worker(tmp_path, plan_of("num_configs=2"))
    claimed = study.claim(2)
    study.finish(0, "failed", RESULT | {"return_per_seed": [float("nan")], "diverged_at_per_seed": [0]})
    finish(study, {1: claimed[1]})
    assert [trial.state for trial in study.trials()] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.claim(1) == {} and study.result(study.by_index()[0])["return_per_seed"] == [None]
    assert study.optuna.best_trial.number == 1


def test_only_the_missing_are_run_when_a_sweep_is_resumed_or_extended(tmp_path: Path) -> None:
    plan = plan_of("num_configs=3")
    finish(first := worker(tmp_path, plan), first.claim(10))
    assert worker(tmp_path, plan).claim(10) == {}
    assert claimed_indices(worker(tmp_path, plan_of("num_configs=5")), 10) == [3, 4]


def test_another_sweep_is_refused(tmp_path: Path) -> None:
    worker(tmp_path, plan_of("num_configs=3"))
    with pytest.raises(ConfigError, match="holds another sweep"):
        worker(tmp_path, plan_of("num_configs=3", "algo.kl_coef=0,1"))


@pytest.mark.parametrize("search", ["tpe", "cmaes"])
def test_optuna_chooses(search: str) -> None:
    plan = plan_of("algo.history_decay=interval(0.5,1)", "algo.kl_coef=0,1", f"search={search}", "num_configs=24")
    study = worker(None, plan)
    for _ in range(6):
        claimed = study.claim(4)
        assert len(claimed) == 4
        for number, values in claimed.items():
            assert set(values) == {"algo.learning_rate", "algo.history_decay", "algo.kl_coef"}
            value = -abs(values["algo.history_decay"] - 0.9)
            study.finish(number, "complete", RESULT | {"return_per_seed": [value]})
    assert study.claim(4) == {}
    best = sorted(study.by_index().items())[-8:]
    assert sum(abs(study.values(trial)["algo.history_decay"] - 0.9) < 0.15 for _, trial in best) >= 4


def test_tpe_draws_nothing_twice_whoever_asks(tmp_path: Path) -> None:
    """Neither another worker nor one that resumes begins again with the first draws; and they are the same in another study."""
    plan = plan_of("algo.history_decay=interval(0.5,1)", "search=tpe", "num_configs=8")
    rates = [
        values["algo.learning_rate"] for _ in range(4) for values in worker(tmp_path, plan).claim(2).values()
    ]  # fmt: skip
    assert len(set(rates)) == 8
    assert [values["algo.learning_rate"] for values in worker(None, plan).claim(2).values()] == rates[:2]


def test_a_renamed_directory_holds_the_same_study(tmp_path: Path) -> None:
    (before := tmp_path / "before").mkdir()
    plan = plan_of("num_configs=3")
    finish(first := worker(before, plan), first.claim(2))
    after = before.rename(tmp_path / "after")
    assert claimed_indices(worker(after, plan), 10) == [2]
    with pytest.raises(ConfigError, match="holds another sweep"):
        worker(after, plan_of("num_configs=3", "algo.kl_coef=0,1"))


def test_optunas_own_tools_read_the_study(tmp_path: Path) -> None:
    study = worker(tmp_path, plan_of("algo.hidden_sizes=[8],[16]", "num_configs=3"))
    claimed = study.claim(3)
    study.finish(0, "stopped", RESULT)
    finish(study, {number: claimed[number] for number in (1, 2)})
    loaded = optuna.load_study(study_name=tmp_path.name, storage=f"sqlite:///{tmp_path}/study.db")
    assert loaded.best_value == 2.0 and loaded.best_params["algo.hidden_sizes"] in ("[8]", "[16]")
    assert [trial.state.name for trial in loaded.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]


def test_a_directory_of_any_name_holds_its_study(tmp_path: Path) -> None:
    for name in ("a?b", "a#b", "100%20", "a b"):
        (tmp_path / name).mkdir()
        worker(tmp_path / name, plan_of("num_configs=1"))
        assert [file.name for file in (tmp_path / name).iterdir()] == [studies.DATABASE]


def test_a_storage_that_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_storage("nosuch:///x", None, 60)
