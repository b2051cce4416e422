"""What `python -m haepo_jax.llm` refuses before it needs Tunix: these tests run without it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from haepo_jax import llm
from haepo_jax.llm import __main__ as command
from haepo_jax.llm import settings
from haepo_jax.runner.config import ConfigError, RunConfig
from haepo_jax.runner.config.arguments import compose, read_arguments

GOOD = '{"prompt": "one and one", "answer": "two"}\n'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "prompts.jsonl").write_text(GOOD)
    (tmp_path / "held_out.jsonl").write_text(GOOD.replace("answer", "solution"))
    (tmp_path / "judge.py").write_text(
        "constant = 1\n"
        "def right(prompts, completions, answer):\n    return [1.0 for _ in completions]\n"
        "def any_column(prompts, completions, **columns):\n    return [1.0 for _ in completions]\n"
        "def unknown(prompts, completions, colour):\n    return [1.0 for _ in completions]\n"
    )
    (tmp_path / "broken.py").write_text("raise OSError('no judge\\ntoday')\n")
    sys.modules.pop("judge", None)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err


ARGUMENTS = ["model=m", "data=prompts.jsonl", "reward=judge:right", "run_dir=r"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["data=''"], "data= or pairs= is missing"),
        (["algo=ppo"], "algo='ppo' must be one of haepo, grpo, gspo, dpo"),
        (["scores=likelihood"], "unknown key 'scores'; did you mean 'score'?"),
        (["group_size=1"], "group_size=1 is out of range"),
        (["prompts_per_step=6", "micro_batch=4"], "prompts_per_step=6 is not a multiple of micro_batch=4"),
        (["eval_data=nowhere.jsonl"], "eval_data='nowhere.jsonl' cannot be read: No such file or directory"),
        (["reward=judge:right+x*judge:any_column"], "the weight 'x' must be a number"),
        (["reward=judge:right+0.5*judge:right"], "names judge:right twice"),
        (["reward=judge:right+judge:unknown"], "reward='judge:unknown' must take (prompts, completions) and columns"),
        (["data=nowhere.jsonl"], "data='nowhere.jsonl' cannot be read: No such file or directory"),
        (["reward=judge"], "reward='judge' must be module:function"),
        (["reward=nowhere:f"], "reward='nowhere:f' cannot be imported: ModuleNotFoundError"),
        (["reward=broken:f"], "reward='broken:f' cannot be imported: OSError: no judge"),
        (["reward=judge:constant"], "module 'judge' has no function 'constant'"),
        (
            ["reward=builtins:type"],
            "must take (prompts, completions) and columns of data='prompts.jsonl': no signature",
        ),
        (
            ["eval_data=held_out.jsonl"],
            "must take (prompts, completions) and columns of eval_data='held_out.jsonl': missing",
        ),
        (["reward=judge:unknown"], "must take (prompts, completions) and columns of data='prompts.jsonl'"),
        (["resume=true"], "run_dir='r' holds no run: there is nothing to resume"),
    ],
)
def test_unusable_settings_are_one_line(
    files: Path, capsys: pytest.CaptureFixture[str], changes: list[str], message: str
) -> None:
    assert message in refusal(capsys, *ARGUMENTS, *changes)
    assert not (files / "r").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: there is no prompt in it"),
        ("\n \n", "is empty: there is no prompt in it"),
        (GOOD + "{oh", "line 2 is not JSON"),
        (GOOD + '{"prompt": ""}', 'line 2: \'{"prompt": ""}\' has no prompt'),
        (GOOD + '{"prompt": "half a character: \\ud83d"}', "line 2 is not JSON: 'utf-8' codec can't encode"),
        ('{"prompts": "a"}', 'line 1: \'{"prompts": "a"}\' has no prompt'),
        ('["a"]', "has no prompt"),
        ('{"prompt": [{"role": "user"}]}', "has no prompt"),
    ],
)
def test_unusable_data_names_its_line(files: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (files / "prompts.jsonl").write_text(text)
    assert message in refusal(capsys, *ARGUMENTS)


def test_pairs_take_the_place_of_data(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (files / "pairs.jsonl").write_text(json.dumps(pair) + "\n\n" + json.dumps(pair | {"rejected": 3}) + "\n")
    assert "leave out data=" in refusal(capsys, *ARGUMENTS, "pairs=pairs.jsonl")
    alone = ["model=m", "run_dir=r", "pairs=pairs.jsonl"]
    assert "leave out data=" in refusal(capsys, *alone, "data=pairs.jsonl")
    for unused in ("replay_batches=2", "reward=judge:right"):
        assert "leave out data=, replay_batches= and, without eval_data=, reward=" in refusal(capsys, *alone, unused)
    assert "reward= is missing" in refusal(capsys, *alone, "eval_data=prompts.jsonl")
    assert "pairs='pairs.jsonl', line 3: it has no text \"rejected\"" in refusal(capsys, *alone)
    (files / "pairs.jsonl").write_text(json.dumps(pair))
    (row,) = settings.read_data("pairs.jsonl", "pairs")
    assert row.columns == {"chosen": "b", "rejected": "c"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("algo", "reinforce", "algo='reinforce' must be one of haepo, grpo, gspo, dpo"),
        ("score", "log_likelihood", "score='log_likelihood' must be one of"),
        ("group_size", 1, "group_size=1 is out of range"),
        ("micro_batch", 3, "prompts_per_step=8 is not a multiple of micro_batch=3"),
    ],
)
def test_the_settings_of_a_learner_in_python_are_checked_too(name: str, value: Any, message: str) -> None:
    """An unknown loss or score would be taken for the last one of a list of cases."""
    with pytest.raises(ConfigError, match=message):
        settings.LearnerConfig(**{name: value})


def test_algo_is_a_setting_here_and_a_group_of_them_in_training() -> None:
    """Hydra's groups belong to the process: those of one command must not be seen by another."""
    trained = compose(read_arguments(["env=CartPole-v1", "algo=grpo"]).overrides, RunConfig)
    tuned = compose(read_arguments([*ARGUMENTS, "algo=grpo"]).overrides, settings.LLMConfig)
    assert trained.algo.name == tuned.algo == "grpo"


def test_a_run_on_pairs_is_resumed_whatever_group_size_it_was_begun_with(files: Path) -> None:
    (files / "r").mkdir()
    saved = settings.LLMConfig(model="m", pairs="p.jsonl", run_dir="r", group_size=2)
    (files / "r" / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(saved)))
    again = ["model=m", "pairs=p.jsonl", "run_dir=r", "group_size=4", "resume=auto"]
    config, directory = command._compose(read_arguments(again).overrides)
    assert directory is not None and config.group_size == 2


def test_data_and_the_columns_that_a_reward_takes(files: Path) -> None:
    chat = '{"prompt": [{"role": "user", "content": "hello"}], "colour": 3}\n'
    (files / "prompts.jsonl").write_text("\ufeff" + GOOD + "\n" + chat)  # as some editors begin a file
    data = settings.read_data("prompts.jsonl")
    assert [prompt.columns for prompt in data] == [{"answer": "two"}, {"colour": 3}]
    assert data[1].where == "data='prompts.jsonl', line 3"
    one, other = settings.load_rewards("2*judge:right + judge:any_column", data)
    assert (one.weight, one.columns, other.weight, other.columns) == (2.0, ["answer"], 1.0, ["answer", "colour"])


def test_without_tunix_one_line_says_what_to_install(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "has_tunix", lambda: False)
    assert "pip install 'haepo-jax[llm]'" in refusal(capsys, *ARGUMENTS)
    monkeypatch.setattr(llm, "has_tunix", lambda: False)
    with pytest.raises(ImportError, match="pip install"):
        llm.Learner  # noqa: B018


def test_help_and_settings_are_shown_without_tunix_or_jax(files: Path) -> None:
    code = (
        "import sys; from haepo_jax.llm.__main__ import main\n"
        "assert main(['--help']) == 0\n"
        f"assert main({[*ARGUMENTS, '--cfg', 'job']}) == 0\n"
        "assert not {'jax', 'tunix', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "sampling_temperature" in done.stdout and "reward: judge:right" in done.stdout


def test_reading_errors_are_those_of_settings() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        settings.read_data("a\0b")
