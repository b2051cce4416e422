"""The settings of `python -m haepo_jax.llm`, its data and its reward functions, checked without importing Tunix or jax."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haepo_jax.algorithms.fields import COUNT, NOT_NEGATIVE, POSITIVE, Range, leaf
from haepo_jax.messages import first_line, one_line, short
from haepo_jax.runner.config import SEEDS, ConfigError, setting
from haepo_jax.runner.config.values import checked_value

PAIR = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """The hyperparameters of a `Learner`; raises ConfigError for one that cannot be used."""

    algo: str = setting("haepo", str, "the loss", choices=("haepo", "grpo", "gspo", "dpo"))
    seed: int = setting(0, int, "seed of prompt order, sampling and LoRA's initial values", within=SEEDS)
    prompts_per_step: int = setting(8, int, "prompts per batch", within=COUNT)
    group_size: int = setting(8, int, "completions per prompt", within=Range(2, 2**31 - 1))
    num_iterations: int = setting(
        1, int, "updates per step on each batch; in the first, score=log_ratio weights all equally", within=COUNT
    )
    micro_batch: int | None = setting(None, int, "prompts computed at once, to save memory; null: all", within=COUNT)
    max_new_tokens: int = setting(256, int, "maximum tokens of a completion", within=COUNT)
    sampling_temperature: float = leaf(1.0, "temperature at which tokens are sampled", within=POSITIVE)
    learning_rate: float = leaf(1e-6, "learning rate of Adam", within=NOT_NEGATIVE)
    max_grad_norm: float = leaf(1.0, "maximum global norm of the gradients", within=POSITIVE)
    kl_coef: float = leaf(
        0.04, "haepo, grpo, gspo: weight of the KL penalty to the initial model; 0: none", within=NOT_NEGATIVE
    )
    score: str = setting(
        "log_ratio", str, "haepo: score in the softmax over a group, a sum over tokens or (mean_) their mean",
        choices=("log_ratio", "mean_log_ratio", "likelihood", "mean_likelihood")
    )  # fmt: skip
    temperature: Any = leaf(
        1.0, "haepo: temperature of it; 'auto' raises it before the weights collapse", within=POSITIVE, word="auto"
    )
    normalize: str = setting(
        "standardize", str, "haepo: how rewards are normalised within their group",
        choices=("standardize", "center", "rank", "none")
    )  # fmt: skip
    entropy_coef: float = leaf(0.0, "weight of the entropy bonus, a mean over tokens", within=NOT_NEGATIVE)
    clip_eps: float = leaf(0.2, "grpo, gspo: clip range of the ratio; for gspo choose about 0.02", within=NOT_NEGATIVE)
    beta: float = leaf(0.1, "dpo: strength of the implicit KL constraint to the initial model", within=POSITIVE)
    lora_rank: int | None = setting(None, int, "rank of LoRA adapters (scale 1); null: train all weights", within=COUNT)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(LearnerConfig):
            checked_value(field.name, field, getattr(self, field.name))
        if self.prompts_per_step % (self.micro_batch or 1):
            prompts = f"prompts_per_step={self.prompts_per_step}"
            raise ConfigError(f"{prompts} is not a multiple of micro_batch={self.micro_batch}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run has beside them: its files, its length, and what it keeps."""

    model: str = setting("", str, "a folder in Hugging Face format: Qwen 2, Qwen 3 or a Llama (required)")
    data: str = setting(
        "", str, 'JSON lines, each {"prompt": text or a list of chat messages, ...columns for the reward}'
    )
    pairs: str = setting(
        "", str, 'pairs, in place of data: JSON lines, each {"prompt": ..., "chosen": text, "rejected": text}'
    )
    reward: str = setting(
        "", str, "reward of data and eval_data: module:function, or a sum such as 'rewards:right + 0.1*rewards:short'"
    )
    eval_data: str = setting("", str, "held-out prompts, as in data, whose greedy completions are evaluated")
    eval_steps: int = setting(10, int, "steps between evaluations", within=COUNT)
    run_dir: str = setting("", str, "directory for the results; the fine-tuned folder is <run_dir>/model (required)")
    resume: str = setting(
        "false", str, "resume the run in run_dir from its newest checkpoint; auto: or start one",
        choices=("false", "true", "auto")
    )  # fmt: skip
    steps: int = setting(100, int, "training steps: each samples one batch and learns from it", within=COUNT)
    replay_batches: int = setting(1, int, "size of the replay buffer in batches, including the newest", within=COUNT)
    dtype: str = setting("float32", str, "dtype of weights and computation", choices=("float32", "bfloat16"))
    checkpoint_steps: int = setting(10, int, "steps between checkpoints", within=COUNT)
    keep_checkpoints: int = setting(3, int, "number of most recent checkpoints kept", within=COUNT)
    tensorboard: bool = setting(True, bool, "write TensorBoard events")
    dry_run: bool = setting(False, bool, "check everything but the values of rewards, then exit without training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LLMConfig(LearnerConfig, RunSettings):
    """The settings of one fine-tuning run; help lists those of `RunSettings` first."""

    def check(self) -> None:
        """Raises ConfigError where settings do not go together."""
        if self.pairs and (self.data or self.replay_batches > 1 or (self.reward and not self.eval_data)):
            raise ConfigError("with pairs= leave out data=, replay_batches= and, without eval_data=, reward=")
        needed = {"model": True, "data": not self.pairs, "reward": self.data or self.eval_data, "run_dir": True}
        for key, is_needed in needed.items():
            if is_needed and not getattr(self, key):
                raise ConfigError(f"{'data= or pairs' if key == 'data' else key}= is missing (see --help)")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One line of the data: where it stands, the prompt (a text or chat messages) and the other columns."""

    where: str
    prompt: Any
    columns: dict[str, Any]


def read_data(name: str, key: str = "data") -> list[Prompt]:
    """The prompts of the file of JSON lines that the setting `key` names, those of `pairs` with a chosen and a rejected
    completion; raises ConfigError, which names the line."""
    try:
        lines = Path(name).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{key}={short(name)} cannot be read: {one_line(str(reason), 200)}") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{key}={short(name)}, line {number}"
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # fails on half a character, such as "\ud83d"
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {one_line(str(error), 120)}") from None
        prompt = row.pop("prompt", None) if isinstance(row, dict) else None
        turns = prompt if isinstance(prompt, list) else []
        chat = all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
        if not prompt or not isinstance(prompt, str | list) or not chat:
            raise ConfigError(
                f'{where}: {short(line)} has no prompt; a line is {{"prompt": "...", ...}}, the prompt a text or a '
                'list of {"role": ..., "content": ...}'
            )
        for column in PAIR if key == "pairs" else ():
            if not isinstance(row.get(column), str) or not row[column]:
                raise ConfigError(f'{where}: it has no text "{column}"')
        prompts.append(Prompt(where, prompt, row))
    if not prompts:
        raise ConfigError(f"{key}={short(name)} is empty: there is no prompt in it")
    return prompts


@dataclasses.dataclass(frozen=True)
class Reward:
    """One of the user's reward functions, with its weight and the columns of the data that it takes."""

    name: str
    weight: float
    function: Callable[..., Sequence[float]]
    columns: list[str]

    def __call__(
        self, texts: Sequence[str], completions: Sequence[str], prompts: Sequence[Prompt], step: int
    ) -> np.ndarray[Any, Any]:
        """A finite number for each completion; raises ConfigError, which shows the completion that is at fault."""
        where = f"reward={self.name} in step {step}"

        def call(some: slice) -> list[Any]:
            columns = {key: [prompt.columns.get(key) for prompt in prompts[some]] for key in self.columns}
            return list(self.function(list(texts[some]), list(completions[some]), **columns))

        try:
            found = call(slice(None))
        except (Exception, SystemExit) as error:  # whatever it raises is the user's
            for i, completion in enumerate(completions):
                try:
                    call(slice(i, i + 1))
                except (Exception, SystemExit) as alone:
                    raise ConfigError(f"{where}: it raised {error_summary(alone)} for {short(completion)}") from None
            raise ConfigError(f"{where}: it raised {error_summary(error)}, for no completion alone") from None
        if len(found) != len(texts):
            raise ConfigError(f"{where}: it returned {len(found)} values for {len(texts)} completions")
        values = np.full(len(found), np.nan)
        for i, (value, completion) in enumerate(zip(found, completions, strict=True)):
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                values[i] = float(value)
            # As from environments: the square of a larger one may not be finite in float32.
            if not abs(values[i]) < 1e12:
                raise ConfigError(
                    f"{where}: it returned {short(value)} for {short(completion)}; a reward is between -1e12 and 1e12"
                )
        return values


def load_rewards(text: str, data: list[Prompt]) -> list[Reward]:
    """The reward functions of `module:function`, or of a weighted sum of several; raises ConfigError.

    A module may lie in the working directory.
    """
    rewards: dict[str, Reward] = {}
    for term in text.split("+"):
        weight, _, name = (part.strip() for part in term.rpartition("*"))
        number = math.nan
        with contextlib.suppress(ValueError):
            number = float(weight or 1)
        if not math.isfinite(number):
            raise ConfigError(f"reward={short(text)}: the weight {short(weight)} must be a number")
        if name in rewards:
            raise ConfigError(f"reward={short(text)} names {name} twice")
        rewards[name] = Reward(name, number, *_function(name, data))
    return [*rewards.values()]


def _function(name: str, data: list[Prompt]) -> tuple[Callable[..., Sequence[float]], list[str]]:
    """The function `module:function`, and the columns of the data that it takes; raises ConfigError."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise ConfigError(f"reward={short(name)} must be module:function, such as rewards:exact_match")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise ConfigError(f"reward={short(name)} cannot be imported: {error_summary(error)}") from None
    if not callable(found):
        raise ConfigError(f"reward={short(name)}: module {module!r} has no function {function!r}")
    columns = sorted({key for prompt in data for key in prompt.columns})
    try:
        signature = inspect.signature(found)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
            columns = [key for key in columns if key in signature.parameters]
        signature.bind([], [], **dict.fromkeys(columns))
    except (TypeError, ValueError) as error:  # ValueError: a function in C may have no signature
        file = data[0].where.partition(", line")[0]
        raise ConfigError(
            f"reward={short(name)} must take (prompts, completions) and columns of {file}: {error}"
        ) from None
    return found, columns


def error_summary(error: BaseException) -> str:
    """An exception in a few words: its type and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"
