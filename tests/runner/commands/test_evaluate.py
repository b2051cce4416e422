"""`python -m haepo_jax.evaluate`: what it plays, what it says, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.runner import policy_evaluation
from haepo_jax.runner.commands import evaluate
from haepo_jax.statistics import bootstrap_interval, interquartile_mean


@pytest.fixture(scope="module")
def run(finished_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "run"
    shutil.copytree(finished_runs["cartpole"], path)
    return path


def test_every_seed_is_played_and_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([f"run_dir={run}", "episodes=8"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.count("| seed |") == 2
    document = json.loads((run / "evaluation.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    assert document["seeds"] == [3, 4] and document["env_steps_per_seed"] == summary["env_steps_per_seed"]
    # Eight episodes are the evaluation that this run ended with.
    for kind, key in (("sampled", "final_return_per_seed"), ("greedy", "final_return_greedy_per_seed")):
        returns = np.array(document[kind]["return"])
        assert returns.shape == (2, 8) and np.array(document[kind]["length"]).shape == (2, 8)
        np.testing.assert_array_equal(returns.mean(axis=1), summary[key])
        one, _, over = document[kind]["statistics"]
        assert one["seed"] == 3 and one["iqm"] == pytest.approx(float(interquartile_mean(returns[0])))
        low, high = bootstrap_interval(returns[0])
        assert (
            one["iqm_interval"] == [float(low), float(high)]
            and one["min"] == returns[0].min()
            and one["max"] == returns[0].max()
        )
        assert over["seed"] is None and over["mean"] == pytest.approx(returns.mean())
        assert (over["min"], over["max"]) == (returns.min(), returns.max()), "of episodes, as in every row"
    assert (run / "evaluation.png").read_bytes().startswith(b"\x89PNG")


def test_one_seed_other_episodes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([str(run), "episodes=3", "seed=4", "checkpoint=best", "episode_seed=9"]) == 0
    assert "all" not in capsys.readouterr().out
    document = json.loads((run / "evaluation.json").read_text())
    algo, policy = hx.load(run, seed=4, checkpoint="best")
    returns = algo.evaluate(policy.state, episodes=3, key=jax.random.key(9))["return"]
    np.testing.assert_array_equal(document["sampled"]["return"], [returns])


def test_many_episodes_are_played_in_chunks(finished_runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    algo, policy = hx.load(finished_runs["cartpole"])
    states = jax.tree.map(lambda x: x[None], policy.state)
    monkeypatch.setattr(policy_evaluation, "CHUNK", 4)
    sampled = policy_evaluation.play(algo, states, 10, None)["sampled"]["return"][0]
    assert sampled.shape == (10,)
    np.testing.assert_array_equal(sampled[:4], algo.evaluate(policy.state, episodes=4)["return"])
    assert not np.array_equal(sampled[:4], sampled[4:8])


def test_statistics_leave_out_what_is_not_finite() -> None:
    rows = policy_evaluation.summarise(np.array([[1.0, 2.0, np.nan], [4.0, 5.0, 6.0]]), [0, 1])
    assert rows[0]["mean"] == 1.5 and rows[0]["not_finite"] == 1 and rows[2]["not_finite"] == 1
    assert np.isnan(policy_evaluation.summarise(np.full((1, 2), np.inf), [0])[0]["iqm"])


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in [
        ([], "run_dir= is missing"),
        ([f"run_dir={tmp_path}/nowhere"], "is not a directory"),
        ([f"run_dir={'x' * 5000}"], "is not a directory"),
        ([f"run_dir={tmp_path}"], "holds no readable config.yaml"),
        ([f"run_dir={run}", "seed=9"], "seed=9 is not in this run, which has seeds=[3, 4]"),
        ([f"run_dir={run}", "episodes=0"], "episodes=0 is out of range"),
        ([f"run_dir={run}", "checkpoint=newest"], "checkpoint='newest' must be one of last, best"),
        ([f"run_dir={run}", "episods=5"], "did you mean 'episodes'?"),
    ]:
        assert evaluate.main(arguments) == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
    assert evaluate.main(["--help"]) == 0 and "episode_seed" in capsys.readouterr().out
