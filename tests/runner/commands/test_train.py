"""The command line end to end: a run's files, its output, and the figure drawn from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from matplotlib.figure import Figure

import haepo_jax
from haepo_jax.runner.commands import evaluate, plot, train
from haepo_jax.runner.run_dir import RunDir

ARGUMENTS = [
    "env=haepo/bandit", "num_seeds=2", "seed=5", "total_steps=4000", "algo.num_envs=8", "algo.num_steps=16",
    "algo.replay_batches=2", "algo.group_size=4", "algo.num_minibatches=2", "algo.num_epochs=2",
    "algo.log_points=6", "algo.eval_episodes=4", "final_eval_episodes=16", "algo.hidden_sizes=[8]",
]  # fmt: skip


class Run(NamedTuple):
    directory: RunDir
    output: str


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # What is compiled here runs for a second, so half the compilation time is saved by not optimising it.
    environment = os.environ | {
        "PYTHONPATH": str(Path(haepo_jax.__file__).parents[1]),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run in a process of its own, as a user starts it; `run_dir` has spaces and is made on the way."""
    folder = tmp_path_factory.mktemp("command")
    result = command("haepo_jax.train", *ARGUMENTS, "run_dir=to/my run", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "", "a normal run warns of nothing"
    return Run(RunDir(folder / "to" / "my run"), result.stdout)


def test_output_names_device_return_and_directory(finished: Run) -> None:
    lines = finished.output.splitlines()
    assert lines[0].startswith("training haepo on haepo/bandit, 2 seeds, on cpu (JAX ")
    assert any("steps/s over 2 seeds  return " in line and "ESS" in line for line in lines)
    assert lines[-1] == "results in to/my run"
    assert len(lines) < 30


def test_metrics_have_one_row_per_logged_update_and_every_seed(finished: Run) -> None:
    rows = finished.directory.read_metrics()
    assert 1 < len(rows) <= 6 and [row["row"] for row in rows] == list(range(len(rows)))
    for row in rows:
        assert {"update", "env_steps", "wall_seconds", "env_steps_per_second"} <= row.keys()
        assert {"loss", "objective", "entropy", "kl", "ess", "episode_return", "eval_return"} <= row.keys()
        for name, values in row["seeds"].items():
            known = [value for value in values if value is not None]
            assert len(values) == 2
            if name not in ("update", "env_steps"):
                assert row[name] == pytest.approx(sum(known) / len(known)) if known else row[name] is None
        assert row["env_steps"] == sum(row["seeds"]["env_steps"]) // 2
    assert all(len({tuple(row["seeds"]) for row in rows}) == 1 for row in rows), "one fixed schema"


def test_summary(finished: Run) -> None:
    summary = json.loads(finished.directory.summary.read_text())
    rows = finished.directory.read_metrics()
    assert (summary["env"], summary["algo"], summary["seeds"]) == ("haepo/bandit", "haepo", [5, 6])
    assert summary["env_steps"] >= 4000 and summary["env_steps_per_seed"] == rows[-1]["seeds"]["env_steps"]
    assert summary["updates"] == rows[-1]["update"]
    assert len(summary["final_return_per_seed"]) == 2
    assert summary["final_return_mean"] == pytest.approx(sum(summary["final_return_per_seed"]) / 2)
    assert summary["final_eval_episodes"] == 16 and summary["device"] == "cpu"
    for name in ("wall_seconds", "compile_seconds", "env_steps_per_second", "eval_share"):
        assert summary[name] > 0
    assert summary["eval_share"] < 1
    assert summary["versions"]["jax"] and summary["versions"]["haepo_jax"] == haepo_jax.__version__
    assert "'run_dir=to/my run'" in summary["command"]
    assert summary["hyperparameters"]["group_size"] == 4 and summary["hyperparameters"]["total_steps"] == 4000


def test_config_repeats_the_run(finished: Run) -> None:
    config = finished.directory.read_config()
    assert (config.env, config.num_seeds, config.algo.hyperparameters["hidden_sizes"]) == ("haepo/bandit", 2, (8,))
    assert yaml.safe_load(finished.directory.config.read_text())["run_dir"] == "to/my run"


def test_tensorboard_events_and_curve(finished: Run) -> None:
    events = list(finished.directory.path.glob("events.out.tfevents.*"))
    assert len(events) == 1 and b"eval/return" in events[0].read_bytes()
    assert finished.directory.curve.read_bytes().startswith(b"\x89PNG")


def test_a_used_directory_is_refused(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = finished.directory.metrics.read_bytes()
    assert train.main([*ARGUMENTS, f"run_dir='{finished.directory.path}'"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert finished.directory.metrics.read_bytes() == before


def test_plot_overlays_runs(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = str(finished.directory.path), tmp_path / "curves.png"
    assert plot.main([f"run_dir='{path}','{path}'", f"out={out}"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    # Runs with the same last name are told apart by their paths.
    other = str(shutil.copytree(path, tmp_path / "other" / finished.directory.path.name))
    drawn: list[Any] = []
    monkeypatch.setattr("haepo_jax.runner.plots.curves_figure", lambda curves, title: drawn.append(curves) or Figure())
    assert plot.main([path, other, f"out={out}"]) == 0
    assert [curve.label for curve in drawn[0]] == [path, other]
    monkeypatch.undo()
    for name, changes, message in [
        ("llm", {"model": "m"}, "is a run of haepo_jax.llm"),
        ("later", {"colour": 1}, "/later/config.yaml': unknown key 'colour'"),
    ]:
        folder = RunDir(Path(shutil.copytree(path, tmp_path / name)))
        folder.write_settings(folder.read_settings() | changes)
        for main in (plot.main, evaluate.main):
            assert main([str(folder.path)]) == 2
            assert message in capsys.readouterr().err
    for arguments, message in [
        ([], "run_dir= is missing"),
        ([f"run_dir={tmp_path}/nowhere"], "is not a directory"),
        ([f"run_dir={tmp_path}"], "holds no readable metrics.jsonl"),
        ([f"run_dir='{path}'", f"out={tmp_path}/nowhere/x.png"], "there is no directory"),
        ([f"run_dir='{path}'", "out=curves.doc"], "must end in .png"),
    ]:
        capsys.readouterr()
        assert plot.main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1


def test_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main(["env=CartPole-v1", "dry_run=true"]) == 0
    assert train.main(["env=CartPole-v1", "dry_run=true", "env_kwargs.gravty=1"]) == 2
    assert "'gravity'" in capsys.readouterr().err
    monkeypatch.setattr("haepo_jax.runner.loggers.util.find_spec", lambda name: None)
    assert train.main(["env=CartPole-v1", "dry_run=true", "wandb=true"]) == 2
    assert "haepo_jax[wandb]" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_start_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("haepo_jax.runner.loggers.util.find_spec", lambda name: None)
    for setting, message in (("env_kwargs.gravty=1", "'gravity'"), ("wandb=true", "haepo_jax[wandb]")):
        assert train.main(["env=CartPole-v1", f"run_dir={tmp_path}/new", setting]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_ctrl_c_ends_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("haepo_jax.runner.loop.build", interrupted)
    assert train.main(["env=CartPole-v1", f"run_dir={tmp_path}/run"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
