"""The custom algorithm in `examples/a2c.py`: on the command line and in Python, with the checks of the library's own."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from examples.a2c import A2C
from haepo_jax.runner.commands.evaluate import main as evaluate
from haepo_jax.runner.commands.train import main as train
from haepo_jax.runner.run_dir import RunDir

NAME = "algo=examples.a2c:A2C"
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python -m` makes it from the repository's root."""
    monkeypatch.syspath_prepend(ROOT)


def test_it_is_one_file_of_at_most_40_lines() -> None:
    assert len((ROOT / "examples/a2c.py").read_text().splitlines()) <= 40


def test_it_trains_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    arguments = [
        "env=haepo/bandit",
        NAME,
        "total_steps=512",
        "algo.num_envs=8",
        "algo.log_points=2",
        "algo.eval_episodes=2",
    ]
    assert train([*arguments, "final_eval_episodes=4", f"run_dir={run}", "tensorboard=false"]) == 0
    rows = RunDir(run).read_metrics()
    assert [row["env_steps"] for row in rows] == [256, 512] and np.isfinite(rows[-1]["value_loss"])
    assert evaluate([f"run_dir={run}", "episodes=4"]) == 0
    assert hx.load(run)[0].num_steps == 8


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("algo.gae_lambda=2", "algo.gae_lambda=2 is out of range [0, 1]"),
        ("algo.num_steps=0", "algo.num_steps=0 is out of range [1, "),
        ("algo.num_minibatches=3", "num_envs * num_steps=256 is not a multiple of num_minibatches=3"),
        ("algo.clip_eps=0.1", "unknown key 'algo.clip_eps'"),
        ("algo.num_step=4", "did you mean 'algo.num_steps'?"),
        ("algo=examples.a2c:A3C", "there is no class A3C in examples.a2c"),
        ("algo=examples/a2c.py:A2C", "there is no module 'examples/a2c.py'; did you mean 'examples.a2c'?"),
        ("algo=examples.own_loop:main", "there is no class main in examples.own_loop"),
        ("algo=dataclasses:Field", "dataclasses:Field is not a subclass of haepo_jax.algorithms.base.Algorithm"),
        ("algo=examples.a3c:A3C", "there is no module 'examples.a3c'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(["env=CartPole-v1", NAME, setting, "dry_run=true"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_its_help_shows_its_hyperparameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert train([NAME, "--help"]) == 0
    help_text = capsys.readouterr().out
    assert re.search(r"algo.num_steps +8 +steps per environment", help_text)
    assert "1: n-step returns, as published ([0, 1])" in help_text


def test_it_solves_the_bandit() -> None:
    bandit = hx.make_env("haepo/bandit", num_arms=4, num_pulls=2, noise_std=0.3)
    algo = A2C(bandit, total_steps=30_000, learning_rate=2e-2, hidden_sizes=(8,), log_points=1, eval_episodes=64)
    _, metrics = jax.jit(algo.train)(jax.random.key(0))
    assert float(metrics["eval_return"][-1]) > 0.9 * 2 * float(jnp.max(bandit.params.means))
