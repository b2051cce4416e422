"""Whole sweeps: results on disk and in Python, resuming, several processes, and HAEPO itself."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pyarrow import parquet

import haepo_jax as hx
import haepo_jax.sweep as command_line
from haepo_jax.algorithms.declared import hyperparameters
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.sweeps import cohort as cohorts
from haepo_jax.runner.sweeps import run as runs
from haepo_jax.runner.sweeps.study import Study, open_storage
from tests.jobs import Job, ended, environment, run
from tests.runner.sweeps.sweep_worker import use_toy
from tests.runner.sweeps.toy_algorithm import Toy

SPACE = {"learning_rate": "tag(log,interval(1e-4,1))", "entropy_coef": [0, 0.1]}
TOY = {"total_steps": 100, "final_eval_episodes": 3, "curve_points": 4}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sweeps are of the toy algorithm; the numbers of the trials trained are put down in the list."""
    for name in ("__call__", "check"):
        monkeypatch.setattr(runs._Builder, name, getattr(runs._Builder, name))
    use_toy()
    trained: list[int] = []
    original = cohorts.Group.__init__

    def init(self: Any, candidates: Any, *arguments: Any) -> None:
        trained.extend(candidate.number for candidate in candidates)
        original(self, candidates, *arguments)

    monkeypatch.setattr(cohorts.Group, "__init__", init)
    return trained


def test_from_python(toy: list[int]) -> None:
    found = hx.sweep("CartPole-v1", "haepo", SPACE, num_configs=12, num_seeds=3, **TOY)
    assert toy == list(range(12))
    assert (
        found.returns.shape == (12, 3)
        and found.curves.shape == (12, 4, 3)
        and found.curve_steps[0].tolist() == [25, 50, 75, 100]
    )
    rates = found.values["algo.learning_rate"]
    np.testing.assert_allclose(found.value, -np.abs(np.log10(rates) + 2), atol=1e-4)
    best = found.best()
    assert best == np.argmin(np.abs(np.log10(rates) + 2)) and set(found.state) == {"complete"}
    assert np.all(found.env_steps >= 100) and np.all(found.diverged_at == -1)
    config = compose(read_arguments(shlex.split(found.command(best))[3:]).overrides, RunConfig)
    assert (
        config.algo.hyperparameters["learning_rate"] == rates[best]
        and config.num_seeds == 3
        and config.total_steps == 100
    )


def test_an_error_is_raised_before_anything_trains(toy: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=-1.0 is out of range"):
        hx.sweep("CartPole-v1", "haepo", {"learning_rate": "interval(-1,1)"})
    with pytest.raises(ConfigError, match="unknown key 'num_config'"):
        hx.sweep("CartPole-v1", "haepo", SPACE, num_config=3)
    assert toy == []


def test_what_an_environment_refuses_is_one_line() -> None:
    with pytest.raises(ConfigError, match="has no setting 'lenght'"):
        hx.sweep("haepo/random_walk", "haepo", {"env_kwargs.lenght": [5, 6]})


ARGUMENTS = [
    "env=CartPole-v1", "algo.learning_rate=tag(log,interval(1e-4,1))", "algo.entropy_coef=0,0.1", "num_configs=9",
    "num_seeds=2", "total_steps=100", "final_eval_episodes=3", "curve_points=4", "cohort=4",
]  # fmt: skip


def test_the_command_leaves_tables_figures_and_the_best(
    toy: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, f"run_dir={tmp_path}/a"]
    assert command_line.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sweeping 9 configurations of 2 seeds (random search) on ")
    assert any("9 trials trained to their end" in line for line in lines) and len(lines) < 30
    command = next(line.strip() for line in lines if line.startswith("  python -m haepo_jax.train "))
    table = parquet.read_table(tmp_path / "a" / "trials.parquet").to_pylist()
    with (tmp_path / "a" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in table] == list(range(9)) == [int(row["index"]) for row in rows]
    for row, text in zip(table, rows, strict=True):
        assert row["state"] == text["state"] == "complete"
        assert row["return"] == float(text["return"]) == pytest.approx(np.mean(row["return_per_seed"]))
        assert json.loads(text["return_per_seed"]) == row["return_per_seed"]
        assert np.shape(row["curve_return_per_seed"]) == (2, 4) and len(row["curve_steps"]) == 4
        assert row["algo.learning_rate"] == float(text["algo.learning_rate"])
    best = max(table, key=lambda row: row["return"])
    assert f"algo.learning_rate={best['algo.learning_rate']}" in command
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["best"]["CartPole-v1"]["command"] == command and summary["states"] == {"complete": 9}
    for name in ("returns", "parallel", "curves", "importance"):
        assert (tmp_path / "a" / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    trained = list(toy)
    assert command_line.main(arguments) == 0, "once more: there is nothing left to run"
    assert toy == trained and "9 trials trained to their end" in capsys.readouterr().out
    assert command_line.main([*arguments, "resume=false"]) == 2
    assert command_line.main([*ARGUMENTS, f"run_dir={tmp_path}/b", "resume=true"]) == 2
    assert command_line.main([*ARGUMENTS, f"run_dir={tmp_path}/a", "algo.kl_coef=1"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert (
        len(errors) == 3
        and "already holds" in errors[0]
        and "no sweep to resume" in errors[1]
        and "another sweep" in errors[2]
    )


def test_an_interrupted_sweep_runs_nothing_twice(
    toy: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*ARGUMENTS, f"run_dir={tmp_path}/a"]
    original = cohorts.Group.evaluate

    def interrupt(self: Any, trials: Any) -> Any:
        if len(toy) > 4:
            raise KeyboardInterrupt
        return original(self, trials)

    with monkeypatch.context() as patch:
        patch.setattr(cohorts.Group, "evaluate", interrupt)
        assert command_line.main(arguments) == 130
    with (tmp_path / "a" / "trials.csv").open() as file:
        assert sorted(row["state"] for row in csv.DictReader(file)) == ["complete"] * 4 + ["running"] * 4
    plan = runs.read_sweep(read_arguments(arguments).overrides)
    # What ran in this process is its own: as a worker that died it would have another name.
    monkeypatch.setattr("haepo_jax.runner.sweeps.study._own_name", lambda: "the next process")
    monkeypatch.setattr("haepo_jax.runner.sweeps.study._lives_here", lambda name: False)
    toy.clear()
    assert command_line.main(arguments) == 0
    study = Study(plan, open_storage(None, tmp_path / "a"), "a")
    assert len(toy) == 5, "the four that had ended are not among them"
    assert sorted(study.by_index()) == list(range(9)) and {t.state.name for t in study.by_index().values()} == {
        "COMPLETE"
    }


def test_halving_and_population_from_the_command(
    toy: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main([*ARGUMENTS[:-1], "halving=3", f"run_dir={tmp_path}/h"]) == 0
    assert "1 trials trained to their end, 8 stopped early" in capsys.readouterr().out
    rows = parquet.read_table(tmp_path / "h" / "trials.parquet").to_pylist()
    assert sorted(row["state"] for row in rows) == ["complete"] + ["stopped"] * 8
    assert command_line.main([*ARGUMENTS[:-1], "pbt=true", "pbt_rounds=3", f"run_dir={tmp_path}/p"]) == 0
    rows = parquet.read_table(tmp_path / "p" / "trials.parquet").to_pylist()
    assert all(len(json.loads(row["pbt_values"])["learning_rate"]) == 3 for row in rows)


def test_tpe_learns_between_cohorts(toy: list[int]) -> None:
    found = hx.sweep(
        "CartPole-v1",
        "haepo",
        {"learning_rate": "tag(log,interval(1e-6,1))"},
        search="tpe",
        num_configs=40,
        cohort=5,
        **TOY,
    )
    assert found.value[20:].mean() > found.value[:10].mean()


def start_worker(directory: Path, seconds: float) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        str(Path(__file__).with_name("sweep_worker.py")),
        str(seconds),
        *ARGUMENTS[:-1],
        "cohort=2",
    ]
    return subprocess.Popen(
        [*command, f"run_dir={directory}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("kill", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_complete_one_study(kill: bool, tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    # The one that is killed is so slow that it is always in the middle of something.
    workers = [start_worker(directory, 20.0 if kill else 0.2), start_worker(directory, 0.2)]
    if kill:
        deadline = time.monotonic() + 240
        while '"worker"' not in (directory / "study.log").read_text() if (directory / "study.log").exists() else True:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(1.0)
        workers[0].send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=300)[0] for process in workers]
    assert [process.returncode for process in workers] == [-9 if kill else 0, 0], outputs
    assert_each_once(directory)


@pytest.mark.parametrize(
    "killed", [pytest.param(None, marks=pytest.mark.slow), 0, pytest.param(1, marks=pytest.mark.slow)]
)
def test_the_processes_of_a_job_complete_one_study(killed: int | None, tmp_path: Path) -> None:
    """Also where one is killed halfway, be it the one that the others found each other through."""
    directory = tmp_path / "shared"
    # The one that is killed is so slow that it is always in the middle of something; the other waits until it is dead.
    go = tmp_path / "go"
    seconds = "0.2,0.2" if killed is None else ",".join("300" if index == killed else str(go) for index in range(2))
    script = str(Path(__file__).with_name("sweep_worker.py"))
    with Job([script, seconds, *ARGUMENTS[:-1], "cohort=2", "distributed=true", f"run_dir={directory}"]) as job:
        if killed is not None:
            claim = re.compile(rf'"worker":\s*"[^"]*/{job.processes[killed].pid}/')
            deadline = time.monotonic() + 240
            # Two, its cohort: one that is killed while it claims a trial is given up only after worker_timeout.
            while not (file := directory / "study.log").exists() or len(claim.findall(file.read_text())) < 2:
                assert time.monotonic() < deadline and job.processes[killed].poll() is None, job.output(killed)
                time.sleep(0.1)
            job.processes[killed].kill()
            go.touch()
        expected = [-signal.SIGKILL if index == killed else 0 for index in range(2)]
        assert job.wait() == expected, ended(job)
        assert all("on cpu (JAX" in job.output(index)[0] for index in range(2)), "each has its own device"
    assert_each_once(directory)


def test_without_a_job_around_it(tmp_path: Path) -> None:
    alone = run(["-m", "haepo_jax.sweep", *ARGUMENTS, "distributed=true", f"run_dir={tmp_path}/a"])
    assert alone.returncode == 2 and alone.stderr.count("\n") == 1 and "JAX_COORDINATOR_ADDRESS" in alone.stderr
    assert list(tmp_path.iterdir()) == []


def assert_each_once(directory: Path) -> None:
    """Every trial of the shared study has ended, and none twice."""
    rows = parquet.read_table(directory / "trials.parquet").to_pylist()
    assert [row["index"] for row in rows] == list(range(9)) and {row["state"] for row in rows} == {"complete"}
    plan = runs.read_sweep(read_arguments([*ARGUMENTS, f"run_dir={directory}"]).overrides)
    trials = Study(plan, open_storage(None, directory), "shared").trials()
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 9 and len({trial.params["algo.learning_rate"] for trial in complete}) == 9, (
        "each exactly once"
    )


SMALL = {
    "total_steps": 600, "num_envs": 8, "num_steps": 8, "replay_batches": 2, "group_size": 4, "num_minibatches": 2,
    "num_epochs": 1, "hidden_sizes": (4,), "eval_episodes": 0,
}  # fmt: skip


def test_a_trial_of_haepo_is_the_same_configuration_alone() -> None:
    """For the first three updates; later, differences in the last digit grow apart."""
    env = hx.make_env("haepo/random_walk", length=4, horizon=8)
    rates = [1e-3, 1e-2, 3e-2]
    algorithms = [hx.HAEPO(env, learning_rate=rate, **SMALL) for rate in rates]
    programs = cohorts.Programs(
        algorithms[0], varying=runs._Builder.varying(_NoEnv(), algorithms[0]), points=2, episodes=4
    )
    members = [cohorts.Candidate(n, algorithm, 5, "") for n, algorithm in enumerate(algorithms)]
    group = cohorts.Group(members, programs, cohorts.BatchSize(programs, 6, fixed=True), 2, 2)
    group._lanes = programs.advance(group._numbers, group._lanes, [600] * 6, 3)
    step = jax.jit(lambda algorithm, state: algorithm.train_step(state)[0])
    state = jax.jit(lambda algorithm, key: algorithm.init(key))(algorithms[1], jax.random.key(6))
    for _ in range(3):
        state = step(algorithms[1], state)
    lane = group.lanes_of([1])[1]
    assert (
        group._lanes.state.update[lane] == 3 and group._lanes.state.env_steps.to_int()[lane] == state.env_steps.to_int()
    )
    for ours, single in zip(jax.tree.leaves(group._lanes.state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours[lane], single, rtol=1e-4, atol=1e-6)


class _NoEnv:
    class plan:
        dimensions = ()


def test_a_sweep_of_haepo_and_numbers_of_its_environment() -> None:
    settings = {f"algo.{key}" if key in hyperparameters("haepo") else key: value for key, value in SMALL.items()}
    settings = {
        key.removeprefix("algo.") if key == "algo.total_steps" else key: value for key, value in settings.items()
    }
    found = hx.sweep(
        "haepo/random_walk", "haepo", {"learning_rate": [1e-2], "env_kwargs.reward": [1.0, 2.0]},
        final_eval_episodes=8, **{"env_kwargs.length": 3, "env_kwargs.horizon": 8}, **settings,
    )  # fmt: skip
    assert found.values["env_kwargs.reward"].tolist() == [1, 2]
    np.testing.assert_allclose(found.returns[1], 2 * found.returns[0], rtol=0.5)
    assert np.all(found.env_steps >= 600) and np.isfinite(found.curves).any()


def test_an_algorithm_and_an_environment_of_ones_own() -> None:
    env = hx.make_env("haepo/random_walk", length=3, horizon=8)
    algorithm = hx.HAEPO(env, history_decay=0.5, **SMALL)
    found = hx.sweep(None, algorithm, {"learning_rate": [1e-2]}, final_eval_episodes=8)
    assert found.returns.shape == (1, 1) and found.env_steps[0, 0] >= 600
    assert found.values["algo.learning_rate"].tolist() == [1e-2]


def test_the_toy_is_an_algorithm_that_vmaps() -> None:
    states = jax.vmap(lambda rate: Toy(learning_rate=rate).init(jax.random.key(0)))(jnp.array([0.1, 0.2]))
    assert states.params.shape == (2, 2)


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_disk_that_fails_ends_a_sweep_in_one_line(
    toy: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    vanishes: bool,
) -> None:
    directory = tmp_path / "sweep"

    def full(result: Any, place: Path) -> None:
        if vanishes:
            shutil.rmtree(place)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place / "trials.csv"))

    arguments = ["env=CartPole-v1", "algo.kl_coef=0,1", *(f"{key}={value}" for key, value in TOY.items())]
    with monkeypatch.context() as failing:
        failing.setattr(runs, "write_tables", full)
        assert command_line.main([*arguments, f"run_dir={directory}"]) == 1
    error = capsys.readouterr().err
    expected = "has vanished while the sweep" if vanishes else "trials.csv: No space left on device; the same command"
    assert expected in error and error.count("\n") == 1
    assert vanishes or command_line.main([*arguments, f"run_dir={directory}"]) == 0
