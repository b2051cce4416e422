"""How much a run evaluates, that it can be stopped meanwhile, and that it says so."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax.envs import Box, Discrete, TimeStep
from haepo_jax.runner.errors import Interrupted
from haepo_jax.runner.loop import run
from haepo_jax.runner.observers import Observer
from haepo_jax.runner.program import EvaluationSize, Program, final_size, row_size
from haepo_jax.runner.signals import StopSignals, interruptibly
from tests.runner.counting_algorithm import Counting, Horizon
from tests.runner.test_loop import Recorder, run_counting, settings


@dataclasses.dataclass(frozen=True)
class Endless:
    """Never ends by itself; its limit is out of reach."""

    name = "endless"
    horizon = 10**8
    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key: jax.Array, state: Any, action: Any) -> TimeStep:
        return TimeStep(state + 1, jnp.zeros(1), jnp.float32(1), False, state == self.horizon - 1)


def sized(horizon: int, **settings: Any) -> Any:
    values = {"total_steps": 500_000, "log_points": 50, "eval_episodes": 16} | settings
    return Counting(env=Horizon(horizon), **values)


@pytest.mark.parametrize("horizon", [1, 7, 200, 500, 1000, 10**8])
@pytest.mark.parametrize("total", [1, 50, 3000, 20_000, 500_000, 10**9])
def test_no_evaluation_is_larger_than_the_training(horizon: int, total: int) -> None:
    algorithm = sized(horizon, total_steps=total)
    for size in (row_size(algorithm), final_size(None, algorithm)):
        steps = min(horizon, size.max_steps or horizon)
        assert size.episodes >= 1 and (2 * size.episodes * steps <= total or size.episodes * steps == 1)


def test_sizes_of_ordinary_runs() -> None:
    assert row_size(sized(200)) == EvaluationSize(16)  # Pendulum
    assert row_size(sized(500)) == EvaluationSize(10)  # CartPole: 50 rows of 2 x 10 episodes of 500 steps
    assert row_size(sized(500, total_steps=20_000)) == EvaluationSize(4)
    assert row_size(sized(1000, total_steps=3000)) == EvaluationSize(1)
    assert row_size(sized(1000, eval_episodes=0)) == EvaluationSize(0)
    assert final_size(None, sized(1000)) == EvaluationSize(128)
    assert final_size(None, sized(10**8)) == EvaluationSize(1, 250_000)
    assert final_size(7, sized(10**8)) == EvaluationSize(7) and final_size(0, sized(10)) == EvaluationSize(0)


def test_an_environment_without_an_end_is_not_evaluated_for_ever(capsys: pytest.CaptureFixture[str]) -> None:
    algo = hx.PPO(
        Endless(),
        total_steps=64,
        num_envs=4,
        num_steps=4,
        num_minibatches=1,
        num_epochs=1,
        hidden_sizes=(4,),
        log_points=4,
    )
    result = hx.train(algo)
    assert result.summary["final_eval_episodes"] == 1 and result.summary["final_eval_max_steps"] == 32
    assert result.summary["final_return_mean"] == result.summary["final_length_mean"] == 32
    # The first evaluation plays 2 x 32 steps: the next ones wait until the training has done as many.
    assert np.isfinite(result.metrics["eval_return"][0]).tolist() == [True, False, False, True]
    assert "over 1 episode of at most 32 steps" in capsys.readouterr().out


def test_no_final_evaluation_where_none_is_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("haepo_jax.runner.scripting.Algorithm", Counting)
    result = hx.train(Counting(total_steps=50), seeds=2, final_eval_episodes=0)
    assert result.summary["final_eval_episodes"] == 0 and np.isnan(result.summary["final_return_mean"])
    assert "final return" not in capsys.readouterr().out


def test_waiting_for_the_device_is_given_up_at_once() -> None:
    begin = time.perf_counter()

    def poll() -> None:
        raise Interrupted(2, "stop")

    with pytest.raises(Interrupted):
        interruptibly(lambda: time.sleep(3), poll)
    assert time.perf_counter() - begin < 2
    assert interruptibly(lambda: 5, poll) == 5
    with pytest.raises(TimeoutError, match="its own"):
        interruptibly(lambda: (_ for _ in ()).throw(TimeoutError("its own")), lambda: None)


@pytest.mark.parametrize("what", ["evaluate", "final_evaluation"])
def test_a_signal_during_an_evaluation_ends_the_run(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """And it is announced."""
    evaluation, waiting, told = getattr(Program, what), [], []

    def slow(self: Program, state: Any) -> Any:
        waiting.append(True)
        time.sleep(2)
        return evaluation(self, state)

    class Watch(Observer):
        def on_evaluation(self, final: bool) -> None:
            if final == (what == "final_evaluation"):
                told.append(final)

    monkeypatch.setattr(Program, what, slow)
    monkeypatch.setattr("haepo_jax.runner.loop.build", lambda config: Counting(total_steps=20))
    begin: list[float] = []

    class Stop(StopSignals):
        def __call__(self) -> int | None:
            if told and not begin:
                begin.append(time.perf_counter())
            return 2 if told else None

    with pytest.raises(Interrupted, match="interrupted at"):
        run(settings(), Path("nowhere"), [Watch()], stop=Stop(lambda: None))
    assert time.perf_counter() - begin[0] < 1.5 and waiting == [True]
    assert told == [what == "final_evaluation"]


def test_a_run_without_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = run_counting(monkeypatch, Counting(total_steps=30), "num_seeds=2")[1]
    jax.config.update("jax_disable_jit", True)
    try:
        eager: Recorder = run_counting(monkeypatch, Counting(total_steps=30))[1]
    finally:
        jax.config.update("jax_disable_jit", False)
    assert [row.env_steps[0] for row in eager.rows] == [row.env_steps[0] for row in compiled.rows]
