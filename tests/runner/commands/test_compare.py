"""`python -m haepo_jax.compare`: settings for several algorithms, runs alike, what is made of their results."""

from __future__ import annotations

import json
import math
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haepo_jax.runner import comparison, session
from haepo_jax.runner.commands import compare
from haepo_jax.runner.comparison import read_comparison
from haepo_jax.runner.config import RunConfig
from haepo_jax.runner.config.arguments import command_of, compose, read_arguments
from haepo_jax.runner.errors import Interrupted
from haepo_jax.runner.run_dir import RunDir
from tests.runner.counting_algorithm import Counting

QUICK = ["total_steps=200", "final_eval_episodes=2"]


def read(*arguments: str) -> dict[str, RunConfig]:
    return read_comparison(read_arguments(arguments).overrides)[1]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that compile in no time; each algorithm's returns are its own."""
    strides = {"haepo": 20, "ppo": 10, "grpo": 10, "dpo": 15}
    monkeypatch.setattr(
        "haepo_jax.runner.loop.build",
        lambda config: Counting(
            total_steps=config.total_steps, stride=strides[config.algo.name], start=strides[config.algo.name]
        ),
    )


def test_every_algorithm_meets_every_environment_with_its_own_settings() -> None:
    found = read(
        "env=CartPole-v1,haepo/bandit", "algo=haepo,ppo,haepo_paper", "algo.num_envs=64", "algo.temperature=0.5",
        "haepo.temperature=2", "ppo.learning_rate=1e-3", "total_steps=1e5", "seed=4",
    )  # fmt: skip
    assert list(found) == [
        "haepo-CartPole-v1", "ppo-CartPole-v1", "haepo_paper-CartPole-v1",
        "haepo-haepo-bandit", "ppo-haepo-bandit", "haepo_paper-haepo-bandit",
    ]  # fmt: skip
    for run in found.values():
        assert (run.seed, run.num_seeds, run.total_steps, run.tensorboard) == (4, 10, 100_000, False)
        assert run.algo.hyperparameters["num_envs"] == 64
    one = {name: run.algo.hyperparameters for name, run in found.items()}
    assert one["haepo-CartPole-v1"]["temperature"] == 2.0 and one["haepo_paper-CartPole-v1"]["temperature"] == 0.5
    assert "temperature" not in one["ppo-CartPole-v1"] and one["ppo-haepo-bandit"]["learning_rate"] == 1e-3
    assert one["haepo_paper-CartPole-v1"]["credit"] == "trajectory"


def test_the_baselines_are_the_default_and_one_environment_needs_no_name() -> None:
    assert list(read("env=gymnax/CartPole-v1")) == ["haepo", "ppo", "grpo", "dpo"]
    assert list(read("env=[CartPole-v1]", "algo=[ppo,dpo]")) == ["ppo", "dpo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "env= is missing"),
        (["env="], r"env=\[''\] must be one or more names"),
        (["env=null"], "env=None must be one or more names"),
        (["env=CartPol-v1"], "did you mean 'CartPole-v1'"),
        (["env=CartPole-v1,CartPole-v1"], "names 'CartPole-v1' twice"),
        (["env=CartPole-v1,gymnax/CartPole-v1"], "names 'CartPole-v1' twice"),
        (["env=CartPole-v1", "algo=haepo,hapo"], "unknown algorithm 'hapo'; did you mean 'haepo'"),
        (["env=CartPole-v1", "algo=ppo,ppo"], "names 'ppo' twice"),
        (["env=CartPole-v1", "+algo=ppo"], "cannot use"),
        (["env=CartPole-v1", "algo.learning_rate=1e-3,1e-4"], "only env and algo take several values here"),
        (["env=CartPole-v1", "algo.learning_rat=1"], "did you mean 'algo.learning_rate'"),
        (["env=CartPole-v1", "algo=ppo", "algo.history_decay=1"], "algo=ppo has no history_decay"),
        (["env=CartPole-v1", "algo=ppo", "haepo.kl_coef=1"], "haepo is not among the algorithms, algo=ppo"),
        (["env=CartPole-v1", "ppo.temperature=1"], "algo=ppo has no temperature"),
        (["env=CartPole-v1", "ppo.clip_eps=-1"], "algo.clip_eps=-1 is out of range"),
        (["env=CartPole-v1", "~ppo.clip_eps"], "cannot read|cannot use"),
        (["env=CartPole-v1", "grpo.group_size=5"], "grpo: algo.num_envs=8 is not a multiple of group_size=5"),
        (["env=CartPole-v1", "num_seed=2"], "did you mean 'num_seeds'"),
        (["env=CartPole-v1", "total_steps=x"], "total_steps='x' must be an integer"),
        (["env=CartPole-v1", "run_dir=[a]"], "run_dir=.* must be a string"),
        (["env=range(1000000000)"], r"cannot use 'env=range\(1000000000\)': write env=a,b"),
        (["env=CartPole-v1", "algo=shuffle(range(1000000000))"], "write algo=a,b"),
        (["env=CartPole-v1", "algo=glob(*)"], "write algo=a,b"),
        (["env=CartPole-v1", "run_dir=/dev/null/x"], "run_dir='/dev/null/x' cannot be made: '/dev/null' is not a dir"),
        (["env=CartPole-v1", "--cfg", "job"], "unknown option '--cfg'"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main(arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_lists_settings_and_algorithms(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--help"]) == 0
    output = capsys.readouterr().out
    for word in ("haepo_paper", "num_seeds", "10 ", "run_dir", "final_eval_episodes"):
        assert word in output


def test_a_run_is_told_as_a_command_that_repeats_it() -> None:
    runs = read(
        "env=CartPole-v1",
        "algo=haepo_paper",
        "algo.entropy_coef=[0.01,0]",
        "algo.hidden_sizes=[8,8]",
        "env_kwargs.gravity=9",
    )
    config = runs["haepo_paper"]
    assert compose(read_arguments(command_of(config)).overrides, RunConfig) == config


def test_results_of_runs_that_ended(counting: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "c"
    arguments = ["env=CartPole-v1,haepo/bandit", "algo=haepo,ppo,grpo,dpo", "num_seeds=4", *QUICK, f"run_dir={folder}"]
    assert compare.main(arguments) == 0
    output = capsys.readouterr().out
    document = json.loads((folder / "comparison.json").read_text())
    assert document["command"].startswith("python -m haepo_jax.compare env=CartPole-v1,haepo/bandit")
    assert len(document["results"]) == 8
    for result in document["results"]:
        summary = RunDir(folder / result["run_dir"]).read_summary()
        assert result["final_return_per_seed"] == summary["final_return_per_seed"] and result["seeds"] == [0, 1, 2, 3]
        assert result["iqm"] == pytest.approx(np.mean(sorted(summary["final_return_per_seed"])[1:3]))
        low, high = result["iqm_interval"]
        assert low <= result["iqm"] <= high
    improvement = document["probability_of_improvement"]
    assert improvement["of"] == "haepo" and set(improvement["over"]) == {"ppo", "grpo", "dpo"}
    assert set(improvement["over"]["ppo"]) == {"CartPole-v1", "haepo/bandit", "all"}

    markdown = (folder / "comparison.md").read_text()
    for part in ("### CartPole-v1, 4 seeds", "### haepo/bandit", "| haepo ", "P(haepo is better)"):
        assert part in markdown and part in output
    widths = {len(line) for line in markdown.split("###")[1].splitlines() if line.startswith("|")}
    assert len(widths) == 1, "the columns stand under each other"
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")

    assert compare.main([*arguments, "resume=false"]) == 2, "the directory is taken"
    assert "already holds a run" in capsys.readouterr().err
    assert compare.main(["env=CartPole-v1", f"run_dir={folder / 'haepo-CartPole-v1'}"]) == 2, "it is that of a run"
    assert "already holds a run" in capsys.readouterr().err


def test_an_interrupted_comparison_is_resumed(
    counting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    arguments = ["env=CartPole-v1", "algo=haepo,ppo", "num_seeds=2", *QUICK, f"run_dir={folder}"]

    whole = session.train_and_report

    def ended_in_the_second(config: RunConfig) -> None:
        if config.algo.name == "ppo":
            raise Interrupted(signal.SIGTERM, "ended")
        whole(config)

    monkeypatch.setattr(session, "train_and_report", ended_in_the_second)
    assert compare.main(arguments) == 128 + signal.SIGTERM
    told = capsys.readouterr().err
    assert "in run 2 of 2" in told and told.endswith(f"run_dir={folder}\n")
    monkeypatch.setattr(session, "train_and_report", whole)

    before = (folder / "haepo" / "metrics.jsonl").read_bytes()
    assert compare.main([*arguments, "algo.learning_rate=0.5"]) == 2
    assert "algo.learning_rate=0.5, but the run" in capsys.readouterr().err
    assert compare.main(arguments) == 0
    assert "has ended" in capsys.readouterr().out
    assert (folder / "haepo" / "metrics.jsonl").read_bytes() == before
    assert len(json.loads((folder / "comparison.json").read_text())["results"]) == 2


def test_a_run_that_cannot_be_extended_ends_the_comparison(
    counting: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "c"
    arguments = ["env=CartPole-v1", "algo=ppo", "num_seeds=2", *QUICK, f"run_dir={folder}"]
    assert compare.main(arguments) == 0
    before = (folder / "comparison.json").read_bytes()
    for progress in folder.glob("ppo/checkpoints/*/progress.json"):
        progress.write_text("{}")
    assert compare.main([*arguments, "total_steps=1e4"]) == 1
    assert "is intact" in capsys.readouterr().err
    assert (folder / "comparison.json").read_bytes() == before, "an old result is not that of a longer run"


def test_a_dry_run_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert compare.main(["env=haepo/bandit", "dry_run=true"]) == 0
    assert "usable" in capsys.readouterr().out
    assert compare.main(["env=haepo/bandit", "env_kwargs.num_arm=3"]) == 2
    assert "'num_arms'" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_two_algorithms_really_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = [
        "algo.num_envs=8",
        "haepo.group_size=4",
        "algo.num_minibatches=2",
        "ppo.num_steps=10",
        "algo.hidden_sizes=[8]",
    ]
    arguments = [
        "env=haepo/bandit",
        "algo=haepo,ppo",
        "num_seeds=2",
        "total_steps=1500",
        "algo.log_points=2",
        "algo.eval_episodes=0",
    ]
    assert compare.main([*arguments, *small, "final_eval_episodes=8", f"run_dir={tmp_path}/c"]) == 0
    document = json.loads((tmp_path / "c" / "comparison.json").read_text())
    assert [result["algo"] for result in document["results"]] == ["haepo", "ppo"]
    assert all(min(result["env_steps_per_seed"]) >= 1500 for result in document["results"])
    assert "[2/2] ppo on haepo/bandit" in capsys.readouterr().out


def test_an_algorithm_that_diverges_at_once_is_told_and_not_drawn(
    counting: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, kept = ["env=CartPole-v1", "algo=ppo,dpo", "num_seeds=2", *QUICK], RunDir.read_metrics
    undrawn: set[str] = set()
    monkeypatch.setattr(RunDir, "read_metrics", lambda run: [] if run.path.name in undrawn else kept(run))
    for name in ("ppo", "dpo"):
        undrawn.add(name)
        folder = tmp_path / str(len(undrawn))
        assert compare.main([*arguments, f"run_dir={folder}"]) == 0
        output = capsys.readouterr().out
        assert "| ppo " in output and "| dpo " in output
        assert (folder / "comparison.png").exists() == ("comparison.png" in output) == (len(undrawn) == 1)


def test_results_without_a_return_or_a_second_seed() -> None:
    def result(algo: str, returns: list[float]) -> dict[str, Any]:
        known = [value for value in returns if not math.isnan(value)]
        iqm = float(np.mean(known)) if known else math.nan
        return {
            "algo": algo, "env": "x", "seeds": list(range(len(returns))), "final_return_per_seed": returns, "iqm": iqm,
            "iqm_interval": [math.nan, math.nan], "mean": iqm, "min": iqm, "max": iqm, "env_steps_per_seed": [5] * len(returns),
            "env_steps_per_second": 1.0, "wall_seconds": 1.0, "diverged": [],
        }  # fmt: skip

    for results in ([result("ppo", [1.0])], [result("ppo", [1.0]), result("dpo", [math.nan])]):
        improvement = comparison.improvements(results)
        assert improvement["of"] == "ppo"
        assert "| ppo" in comparison.table(results, improvement)
