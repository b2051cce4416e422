"""The study that workers share: who runs what, resuming, dead workers, and what Optuna sees of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.config.arguments import read_arguments
from haepo_jax.runner.sweeps import study as studies
from haepo_jax.runner.sweeps.settings import SweepPlan, read_sweep
from haepo_jax.runner.sweeps.study import Claimed, Study, open_storage

RESULT: dict[str, Any] = {
    "returns": [1.0],
    "env_steps": [10],
    "updates": [1],
    "diverged_at": [-1],
    "curve": [[1.0]] * 20,
}


def plan_of(*arguments: str) -> SweepPlan:
    return read_sweep(
        read_arguments(["env=CartPole-v1", "algo.learning_rate=tag(log,interval(1e-4,1e-2))", *arguments]).overrides
    )


def worker(directory: Path, plan: SweepPlan, name: str) -> Study:
    """A worker of its own name, so that one process can be several."""
    study = Study(plan, open_storage(None, directory), "sweep")
    study.worker = name
    return study


def finish(study: Study, claimed: list[Claimed]) -> None:
    for claim in claimed:
        assert study.finish(claim.trial, float(claim.index), RESULT, complete=True)


def kill(monkeypatch: pytest.MonkeyPatch, *dead: str) -> None:
    monkeypatch.setattr(studies, "_lives_here", lambda name: name not in dead)


def test_workers_share_the_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(monkeypatch)
    plan = plan_of("num_configs=7")
    a, b = worker(tmp_path, plan, "a"), worker(tmp_path, plan, "b")
    claims = [a.claim(2), b.claim(3), a.claim(5)]
    assert [[claim.index for claim in claim_list] for claim_list in claims] == [[0, 1], [2, 3, 4], [5, 6]]
    for claim in (claim for claim_list in claims for claim in claim_list):
        assert claim.values == plan.drawn(claim.index)
    assert b.claim(1) == [] and b.others_at_work() == 4
    finish(a, claims[0] + claims[2])
    finish(b, claims[1])
    assert a.others_at_work() == 0 and a.claim(1) == []
    assert [trial.value for _, trial in sorted(a.by_index().items())] == [0, 1, 2, 3, 4, 5, 6]


def test_the_trials_of_a_dead_worker_are_run_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("num_configs=6")
    kill(monkeypatch)
    a, b, c = (worker(tmp_path, plan, name) for name in "abc")
    lost, kept = a.claim(3), b.claim(1)
    finish(a, lost[:1])
    assert lost[1].trial.study is a.optuna
    kill(monkeypatch, "a")
    b.repeat_lost()
    c.repeat_lost()
    again, last = b.claim(2), c.claim(10)
    assert sorted(claim.index for claim in again + last) == [1, 2, 4, 5]
    assert all(claim.values == plan.drawn(claim.index) for claim in again + last)
    finish(b, kept + again)
    finish(c, last)
    assert not a.finish(lost[1].trial, 9.0, RESULT, complete=True), "the dead come too late"
    ended = b.by_index()
    assert sorted(ended) == list(range(6)) and all(trial.state == TrialState.COMPLETE for trial in ended.values())
    completed = [trial for trial in b.trials() if trial.state == TrialState.COMPLETE]
    assert len(completed) == 6, "each configuration ended exactly once"


def test_two_that_repeat_the_same_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("num_configs=1")
    kill(monkeypatch)
    a, b, c = (worker(tmp_path, plan, name) for name in "abc")
    lost = a.claim(1)
    kill(monkeypatch, "a")
    b.repeat_lost()
    # A second repetition, as a worker makes that looked at the same moment.
    c.optuna.enqueue_trial(lost[0].trial.params, user_attrs={"index": 0})
    first, second = b.claim(1), c.claim(1)
    assert len(first) == 1 and second == []
    finish(b, first)
    assert c.claim(1) == [] and len([t for t in c.trials() if t.state == TrialState.COMPLETE]) == 1


def test_a_worker_that_died_between_result_and_end_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(monkeypatch)
    plan = plan_of("num_configs=1")
    a, b = worker(tmp_path, plan, "a"), worker(tmp_path, plan, "b")
    a.claim(1)[0].trial.set_user_attr("result", {"value": 3.0, "complete": True, **RESULT})
    kill(monkeypatch, "a")
    assert b.claim(1) == [] and b.by_index()[0].value == 3.0


def test_a_silent_worker_of_another_machine_is_given_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "_lives_here", lambda name: None)
    now = [0.0]
    monkeypatch.setattr(studies.time, "monotonic", lambda: now[0])
    plan = plan_of("num_configs=1", "worker_timeout=60")
    a, b = worker(tmp_path, plan, "a"), worker(tmp_path, plan, "b")
    a.claim(1)
    for now[0] in (0.0, 50.0):
        assert b.claim(1) == []
    a.optuna.set_user_attr("worker a", 1)
    for now[0] in (70.0, 120.0):
        assert b.claim(1) == [], "it gave a sign of life"
    now[0] = 131.0
    assert [claim.index for claim in b.claim(1)] == [0]


def test_only_the_missing_are_run_when_a_sweep_is_resumed_or_extended(tmp_path: Path) -> None:
    plan = plan_of("num_configs=3")
    finish(first := Study(plan, open_storage(None, tmp_path), "sweep"), first.claim(10))
    assert Study(plan, open_storage(None, tmp_path), "sweep").claim(10) == []
    longer = Study(plan_of("num_configs=5"), open_storage(None, tmp_path), "sweep")
    assert [claim.index for claim in longer.claim(10)] == [3, 4]


def test_another_sweep_is_refused(tmp_path: Path) -> None:
    Study(plan_of("num_configs=3"), open_storage(None, tmp_path), "sweep")
    with pytest.raises(ConfigError, match="of another sweep"):
        Study(plan_of("num_configs=3", "algo.kl_coef=0,1"), open_storage(None, tmp_path), "sweep")


def test_a_torn_line_at_the_end_of_the_journal_is_taken_away(tmp_path: Path) -> None:
    plan = plan_of("num_configs=2")
    study = Study(plan, open_storage(None, tmp_path), "sweep")
    finish(study, study.claim(1))
    with (tmp_path / studies.JOURNAL).open("a") as file:
        file.write('{"op_code": 5, "wor')
    again = Study(plan, open_storage(None, tmp_path), "sweep")
    assert [claim.index for claim in again.claim(2)] == [1]


@pytest.mark.parametrize("search", ["tpe", "cmaes"])
def test_optuna_chooses(search: str) -> None:
    plan = plan_of("algo.history_decay=interval(0.5,1)", "algo.kl_coef=0,1", f"search={search}", "num_configs=24")
    study = Study(plan, open_storage(None, None), "sweep")
    for _ in range(6):
        claimed = study.claim(4)
        assert len(claimed) == 4
        for claim in claimed:
            assert set(claim.values) == {"algo.learning_rate", "algo.history_decay", "algo.kl_coef"}
            study.finish(claim.trial, -abs(claim.values["algo.history_decay"] - 0.9), RESULT, complete=True)
    assert study.claim(4) == []
    best = sorted(study.by_index().items())[-8:]
    assert sum(abs(study.values(trial)["algo.history_decay"] - 0.9) < 0.15 for _, trial in best) >= 4


def test_optunas_own_tools_read_the_study(tmp_path: Path) -> None:
    plan = plan_of("algo.hidden_sizes=[8],[16]", "num_configs=3")
    study = Study(plan, open_storage(f"sqlite:///{tmp_path}/study.db", None), "sweep")
    claimed = study.claim(3)
    claimed[0].trial.report(5.0, 100)
    study.finish(claimed[0].trial, 5.0, RESULT, complete=False)
    finish(study, claimed[1:])
    loaded = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path}/study.db")
    assert loaded.best_value == 2.0 and loaded.best_params["algo.hidden_sizes"] in ("[8]", "[16]")
    assert [trial.state.name for trial in loaded.trials] == ["PRUNED", "COMPLETE", "COMPLETE"]
    assert loaded.trials[0].intermediate_values == {100: 5.0}


def test_a_storage_that_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_storage("nosuch:///x", None)
