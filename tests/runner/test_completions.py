"""What a policy says in a token task."""

from __future__ import annotations

import json
from pathlib import Path

from haepo_jax.runner.commands import train


def test_a_run_writes_down_what_its_policy_says(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [
        "env=haepo/reverse", "env_kwargs.letters=2", "env_kwargs.length=2", "algo.network=gru", "algo.hidden_sizes=[8]",
        "algo=haepo_episodic", "algo.num_envs=8", "algo.group_size=4", "algo.num_minibatches=1", "algo.num_epochs=1", "algo.log_points=4",
        "algo.eval_episodes=0", "final_eval_episodes=8", "completions=2", "num_seeds=2",
    ]  # fmt: skip
    assert train.main([*arguments, "total_steps=200", f"run_dir={run}"]) == 0
    before = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    assert train.main([f"run_dir={run}", "resume=true", "total_steps=400"]) == 0
    after = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    rows = len((run / "metrics.jsonl").read_text().splitlines())
    assert after[: len(before)] == before and len(after) > len(before)
    assert {line["row"] for line in after} == set(range(rows))
    for start in range(0, len(after), 4):
        group = after[start : start + 4]
        assert len({(line["row"], line["prompt"]) for line in group}) == 1
        for line in group:
            assert line["reward"] == float(line["prompt"][:-1] == line["completion"][::-1])
