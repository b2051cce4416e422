"""Runs that are broken off and resumed end as if they had never been."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from haepo_jax.runner.checkpoints import Checkpoints
from haepo_jax.runner.run_dir import RunDir
from tests.runner.counting_algorithm import Counting
from tests.runner.surviving import ALGORITHMS, ALWAYS, COMMON, Runs, assert_same_end, final_bits, flip, outcome, rows

COUNTING = ["env=CartPole-v1", "total_steps=400", "final_eval_episodes=2", "tensorboard=false", "num_seeds=2"]


@pytest.mark.parametrize("seeds", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize(
    "algo",
    [
        pytest.param(algo, marks=pytest.mark.slow) if algo in ("haepo_episodic", "grpo", "dpo") else algo
        for algo in ALGORITHMS
    ],
)
def test_interrupted_and_resumed_is_bit_identical(runs: Runs, tmp_path: Path, algo: str, seeds: int) -> None:
    arguments = [*ALGORITHMS[algo], *COMMON, f"num_seeds={seeds}", "seed=7"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert runs(whole, *arguments) == 0
    assert len(rows(whole)) >= 4
    assert runs(broken, *arguments, calls=0) == 143
    for calls in (0, 1, 3, 0, 2):
        if not (broken / "summary.json").exists():
            assert runs(broken, "resume=true", calls=calls) in (0, 143)
    assert runs(broken, "resume=true") == 0
    assert_same_end(broken, whole)


def test_any_place_to_break_off_is_as_good(counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole"
    assert counting(whole, *COUNTING) == 0
    for calls in (0, 1, 4, 5, 13, 22, 40, 57, 71, 72, 73):
        broken = tmp_path / str(calls)
        assert counting(broken, *COUNTING, calls=calls) == 143
        assert f"to resume: python -m haepo_jax.train run_dir={broken} resume=true" in capsys.readouterr().err
        assert counting(broken, "resume=true") == 0
        assert_same_end(broken, whole)
        assert len(RunDir(broken).read_summary()["resumed_from"]) == 1
    assert RunDir(broken).read_summary()["resumed_from"] == [403], "after the last update, in the final evaluation"


def test_a_row_does_not_depend_on_where_the_run_was_cut(
    counting: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds at different speeds, one that diverges in mid-row: the row under way stays the row under way."""
    for points in (3, 50):
        algorithm = Counting(total_steps=400, log_points=points, sick=(1,))
        monkeypatch.setattr("haepo_jax.runner.loop.build", lambda config, algorithm=algorithm: algorithm)
        whole = tmp_path / f"whole{points}"
        assert counting(whole, *COUNTING, "num_seeds=4") == 0
        for calls in (2, 7, 12, 14, 15, 16, 17, 25):
            broken = tmp_path / f"{points}-{calls}"
            assert counting(broken, *COUNTING, "num_seeds=4", calls=calls) == 143
            assert counting(broken, "resume=true") == 0
            assert_same_end(broken, whole)


def test_resume_without_a_run(counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, message in [
        (
            ["resume=true"],
            f"run_dir='{tmp_path}/new' holds no run: there is nothing to resume (resume=auto starts a run)",
        ),
        ([f"run_dir={tmp_path}/empty", "resume=true"], "holds no run"),
        ([f"run_dir={tmp_path}/file", "resume=true"], "holds no run"),
        (["run_dir=null", "resume=auto"], "resume=auto needs run_dir="),
        (["resume=perhaps"], "resume='perhaps' must be one of false, true, auto"),
        (["resume=auto"], "env= is missing"),
        ([f"run_dir={tmp_path}/file", *COUNTING, "resume=auto"], "is not a directory"),
    ]:
        assert counting(tmp_path / "new", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert counting(tmp_path / "new", *COUNTING, "resume=auto", calls=3) == 143
    assert counting(tmp_path / "new", *COUNTING, "resume=auto") == 0
    assert len(rows(tmp_path / "new")) == 8
    capsys.readouterr()
    assert counting(tmp_path / "new", *COUNTING, "resume=auto") == 0
    assert "has ended" in capsys.readouterr().out
    assert counting(tmp_path / "new", *COUNTING) == 2
    assert "resume it with resume=true" in capsys.readouterr().err


def test_a_changed_setting_is_refused_by_name(
    counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    settings = ["algo.num_envs=16", "algo.num_minibatches=2", "env_kwargs.gravity=9.0"]
    assert counting(run, *COUNTING, *settings, calls=3) == 143
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for argument, key in [
        ("seed=1", "seed=1"),
        ("num_seeds=3", "num_seeds=3"),
        ("env=Acrobot-v1", "env='Acrobot-v1'"),
        ("algo=ppo", "algo='ppo'"),
        ("algo.learning_rate=0.5", "algo.learning_rate=0.5"),
        ("algo.num_envs=32", "algo.num_envs=32"),
        ("env_kwargs.gravity=8.0", "env_kwargs.gravity=8.0"),
        ("env_kwargs.length=8.0", "env_kwargs.length=8.0"),
        ("total_steps=399", "total_steps=399 is less than the 400"),
        ("algo.gamma=1", "unknown key 'algo.gamma'"),
    ]:
        capsys.readouterr()
        assert counting(run, "resume=true", argument) == 2
        error = capsys.readouterr().err
        assert key in error and error.count("\n") == 1
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert before == after, "what is refused changes nothing"
    # What is given again, and what does not matter, may be given.
    same = ["algo.num_envs=16", "total_steps=400", "env_kwargs.gravity=9.0", "algo=haepo"]
    free = [
        "tensorboard=true",
        "keep_checkpoints=1",
        "checkpoint_minutes=null",
        "final_eval_episodes=3",
    ]
    assert counting(run, "resume=true", *same, *free) == 0
    assert RunDir(run).read_config().env_kwargs == {"gravity": 9.0}


def test_a_run_is_extended(counting: Runs, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert counting(run, *COUNTING) == 0
    best = RunDir(run).read_summary()
    assert counting(run, "resume=true", "total_steps=800") == 0
    summary = RunDir(run).read_summary()
    assert summary["env_steps_per_seed"] == [800, 803] and summary["resumed_from"] == [403]
    assert summary["run_seconds"] > best["run_seconds"]
    steps = [row["env_steps"] for row in rows(run)]
    assert steps == sorted(set(steps)) and len(steps) == 12, "8 rows of the first run and 4 of the second"
    assert counting(whole, *COUNTING, "total_steps=800") == 0
    assert final_bits(run) == final_bits(whole)
    assert RunDir(run).read_config().total_steps == 800


def killed(counting: Runs, directory: Path, *arguments: str) -> None:
    """A run that was killed some time after its third checkpoint."""
    assert counting(directory, *COUNTING, ALWAYS, *arguments, calls=30) == 143
    # SIGKILL leaves no checkpoint of the last moment.
    shutil.rmtree(Checkpoints(directory / "checkpoints").all()[-1].path)
    assert len(Checkpoints(directory / "checkpoints").all()) >= 2


def test_a_damaged_checkpoint_falls_back(counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends with the bits of one that was never touched."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert counting(whole, *COUNTING) == 0
    killed(counting, run)
    newest = Checkpoints(run / "checkpoints").all()[-1].path
    flip(max((file for file in newest.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size))
    capsys.readouterr()
    assert counting(run, "resume=true") == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and error.count("\n") == 1 and newest.name in error
    assert_same_end(run, whole)


def test_a_run_without_an_intact_checkpoint_is_refused(
    counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    killed(counting, run)
    for checkpoint in Checkpoints(run / "checkpoints").all():
        flip(checkpoint.path)
    for resume in ("true", "auto"):
        capsys.readouterr()
        assert counting(run, f"resume={resume}") == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: none of the ") and "is intact" in last
    shutil.rmtree(run / "checkpoints")
    assert counting(run, "resume=true") == 0, "without any, it starts again"
    assert "resuming from the beginning: no checkpoint yet" in capsys.readouterr().out
    assert len(rows(run)) == 8


def test_settings_that_cannot_be_read_are_refused(
    counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    killed(counting, run)
    config = run / "config.yaml"
    config.write_text("[")
    capsys.readouterr()
    assert counting(run, "resume=true") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_another_version_is_admitted(
    counting: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    killed(counting, run)
    monkeypatch.setattr("haepo_jax.runner.devices._version", lambda package: "99")
    assert counting(run, "resume=true") == 0
    assert "made on another device or by other versions" in capsys.readouterr().err


def test_checkpoints_kept(counting: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert counting(run, *COUNTING, ALWAYS, "keep_checkpoints=2") == 0
    numbers = [checkpoint.number for checkpoint in Checkpoints(run / "checkpoints").all()]
    assert len(numbers) == 2 and numbers[0] + 1 == numbers[1]
    best = Checkpoints(run / "checkpoints").best()
    assert best is not None and best.progress()["position"]["rows"] == 8, "returns grow with the steps"
    assert best.progress()["position"]["steps"] == 807
    summary = RunDir(run).read_summary()
    assert summary["checkpoint_seconds"] > 0
    assert summary["resumed_from"] == []


def test_times_add_up_over_processes(counting: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert counting(run, *COUNTING, calls=10) == 143
    first = Checkpoints(run / "checkpoints").all()[-1].progress()["position"]
    assert counting(run, "resume=true") == 0
    summary = RunDir(run).read_summary()
    assert summary["run_seconds"] > first["run_seconds"] and summary["compile_seconds"] >= first["compile_seconds"]
    walls = [json.loads(line)["wall_seconds"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert walls == sorted(walls)


def test_a_file_of_settings_starts_a_run_and_resumes_it(
    counting: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, broken, file = tmp_path / "whole", tmp_path / "broken", tmp_path / "my.yaml"
    assert counting(whole, *COUNTING) == 0
    # The config of another run: its directory is not taken over.
    file.write_bytes((whole / "config.yaml").read_bytes())
    again = ["--config", str(file), "resume=auto"]
    assert counting(broken, *again, calls=9) == 143
    assert counting(broken, *again) == 0
    assert rows(broken) == rows(whole) and outcome(broken) == outcome(whole)
    assert counting(broken, *again) == 0 and "has ended" in capsys.readouterr().out
    assert counting(broken, *again, "algo.learning_rate=0.5") == 2
    assert "algo.learning_rate=0.5, but the run in" in capsys.readouterr().err
