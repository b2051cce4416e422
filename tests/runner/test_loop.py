"""The loop around an algorithm: rows, seeds, exact counts, what observers see."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from haepo_jax.runner import devices, loop
from haepo_jax.runner.commands import train
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.loop import run
from haepo_jax.runner.observers import Observer, Row, RunInfo
from haepo_jax.runner.program import EvaluationSize, Program, build
from haepo_jax.runner.run_dir import RunDir
from tests.runner.counting_algorithm import Counting


def settings(*arguments: str) -> RunConfig:
    return compose(read_arguments(["env=CartPole-v1", "final_eval_episodes=3", *arguments]).overrides, RunConfig)


class Recorder(Observer):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rows: list[Row] = []
        self.slices: list[list[int]] = []
        self.info: RunInfo | None = None

    def on_start(self, info: RunInfo) -> None:
        self.calls.append("start")
        self.info = info

    def on_compiled(self, seconds: float) -> None:
        self.calls.append("compiled")

    def on_slice(self, state: Any, env_steps: list[int]) -> None:
        self.slices.append(env_steps)

    def on_row(self, row: Row, state: Any) -> None:
        self.rows.append(row)

    def on_end(self, summary: dict[str, Any]) -> None:
        self.calls.append("end")

    def close(self) -> None:
        self.calls.append("close")


def run_counting(
    monkeypatch: pytest.MonkeyPatch, algorithm: Counting, *arguments: str
) -> tuple[dict[str, Any], Recorder]:
    monkeypatch.setattr("haepo_jax.runner.loop.build", lambda config: algorithm)
    recorder = Recorder()
    summary, _ = run(settings(*arguments), Path("nowhere"), [recorder])
    return summary, recorder


def test_rows_stand_at_evenly_spaced_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=202))
    # Points 41, 81, 122, 162, 202; updates end at multiples of 10.
    assert [row.env_steps for row in recorder.rows] == [[50], [90], [130], [170], [210]]
    assert [row.update for row in recorder.rows] == [[5], [9], [13], [17], [21]]
    assert [row.metrics["loss"] for row in recorder.rows] == [[5.0], [9.0], [13.0], [17.0], [21.0]]
    assert [row.metrics["eval_return"] for row in recorder.rows] == [[50.0], [90.0], [130.0], [170.0], [210.0]]
    assert [row.index for row in recorder.rows] == [0, 1, 2, 3, 4]
    assert summary["env_steps"] == 210 and summary["updates"] == 21
    assert summary["final_return_mean"] == 210.0 and summary["final_return_greedy_mean"] == 210.5
    assert recorder.calls == ["start", "compiled", "end", "close"]


def test_an_update_past_several_points_makes_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorder = run_counting(monkeypatch, Counting(total_steps=100, log_points=50, stride=30))
    assert [row.env_steps for row in recorder.rows] == [[30], [60], [90], [120]]


def test_every_row_is_another_update_with_several_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=100, log_points=10), "num_seeds=4")
    strides = np.arange(10, 14)
    for row in recorder.rows:
        assert row.env_steps == (np.array(row.update) * strides).tolist()
        # A seed that made no update keeps the metrics of the last one it made.
        assert row.metrics["loss"] == [float(update) for update in row.update]
    totals = [sum(row.env_steps) for row in recorder.rows]
    assert totals == sorted(set(totals))
    assert summary["env_steps_per_seed"] == [100, 110, 108, 104]
    assert summary["updates_per_seed"] == [10, 10, 9, 8] and summary["updates"] == 10
    assert summary["final_return_per_seed"] == [100.0, 110.0, 108.0, 104.0]
    assert summary["seeds"] == [0, 1, 2, 3]


def test_a_seed_runs_alone_as_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    together, _ = run_counting(monkeypatch, Counting(total_steps=100), "num_seeds=3")
    alone, _ = run_counting(monkeypatch, Counting(total_steps=100), "seed=2")
    assert alone["env_steps_per_seed"] == together["env_steps_per_seed"][2:]
    assert alone["final_return_per_seed"] == together["final_return_per_seed"][2:]
    many = Program(Counting(total_steps=1), seeds=[5, 6], final=EvaluationSize(1)).init()
    one = Program(Counting(total_steps=1), seeds=[6], final=EvaluationSize(1)).init()
    assert (jax.random.key_data(many.key)[1] == jax.random.key_data(one.key)).all()
    assert (jax.random.key_data(one.key) == jax.random.key_data(jax.random.key(6))).all()


def test_steps_are_exact_past_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    start = 2**33 + 1
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=start + 25, log_points=2**30, start=start))
    assert [row.env_steps for row in recorder.rows] == [[start + 10], [start + 20], [start + 30]]
    assert summary["env_steps"] == start + 30 and type(summary["env_steps"]) is int


def test_slicing_changes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = run_counting(monkeypatch, Counting(total_steps=1000), "num_seeds=2")
    monkeypatch.setattr(loop, "SLICE_SECONDS", 0.0)
    _, sliced = run_counting(monkeypatch, Counting(total_steps=1000), "num_seeds=2")
    assert len(sliced.slices) > len(whole.slices)
    for left, right in zip(whole.rows, sliced.rows, strict=True):
        assert (left.update, left.env_steps, left.metrics) == (right.update, right.env_steps, right.metrics)


def test_a_seed_that_diverges_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=100, sick=(1,)), "num_seeds=3")
    assert summary["env_steps_per_seed"] == [100, 44, 108]
    assert summary["diverged"] == [{"seed": 1, "update": 4, "not_finite": ["the loss", "the gradients"]}]
    assert recorder.rows[-1].update == [10, 4, 9] and recorder.rows[-1].metrics["loss"] == [10.0, 4.0, 9.0]


@pytest.mark.parametrize("points", [1, 5, 10, 50])
def test_a_run_whose_seeds_all_diverge_ends(monkeypatch: pytest.MonkeyPatch, points: int) -> None:
    algorithm = Counting(total_steps=100, sick=(0, 1), log_points=points)
    summary, recorder = run_counting(monkeypatch, algorithm, "num_seeds=2")
    assert [sick["seed"] for sick in summary["diverged"]] == [0, 1]
    assert recorder.rows[-1].env_steps == summary["env_steps_per_seed"] == [40, 44]
    assert len({sum(row.env_steps) for row in recorder.rows}) == len(recorder.rows)
    assert recorder.calls[-2:] == ["end", "close"]


def test_a_run_whose_seeds_all_diverge_fails_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("haepo_jax.runner.loop.build", lambda config: Counting(total_steps=100, sick=(0,)))
    assert train.main(["env=CartPole-v1", f"run_dir={tmp_path}/run"]) == 1
    captured = capsys.readouterr()
    assert (
        captured.err.startswith("error: diverged in update 4: not finite: the loss and the gradients")
        and captured.err.count("\n") == 1
    )
    assert RunDir(tmp_path / "run").read_summary()["diverged"][0]["update"] == 4
    assert train.main([f"run_dir={tmp_path}/run", "resume=auto"]) == 1, "it has ended, but not well"
    assert capsys.readouterr().err == captured.err


def test_no_evaluation_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=50, eval_episodes=0))
    assert all("eval_return" not in row.metrics for row in recorder.rows)
    assert summary["final_return_mean"] == 50.0


def test_a_missing_return_is_not_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _, recorder = run_counting(monkeypatch, Counting(total_steps=20))
    assert math.isnan(recorder.rows[0].mean("episode_return"))
    assert recorder.rows[1].mean("episode_return") == 1.0


def test_times_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    summary, recorder = run_counting(monkeypatch, Counting(total_steps=5000))
    assert summary["compile_seconds"] > 0
    assert summary["train_seconds"] + summary["eval_seconds"] <= summary["run_seconds"]
    assert summary["compile_seconds"] + summary["run_seconds"] <= summary["wall_seconds"]
    assert summary["eval_share"] == pytest.approx(summary["eval_seconds"] / summary["run_seconds"])
    assert summary["env_steps_per_second"] == pytest.approx(5000 / summary["run_seconds"])
    walls = [row.wall_seconds for row in recorder.rows]
    assert walls == sorted(walls) and walls[-1] <= summary["run_seconds"]


def test_observers_are_closed_when_a_run_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Observer):
        def on_slice(self, state: Any, env_steps: list[int]) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr("haepo_jax.runner.loop.build", lambda config: Counting(total_steps=100))
    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        run(settings(), Path("nowhere"), [recorder, Stop()])
    assert recorder.calls == ["start", "compiled", "close"]


def test_environment_settings_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^cannot set up haepo on CartPole-v1 .*gravty") as refusal:
        build(settings("env_kwargs.gravty=1"))
    assert "\n" not in str(refusal.value)


def test_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jax.devices()[0].platform in devices.describe_device()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices("cpu")[:1])
    assert devices.describe_device() == "cpu"


def test_a_platform_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise AssertionError  # what jax does without the platform's plugin

    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        ConfigError, match=r"^JAX_PLATFORMS=cuda: jax finds no device to run on: this platform is missing"
    ):
        devices.describe_device()
