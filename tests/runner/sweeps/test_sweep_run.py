"""Whole sweeps: results on disk and in Python, resuming, several processes, and HAEPO itself."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import errno
import io
import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import haepo_jax as hx
from haepo_jax.algorithms.declared import hyperparameters
from haepo_jax.algorithms.fields import NOT_NEGATIVE, leaf
from haepo_jax.counting import StepCount
from haepo_jax.envs.base import TimeStep
from haepo_jax.runner.commands import sweep as command_line
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.program import final_size
from haepo_jax.runner.sweeps import cohort as cohorts
from haepo_jax.runner.sweeps import worker as workers
from haepo_jax.runner.sweeps.batch import Programs
from haepo_jax.runner.sweeps.plan import SweepPlan, read_sweep
from haepo_jax.runner.sweeps.results import write_figures
from haepo_jax.runner.sweeps.study import DATABASE, Study
from haepo_jax.spaces import Box, Discrete
from tests.jobs import environment
from tests.runner.sweeps.sweep_worker import use_toy
from tests.runner.sweeps.toy_algorithm import Toy

SPACE = {"learning_rate": "tag(log,interval(1e-4,1))", "entropy_coef": [0, 0.1]}
TOY = {"total_steps": 100, "final_eval_episodes": 3, "curve_points": 4}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sweeps are of the toy algorithm; the numbers of the trials trained are put down in the list."""
    for name in ("build", "check"):
        monkeypatch.setattr(SweepPlan, name, getattr(SweepPlan, name))
    use_toy()
    trained: list[int] = []
    original = cohorts.Group.__init__

    def init(self: Any, algorithms: Any, *arguments: Any) -> None:
        trained.extend(algorithms)
        original(self, algorithms, *arguments)

    monkeypatch.setattr(cohorts.Group, "__init__", init)
    return trained


def test_from_python(toy: list[int]) -> None:
    found = hx.sweep("CartPole-v1", "haepo", SPACE, num_configs=12, num_seeds=3, **TOY)
    assert toy == list(range(12))
    assert (
        found.returns.shape == (12, 3)
        and found.curves.shape == (12, 4, 3)
        and found.curve_steps.tolist() == [25, 50, 75, 100]
    )
    rates = found.values["algo.learning_rate"]
    np.testing.assert_allclose(found.value, -np.abs(np.log10(rates) + 2), atol=1e-4)
    best = found.best()
    assert best == np.argmin(np.abs(np.log10(rates) + 2)) and set(found.state) == {"complete"}
    assert np.all(found.env_steps >= 100)
    config = compose(read_arguments(shlex.split(found.command(best))[3:]).overrides, RunConfig)
    assert (
        config.algo.hyperparameters["learning_rate"] == rates[best]
        and config.num_seeds == 3
        and config.total_steps == 100
    )


def test_a_trial_that_diverged_is_a_failed_trial(
    toy: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The frozen policy of 1.5 would be ahead of the trial that trains.
    arguments = ["env=CartPole-v1", "algo.learning_rate=1e-6,1.5", *(f"{key}={value}" for key, value in TOY.items())]
    assert command_line.main([*arguments, f"run_dir={tmp_path}/a"]) == 0
    output = capsys.readouterr().out
    assert "2 trials: 1 complete, 1 failed" in output and "best: trial 0, return -4" in output
    rows = read_table(tmp_path / "a")
    assert [row["state"] for row in rows] == ["complete", "failed"] and rows[1]["diverged_at_per_seed"] == [2]
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["states"] == {"complete": 1, "failed": 1}
    study = study_of(arguments, tmp_path / "a")
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "FAIL"]

    arguments[1] = "algo.learning_rate=2,3"
    for _ in range(2):  # also when it is resumed
        assert command_line.main([*arguments, f"run_dir={tmp_path}/b"]) == 1
        output = capsys.readouterr()
        assert "error: all 2 trials failed: try smaller learning rates" in output.err and "best:" not in output.out


@pytest.mark.parametrize("rates", [[1e-2, 1e-3, 5.0], [1e-2]])
def test_the_figures_are_optunas(rates: list[float], toy: list[int], tmp_path: Path) -> None:
    """Also where trials have failed; the pyplot of the user stays as it is."""
    from matplotlib import pyplot

    pyplot.switch_backend("pdf")
    mine, style = pyplot.figure(), dict(pyplot.rcParams)
    space = {"learning_rate": rates, "hidden_sizes": [[8], [16]]}
    found = hx.sweep("CartPole-v1", "haepo", space, run_dir=str(tmp_path), **TOY)
    assert ("failed" in found.state) == (len(rates) > 1)
    for name in ("slice", "history"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert pyplot.get_backend() == "pdf" and dict(pyplot.rcParams) == style
    assert [pyplot.figure(number) for number in pyplot.get_fignums()] == [mine]
    pyplot.close(mine)
    found.state = np.array(["failed"] * len(found.state))
    assert write_figures(found, tmp_path) == []


def test_progress_within_a_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "CALL_SECONDS", 0.0)  # one update a call
    stream = io.StringIO()
    plan = read_sweep(
        read_arguments(["env=CartPole-v1", "algo.kl_coef=0,1", *(f"{k}={v}" for k, v in TOY.items())]).overrides
    )
    monkeypatch.setattr(SweepPlan, "build", lambda self, values: Toy(total_steps=100))
    workers.run(plan, None, stream)
    before = [line for line in stream.getvalue().splitlines() if line.startswith("0/2 trials")]
    assert len(before) > 5 and all("% of the steps" in line and "best" not in line for line in before)


def test_an_error_is_raised_before_anything_trains(toy: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate=-1.0 is out of range"):
        hx.sweep("CartPole-v1", "haepo", {"learning_rate": "interval(-1,1)"})
    with pytest.raises(ConfigError, match="unknown key 'algo.num_config'; did you mean 'num_configs'"):
        hx.sweep("CartPole-v1", "haepo", SPACE, num_config=3)
    assert toy == []


def test_values_may_be_an_array(toy: list[int]) -> None:
    rates = np.geomspace(1e-4, 1e-2, 3)
    for values in (rates, jnp.asarray(rates), list(jnp.asarray(rates))):
        found = hx.sweep("CartPole-v1", "haepo", {"learning_rate": values}, **TOY)
        np.testing.assert_allclose(found.values["algo.learning_rate"], rates, rtol=1e-6)


def test_from_python_as_from_the_command_line(toy: list[int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="env=None needs an algorithm that is an object"):
        hx.sweep(None, "haepo", SPACE)
    with pytest.raises(ConfigError, match="must be the name of an algorithm, or an algorithm such as"):
        hx.sweep("CartPole-v1", hx.PPO, SPACE)
    with pytest.raises(ConfigError, match="dry_run=true is for the command line"):
        hx.sweep("CartPole-v1", "haepo", SPACE, dry_run=True, **TOY)
    (tmp_path / "config.yaml").write_text("env: CartPole-v1")
    for directory, told in ((tmp_path, "holds a training run"), (tmp_path / "config.yaml" / "a", "is not a directory")):
        with pytest.raises(ConfigError, match=told):
            hx.sweep("CartPole-v1", "haepo", SPACE, run_dir=str(directory), **TOY)
    assert toy == [] and [*tmp_path.iterdir()] == [tmp_path / "config.yaml"]


def test_long_episodes_are_evaluated_as_a_training_run_does() -> None:
    env = hx.make_env("haepo/random_walk", length=900, horizon=1000)
    algorithm = hx.PPO(env, total_steps=64, num_envs=4, num_steps=4, num_minibatches=1, num_epochs=1, hidden_sizes=(4,))
    most = []

    def evaluate(algorithm: Any, state: Any, *, episodes: int, max_steps: int | None = None) -> dict[str, jax.Array]:
        most.append(max_steps)
        return {"return": jnp.zeros(episodes)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hx.PPO, "evaluate", evaluate)
        hx.sweep(None, algorithm, {"learning_rate": [1e-3]})
    assert most == [final_size(None, algorithm).max_steps] and most[0] < 1000


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
    assert any("9 trials: 9 complete" in line for line in lines) and len(lines) < 30
    command = next(line.strip() for line in lines if line.startswith("  python -m haepo_jax.train "))
    table = read_table(tmp_path / "a")
    assert [row["index"] for row in table] == list(range(9))
    for row in table:
        assert row["state"] == "complete" and row["return"] == pytest.approx(np.mean(row["return_per_seed"]))
        assert np.shape(row["curve_return_per_seed"]) == (2, 4) and len(row["curve_steps"]) == 4
    best = max(table, key=lambda row: row["return"])
    assert "rounding differs" in lines[lines.index(f"  {command}") + 1]
    assert f"algo.learning_rate={best['algo.learning_rate']}" in command
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["best"]["command"] == command and summary["states"] == {"complete": 9}
    assert "trials.csv, summary.json, slice.png, history.png" in lines[-1]

    trained = list(toy)
    assert command_line.main(arguments) == 0, "once more: there is nothing left to run"
    assert toy == trained and "9 trials: 9 complete" in capsys.readouterr().out
    assert command_line.main([*ARGUMENTS, f"run_dir={tmp_path}/a", "algo.kl_coef=1"]) == 2
    error = capsys.readouterr().err
    assert f"run_dir='{tmp_path}/a' holds another sweep" in error and error.count("\n") == 1


def test_an_interrupted_sweep_runs_nothing_twice(
    toy: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*ARGUMENTS, f"run_dir={tmp_path}/a"]
    original = cohorts.Group.evaluate

    def interrupt(self: Any) -> Any:
        if len(toy) > 4:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(cohorts.Group, "evaluate", interrupt)
        assert command_line.main(arguments) == 130
    assert [row["state"] for row in read_table(tmp_path / "a")] == ["complete"] * 4
    toy.clear()
    assert command_line.main(arguments) == 0
    study = study_of(arguments, tmp_path / "a")
    assert len(toy) == 5, "the four that had ended are not among them"
    assert sorted(study.by_index()) == list(range(9)) and {t.state.name for t in study.by_index().values()} == {
        "COMPLETE"
    }


def test_halving_from_the_command(toy: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main([*ARGUMENTS[:-1], "halving=3", f"run_dir={tmp_path}/h"]) == 0
    assert "9 trials: 1 complete, 8 stopped" in capsys.readouterr().out
    rows = read_table(tmp_path / "h")
    assert sorted(row["state"] for row in rows) == ["complete"] + ["stopped"] * 8


@pytest.mark.parametrize("at", ["before the first rung", "before trials are stopped", "after the first rung"])
def test_an_interrupted_halving_compares_no_trial_twice(
    at: str, toy: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever it is interrupted, as many survive as if it had not been, and the same ones."""
    arguments = [*(a for a in ARGUMENTS if not a.startswith(("cohort", "num_configs"))), "num_configs=18", "halving=3"]
    assert command_line.main([*arguments, f"run_dir={tmp_path}/whole"]) == 0
    name = "train" if at == "after the first rung" else "evaluate" if at == "before the first rung" else "end"
    original, calls = getattr(cohorts.Group, name), []

    def interrupt(self: Any, *rest: Any) -> Any:
        calls.append(rest)
        if name != "train" or len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cohorts.Group, name, interrupt)
        assert command_line.main([*arguments, f"run_dir={tmp_path}/a"]) == 130
    ended = [row["state"] for row in read_table(tmp_path / "a")]
    assert ended.count("stopped") == (12 if name == "train" else 0)
    toy.clear()
    assert command_line.main([*arguments, f"run_dir={tmp_path}/a"]) == 0
    assert len(toy) == (6 if name == "train" else 18)
    whole, again = ([row["state"] for row in read_table(tmp_path / name)] for name in ("whole", "a"))
    assert again == whole and [whole.count(state) for state in ("complete", "stopped")] == [2, 16]


@pytest.mark.parametrize("halving", [None, 2])
def test_a_search_that_learns_takes_several_cohorts(
    halving: int | None, toy: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    monkeypatch.setattr(workers, "train_cohort", lambda groups, *_, **__: sizes.append(len(groups[0].trials)))
    monkeypatch.setattr(workers._Worker, "_ended", lambda self: (0, np.nan))
    hx.sweep("CartPole-v1", "haepo", SPACE, search="tpe", num_configs=40, halving=halving, **TOY)
    assert sizes == [5] * 8


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
        "worker_timeout=5",
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
    workers = [start_worker(directory, 20.0 if kill else 0.2)]
    if kill:
        deadline = time.monotonic() + 240
        while not claims(directory):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    workers.append(start_worker(directory, 0.2))
    if kill:
        workers[0].send_signal(signal.SIGKILL)
    outputs = [process.communicate(timeout=300)[0] for process in workers]
    assert [process.returncode for process in workers] == [-9 if kill else 0, 0], outputs
    assert_each_once(directory)


def read_table(directory: Path) -> list[dict[str, Any]]:
    """The rows of `trials.csv`; numbers and lists are JSON in it."""

    def read(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    with (directory / "trials.csv").open() as file:
        return [{key: read(text) for key, text in row.items()} for row in csv.DictReader(file)]


def study_of(arguments: list[str], directory: Path) -> Study:
    plan = read_sweep(read_arguments(arguments).overrides)
    return Study(plan, directory)


def claims(directory: Path) -> list[Any]:
    """The trials that have been claimed, as the study's database has them."""
    if not (directory / DATABASE).exists():
        return []
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as database, contextlib.suppress(sqlite3.Error):
        return database.execute("select trial_id from trials").fetchall()
    return []


def assert_each_once(directory: Path) -> None:
    """Every trial of the shared study has ended, and none twice."""
    rows = read_table(directory)
    assert [row["index"] for row in rows] == list(range(9)) and {row["state"] for row in rows} == {"complete"}
    trials = study_of(ARGUMENTS, directory).trials()
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
    programs = Programs(algorithms[0], points=2, episodes=4)
    group = cohorts.Group(dict(enumerate(algorithms)), programs, range(5, 7), 6)
    runs = programs.advance(group._numbers, group._runs, StepCount.of(600), jnp.int32(3))
    step = jax.jit(lambda algorithm, state: algorithm.train_step(state)[0])
    state = jax.jit(lambda algorithm, key: algorithm.init(key))(algorithms[1], jax.random.key(6))
    for _ in range(3):
        state = step(algorithms[1], state)
    index = group.runs_of([1])[1]
    assert runs.state.update[index] == 3 and runs.state.env_steps.to_int()[index] == state.env_steps.to_int()
    for ours, single in zip(jax.tree.leaves(runs.state.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours[index], single, rtol=1e-4, atol=1e-6)


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


@dataclasses.dataclass(frozen=True)
class Corridor:
    """A custom environment: one number, and a step to the right that is rewarded with it."""

    reward: float = 1.0
    name: str = "corridor"
    horizon: int = 4
    observation_space: Any = Box(0.0, 4.0, (1,))
    action_space: Any = Discrete(2)

    def reset(self, key: Any) -> Any:
        return jnp.float32(0.0), jnp.zeros(1)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        state = state + action
        return TimeStep(state, state[None], self.reward * action, state >= 2, jnp.bool_(False))


def test_a_custom_environment() -> None:
    settings = {key: value for key, value in SMALL.items() if key != "hidden_sizes"}
    found = hx.sweep(
        Corridor(), "haepo", {"learning_rate": [1e-2, 3e-2]}, hidden_sizes=(4,), final_eval_episodes=8, **settings
    )
    assert np.all(found.env_steps >= 600)
    command = found.command(0)
    assert command.startswith("# no command line: the environment is a Python object") and "hx.train" in command
    assert found.algorithm(1).learning_rate == 3e-2 and found.algorithm(1).env.name == "corridor"
    with pytest.raises(ConfigError, match="env_kwargs.reward= cannot be set beside"):
        hx.sweep(Corridor(), "haepo", {"env_kwargs.reward": [1, 2]})


def test_two_custom_environments_are_two_sweeps(toy: list[int], tmp_path: Path) -> None:
    arguments = {"space": {"learning_rate": [1e-2, 1e-3]}, "run_dir": str(tmp_path / "a"), **TOY}
    hx.sweep(Corridor(), **arguments)
    hx.sweep(Corridor(), **arguments)
    assert len(toy) == 2, "the same environment, so the same sweep: resumed"
    with pytest.raises(ConfigError, match="holds another sweep"):
        hx.sweep(Corridor(reward=2.0), **arguments)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["best"]["command"].startswith("# no command line")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Warm(hx.PPO):
    """A custom algorithm: a subclass with a hyperparameter of its own."""

    warmth: float = leaf(0.5, "how warm it is", within=NOT_NEGATIVE)


class Unregistered(hx.PPO):
    """What jax does not know as a pytree."""


def test_a_custom_algorithm() -> None:
    env = hx.make_env("haepo/random_walk", length=3, horizon=8)
    small = {"total_steps": 600, "num_envs": 8, "num_steps": 8, "num_epochs": 1, "hidden_sizes": (4,)}
    algorithm = Warm(env, discount=0.5, **small)
    found = hx.sweep(None, algorithm, {"warmth": [0.1, 0.2]}, final_eval_episodes=8)
    assert found.returns.shape == (2, 1) and np.all(found.env_steps >= 600)
    assert found.values["algo.warmth"].tolist() == [0.1, 0.2]
    again = found.algorithm(1)
    assert type(again) is Warm and (again.discount, again.warmth) == (0.5, 0.2)
    assert found.command(0).startswith("# no command line: the algorithm is a Python object")
    for space, message in [({"larning_rate": [1, 2]}, "did you mean 'algo.learning_rate'"), ({"learning_rate": [1e-3, -1]}, "out of range"),
                           ({"num_minibatches": [2, 3]}, "cannot set up Warm"), ({"temperature": [1, 2]}, "cannot set up Warm"),
                           ({"warmth": [0.1, 0.2], "discount": 0.9}, "algo.discount has one value: set it in")]:  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            hx.sweep(None, algorithm, space)
    with pytest.raises(ConfigError, match="Unregistered is not a pytree: put @jax.tree_util.register_dataclass"):
        hx.sweep(None, Unregistered(env, **small), {"learning_rate": [1e-3, 1e-2]})
    with pytest.raises(ConfigError, match="Unregistered is not a pytree: put @jax.tree_util.register_dataclass"):
        hx.train(Unregistered(env, **small))
    for schedule in (optax.linear_schedule(1e-3, 0.0, 1), [1e-3, optax.linear_schedule(1e-3, 0.0, 1)]):
        with pytest.raises(ConfigError, match="^learning_rate=.* cannot be swept: give numbers, and set functions in"):
            hx.sweep(None, algorithm, {"learning_rate": schedule})


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
        failing.setattr(workers, "write_table", full)
        assert command_line.main([*arguments, f"run_dir={directory}"]) == 1
    error = capsys.readouterr().err
    expected = "was removed during the sweep" if vanishes else "trials.csv: No space left on device; the same command"
    assert expected in error and error.count("\n") == 1
    assert vanishes or command_line.main([*arguments, f"run_dir={directory}"]) == 0
