"""`python -m haepo_jax.llm`, from a folder to a folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

pytest.importorskip("tunix", reason="needs the extra llm")

import safetensors.flax

from haepo_jax.llm import folder as folders
from haepo_jax.llm.__main__ import main
from haepo_jax.runner.checkpoints import Checkpoints
from haepo_jax.runner.run_dir import RunDir
from tests.llm import tiny_model

PROMPTS = ["The import statement", "A class is", "When a function", "Lists are", "An exception", "The value of"]
JUDGE = '''
import json, pathlib

def letters(prompts, completions):
    """The share of the letter e."""
    return [completion.count("e") / max(1, len(completion)) for completion in completions]

def late(prompts, completions, place):
    """Fails where told to, once a run has begun."""
    count = pathlib.Path("count")
    calls = int(count.read_text()) if count.exists() else 0
    count.write_text(str(calls + 1))
    if calls == 3:
        raise ZeroDivisionError("no luck\\nat all")
    return letters(prompts, completions)

def short(prompts, completions):
    return [float(len(completion) < 8) for completion in completions]

def picky(prompts, completions):
    if any("e" in completion for completion in completions):
        raise ValueError("no e, please")
    return [1.0 for _ in completions]

def few(prompts, completions): return [1.0]
def nan(prompts, completions): return [0.0] * (len(completions) - 1) + [float("nan")]
def huge(prompts, completions): return [0.0] * (len(completions) - 1) + [1e39]
def words(prompts, completions): return ["good" for _ in completions]
def raises(prompts, completions): raise KeyError("what")
def stops(prompts, completions): raise StopIteration
def exits(prompts, completions): raise SystemExit("no more")
'''


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    rows = [{"prompt": prompt, "place": place} for place, prompt in enumerate(PROMPTS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "judge.py").write_text(JUDGE)
    sys.modules.pop("judge", None)
    return tmp_path


def arguments(model: Path, **changes: Any) -> list[str]:
    settings = {
        "model": model, "data": "prompts.jsonl", "reward": "judge:letters", "run_dir": "run", "steps": 12,
        "prompts_per_step": 4, "group_size": 8, "max_new_tokens": 12, "learning_rate": 5e-3, "tensorboard": "false",
    }  # fmt: skip
    return [f"{key}={value}" for key, value in (settings | changes).items()]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def weights(path: Path) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = safetensors.flax.load_file(path / "model.safetensors")
    return found


@pytest.mark.parametrize(
    "algo", ["haepo", *(pytest.param(algo, marks=pytest.mark.slow) for algo in ("grpo", "gspo", "dpo"))]
)
def test_fine_tuning_raises_the_reward(files: Path, model_folder: Path, algo: str) -> None:
    """With the settings of a run on the command line; the folder that it writes loads as the first one did."""
    assert main(arguments(model_folder, algo=algo, tensorboard="true")) == 0
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["reward_last"] > 1.7 * summary["reward_first"] > 0
    curve = rows(files / "run" / "metrics.jsonl")
    assert [row["step"] for row in curve] == list(range(12))
    assert curve[-1]["kl"] > 0.01 and curve[-1]["grad_norm"] > 0
    if algo == "haepo":
        assert all(row["ess"] == pytest.approx(1, abs=1e-4) for row in curve), "one iteration: the weights are equal"
    completions = rows(files / "run" / "completions.jsonl")
    assert len(completions) == 12 * 4 * 8 and {row["prompt"] for row in completions} == set(PROMPTS)
    assert not any(tiny_model.END in row["completion"] for row in completions)
    assert np.mean([row["reward"] for row in completions[:32]]) == pytest.approx(curve[0]["reward"])
    assert len(list((files / "run").glob("events.out.tfevents.*"))) == 1
    written = folders.read_folder(str(files / "run" / "model"))
    model = folders.load_model(written, tiny_model.mesh())
    tokens = np.array([folders.load_tokenizer(written).encode(PROMPTS[0])])
    before = folders.load_model(folders.read_folder(str(model_folder)), tiny_model.mesh())
    assert abs(tiny_model.logits(model, tokens) - tiny_model.logits(before, tokens)).max() > 0.1


def test_a_killed_run_resumes_as_if_it_had_not_been(files: Path, model_folder: Path) -> None:
    """Three batches replayed, two updates on each, groups computed in two parts, LoRA and evaluation: every place that has
    something to keep."""
    shared = {
        "num_iterations": 2, "replay_batches": 3, "micro_batch": 2, "lora_rank": 2, "temperature": "auto", "steps": 4,
        "checkpoint_steps": 1, "eval_data": "prompts.jsonl", "eval_steps": 2,
    }  # fmt: skip
    assert main(arguments(model_folder, run_dir="whole", **shared)) == 0
    command = [sys.executable, "-m", "haepo_jax.llm", *arguments(model_folder, run_dir="killed", **shared)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while len(Checkpoints(files / "killed" / "checkpoints").all()) < 2 and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (files / "killed" / "model").exists()
    assert main(["run_dir=killed", "resume=true"]) == 0
    one, other = weights(files / "whole" / "model"), weights(files / "killed" / "model")
    assert any(bool((one[name] != tensor).any()) for name, tensor in weights(model_folder).items())
    for name, tensor in one.items():
        np.testing.assert_array_equal(tensor, other[name])
    for file in ("completions.jsonl", "eval.jsonl"):
        assert (files / "whole" / file).read_text() == (files / "killed" / file).read_text()
    assert [row["updates"] for row in rows(files / "killed" / "metrics.jsonl")] == [2, 4, 6, 6]


def test_rewards_are_summed_and_prompts_are_held_out(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = [{"prompt": "A module", "place": 0}, {"prompt": "The name", "place": 1}]
    (files / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out))
    settings = {"reward": "2*judge:letters+0.5*judge:short", "eval_data": "held_out.jsonl", "eval_steps": 2, "steps": 5}
    assert main(arguments(model_folder, **settings)) == 0
    for file in ("completions.jsonl", "eval.jsonl"):
        for row in rows(files / "run" / file):
            assert row["reward"] == pytest.approx(2 * row["judge:letters"] + 0.5 * row["judge:short"])
    evaluated = rows(files / "run" / "eval.jsonl")
    assert [row["step"] for row in evaluated] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert {row["prompt"] for row in evaluated} == {"A module", "The name"}
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["eval_last"] == pytest.approx(np.mean([row["reward"] for row in evaluated[-2:]]))
    out = capsys.readouterr().out
    assert "after 2 steps  held-out reward" in out and "tokens/s" in out and "left" in out


def test_pairs_are_learned_and_held_out_prompts_rewarded(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [{"prompt": prompt, "chosen": " eee", "rejected": " the"} for prompt in PROMPTS]
    (files / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    settings: dict[str, Any] = {"data": "", "pairs": "pairs.jsonl", "algo": "dpo", "eval_data": "prompts.jsonl"}
    assert main(arguments(model_folder, **settings, steps=6)) == 0
    out = capsys.readouterr().out
    assert "step 6/6  accuracy 1  loss " in out and "held out, greedily" in out and "mean reward" not in out
    assert main(["run_dir=run", "resume=true", "steps=12"]) == 0
    curve = rows(files / "run" / "metrics.jsonl")
    assert [row["step"] for row in curve] == list(range(12)) and "reward" not in curve[0]
    assert curve[0]["loss"] == pytest.approx(np.log(2), abs=1e-4) and curve[-1]["margin"] > 1
    summary = json.loads((files / "run" / "summary.json").read_text())
    assert summary["eval_last"] > summary["eval_first"] and "reward_last" not in summary
    assert not rows(files / "run" / "completions.jsonl")
    pairs[2]["rejected"] = " the" * 40
    (files / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert main(arguments(model_folder, **settings, run_dir="other")) == 2
    assert "line 3: rejected has" in capsys.readouterr().err


@pytest.mark.slow
def test_kept_batches_change_what_is_learned_and_not_what_is_sampled_first(files: Path, model_folder: Path) -> None:
    for count in (1, 2):
        assert main(arguments(model_folder, run_dir=f"run{count}", replay_batches=count, steps=3)) == 0
    one, other = (rows(files / f"run{count}" / "completions.jsonl") for count in (1, 2))
    texts = [[row["completion"] for row in found] for found in (one, other)]
    assert texts[0][:64] == texts[1][:64] and texts[0][64:] != texts[1][64:]
    metrics = rows(files / "run2" / "metrics.jsonl")
    assert [row["updates"] for row in metrics] == [1, 2, 2]
    assert metrics[0]["ess"] == pytest.approx(1, abs=1e-4) and metrics[2]["ess"] < 0.999


def test_a_run_can_be_extended_and_keeps_its_settings(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model_folder, steps=2)) == 0
    before = rows(files / "run" / "completions.jsonl")
    assert main(arguments(model_folder, steps=2)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert main(["run_dir=run", "resume=true"]) == 0
    assert "has ended" in capsys.readouterr().out
    assert main(["run_dir=run", "resume=true", "score=likelihood"]) == 2
    assert "a resumed run keeps its settings" in capsys.readouterr().err
    (files / "run" / "summary.json").unlink()  # killed between its last checkpoint and the end
    assert main(["run_dir=run", "resume=true"]) == 0 and (files / "run" / "summary.json").exists()
    assert main(["run_dir=run", "resume=true", "steps=4"]) == 0
    assert [row["step"] for row in rows(files / "run" / "metrics.jsonl")] == [0, 1, 2, 3]
    assert rows(files / "run" / "completions.jsonl")[: len(before)] == before


def test_a_damaged_checkpoint_is_passed_over(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model_folder, steps=2, checkpoint_steps=1)) == 0
    before = rows(files / "run" / "completions.jsonl")
    older, newest = Checkpoints(files / "run" / "checkpoints").all()
    (newest.path / "progress.json").write_text("")
    assert main(["run_dir=run", "resume=true"]) == 0
    assert "has changed since it was written; trying the one before" in capsys.readouterr().err
    assert rows(files / "run" / "completions.jsonl") == before, "the second step was made again"
    for checkpoint in Checkpoints(files / "run" / "checkpoints").all():
        (checkpoint.path / "progress.json").write_text("")
    assert main(["run_dir=run", "resume=true"]) == 1
    assert re.search(r"\nerror: none of the \d checkpoints in .* is intact\n$", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("few", "reward=judge:few in step 0: it returned 1 values for 32 completions"),
        ("nan", "in step 0: it returned nan for '"),
        ("huge", "in step 0: it returned 1e+39 for '"),
        ("words", "in step 0: it returned 'good' for '"),
        ("raises", "in step 0: it raised KeyError: 'what' for '"),
        ("stops", "in step 0: it raised StopIteration"),
        ("exits", "in step 0: it raised SystemExit: no more for '"),
        ("picky", "in step 0: it raised ValueError: no e, please for '"),
    ],
)
def test_a_reward_that_cannot_be_used_is_one_line(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str], function: str, message: str
) -> None:
    assert main(arguments(model_folder, reward=f"judge:{function}")) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not RunDir(files / "run").holds_run(), "nothing was trained, so nothing stands in the way of another try"


def test_a_reward_that_fails_later_loses_nothing(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model_folder, steps=5, reward="judge:late")) == 2
    error = capsys.readouterr().err
    assert (
        "in step 3: it raised ZeroDivisionError: no luck, for no completion alone; every step before it is saved, to resume: "
        in error
    )
    assert [row["step"] for row in rows(files / "run" / "metrics.jsonl")] == [0, 1, 2]
    assert main(["run_dir=run", "resume=true", "reward=judge:letters"]) == 0
    assert [row["step"] for row in rows(files / "run" / "metrics.jsonl")] == [0, 1, 2, 3, 4]


def test_a_run_that_diverges_says_so(files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(model_folder, learning_rate=1e30)) == 1
    assert "a lower learning_rate than 1e+30 may help" in capsys.readouterr().err
    assert not (files / "run" / "model").exists()


def test_a_signal_ends_a_run_after_a_checkpoint(files: Path, model_folder: Path) -> None:
    command = [sys.executable, "-m", "haepo_jax.llm", *arguments(model_folder, steps=10**6)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + 240
    metrics = files / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert run.poll() is None, run.communicate()[1]
        time.sleep(0.05)
    run.terminate()
    error = run.communicate(timeout=120)[1]
    assert run.returncode == 128 + signal.SIGTERM
    assert "python -m haepo_jax.llm run_dir=run resume=true" in error and "Traceback" not in error
    step = int(error.rsplit("ended after ", 1)[1].split()[0])
    checkpoint = Checkpoints(files / "run" / "checkpoints").newest()
    assert checkpoint is not None and checkpoint.progress()["step"] == step


def test_prompts_that_are_too_long_and_a_dry_run(
    files: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(model_folder, dry_run="true")) == 0
    assert "usable" in capsys.readouterr().out
    assert main(arguments(model_folder, max_new_tokens=250)) == 2
    assert "line 1: a prompt of" in capsys.readouterr().err
    (files / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "hello"}]}')
    assert main(arguments(model_folder)) == 2
    assert "line 1: the tokenizer's chat template refuses it" in capsys.readouterr().err
    assert not (files / "run").exists()
