from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import haepo_jax as hx
from haepo_jax import train
from haepo_jax.training.completions import judge, say

TASK = hx.make_env("haepo/reverse", letters=2, length=2)


@pytest.mark.parametrize("network", ["gru", "transformer"])
def test_what_was_said_is_judged_as_it_was_said(network: str) -> None:
    algo = hx.EpisodicHAEPO(
        TASK, network=network, hidden_sizes=(8,), num_heads=2, num_envs=8, group_size=4, num_minibatches=1
    )

    @jax.jit
    def run(key: jax.Array) -> Any:
        state = algo.init(key)
        said = say(algo, state, 3, 4)
        return said, judge(algo, state, said)

    said, judged = run(jax.random.key(0))
    assert said.reward.shape == judged.shape == (3, 4)
    np.testing.assert_allclose(judged, said.log_likelihood, rtol=1e-5)
    assert np.unique(judged).size > 3


def test_a_run_writes_down_what_its_policy_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "env=haepo/reverse", "env_kwargs.letters=2", "env_kwargs.length=2", "algo.network=gru", "algo.hidden_sizes=[8]",
        "algo=haepo_episodic", "algo.num_envs=8", "algo.group_size=4", "algo.num_minibatches=1", "algo.num_epochs=1", "algo.log_points=4",
        "algo.eval_episodes=0", "final_eval_episodes=8", "completions=2", "num_seeds=2",
    ]  # fmt: skip
    assert train.main([*arguments, "total_steps=200", f"run_dir={run}"]) == 0
    before = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert b"completions/text_summary" in next(run.glob("events*")).read_bytes()
    assert train.main([f"run_dir={run}", "resume=true", "total_steps=400"]) == 0
    after = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    rows = len((run / "metrics.jsonl").read_text().splitlines())
    assert after[: len(before)] == before and len(after) > len(before)
    assert {line["row"] for line in after} <= set(range(1, rows))
    for start in range(0, len(after), 4):
        group = after[start : start + 4]
        assert len({(line["row"], line["prompt"]) for line in group}) == 1
        change = np.exp([line["log_likelihood_after"] - line["log_likelihood"] for line in group])
        np.testing.assert_allclose([line["weight"] for line in group], change / change.sum(), rtol=1e-5)
        for line in group:
            assert line["reward"] == float(line["prompt"][:-1] == line["completion"][::-1])
