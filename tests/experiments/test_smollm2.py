"""The experiment on SmolLM2: its tasks, that every run's settings can be used, and what is reported of results."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from haepo_jax.llm.settings import LLMConfig, load_rewards, read_data
from haepo_jax.runner.config.arguments import compose, read_arguments

FOLDER = Path(__file__).parents[2] / "experiments" / "smollm2"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in ("tasks", "run", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: importlib.import_module(name) for name in ("tasks", "run", "report")}


def test_the_tasks_hold_out_prompts_and_judge(scripts: dict[str, Any], tmp_path: Path) -> None:
    tasks = scripts["tasks"]
    tasks.write(tmp_path)
    for task in tasks.TASKS:
        train, held_out = (read_data(str(tmp_path / f"{task}{end}.jsonl")) for end in ("", "_held_out"))
        assert len(held_out) == 64 and not {p.prompt for p in train} & {p.prompt for p in held_out}
        (reward,) = load_rewards(scripts["run"].REWARDS[task], train)
        assert reward.columns == ["answer"]
    for row in read_data(str(tmp_path / "sums_pairs.jsonl"), "pairs"):
        texts = [row.columns["chosen"], row.columns["rejected"]]
        assert tasks.right_sum(["", ""], texts, [row.columns["answer"]] * 2) == [1.0, 0.0]
    assert tasks.right_sum([""] * 3, ["25\n2", " 2 5", ""], ["25"] * 3) == [1.0, 0.0, 0.0]
    right = {"name": "Ada", "town": "Rome", "age": 36}
    texts = [json.dumps(right), f"{json.dumps(right)}\nmore", '{"name": "Ada"}', '{"who": "Ada"}', "[1]", "{oh"]
    assert tasks.right_json(texts, texts, [right] * 6) == pytest.approx([1, 1, 0.2 + 0.8 / 3, 0.2, 0, 0])


def point(step: int, reward: float) -> dict[str, Any]:
    return {
        "step": step, "reward": reward, "solved": reward, "tokens": 100 * step, "seconds": 9.0 * step, "kl": 0.1 * step,
        "entropy": 1.0, "distinct": 0.5,
    }  # fmt: skip


def test_every_run_can_be_run_and_is_reported(
    scripts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan from its first run to its last, with results made up as it asks for them."""
    run, report = scripts["run"], scripts["report"]
    monkeypatch.setattr(run, "RESULTS", tmp_path)
    names = []
    for (task, method), seed in itertools.product(run.KINDS.values(), run.SEEDS):
        job = run.Job(task, method, seed)
        arguments = ["model=m", *job.data(tmp_path), "run_dir=r", *job.arguments()]
        config = compose(read_arguments(arguments).overrides, LLMConfig)
        assert config.replay_batches * config.num_iterations == (4 if "_4" in method or "_replay" in method else 1)
        assert config.learning_rate == {"_2e-5": 2e-5, "_lora": 2e-4}.get(method[-5:], 1e-5)
        names.append(job.name)
        points = [point(0, 0.1), point(12, 0.9), point(24, 0.95)]
        texts = {kind: [{"completion": "25", "reward": 1.0}] for kind in ("worst", "best")}
        result = {**job._asdict(), "eval": points, "completions": texts}
        (tmp_path / f"{job.name}.json").write_text(json.dumps(result))
    assert len(names) == len(set(names)) == 66 * 3
    results = report.read(tmp_path)
    assert len(results) == 66 and all(len(runs) == 3 for runs in results.values())
    measured = json.loads(report.SPEED.read_text())
    for sides in measured["tasks"].values():
        for name, seconds in (("haepo_jax", 2), ("haepo_jax, 4 updates", 5), ("haepo_jax, 4 batches", 7)):
            sides[name] = {**sides["haepo_jax"], "seconds": {"steps": seconds}}
    monkeypatch.setattr(report, "SPEED", tmp_path / "speed" / "speed.json")
    report.SPEED.parent.mkdir()
    report.SPEED.write_text(json.dumps(measured))
    text = report.report(results)
    assert text.count("| 0.925 | 0.950 (0.950 to 0.950) | 1,200 (3 of 3) |") == 66 and '`"25"`' in text
    rows = {line.split(" | ")[0]: line.split(" | ")[6] for line in text.splitlines() if "1,200 (3 of 3)" in line}
    seconds = {"| grpo": "24", "| grpo_2e-5": "24", "| gspo_4": "60", "| haepo_replay_2e-5": "84"}
    assert rows == rows | seconds | {"| haepo_replay_lora": "", "| dpo_pairs": ""}  # twelve steps each
    report.draw(results, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_page_is_made_of_the_stored_results(scripts: dict[str, Any]) -> None:
    report = scripts["report"]
    assert report.report(report.read()) == report.REPORT.read_text(encoding="utf-8")
