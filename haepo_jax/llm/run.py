"""One fine-tuning run: its prompts, rewards and files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from haepo_jax.llm.folder import load_tokenizer, read_folder, save_model
from haepo_jax.llm.learner import Batch, Completions, Learner
from haepo_jax.llm.settings import PAIR, LLMConfig, Prompt, Reward, error_summary
from haepo_jax.messages import duration
from haepo_jax.runner.checkpoints import Checkpoint, Checkpoints, to_arrays
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.devices import device_errors
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.loggers import EventFile
from haepo_jax.runner.resume import resume_command
from haepo_jax.runner.run_dir import (
    RunDir,
    append_record,
    flush_to_disk,
    json_text,
    keep_rows,
    rows_of,
    write_atomically,
)
from haepo_jax.runner.signals import StopSignals


class FineTuning:
    """A run. When it is made, the model's folder and the prompts are checked; raises ConfigError.

    Args:
      config: the settings.
      data: the prompts, texts or chats, of `config.pairs` with two completions each; chats become texts through the
        tokenizer's chat template.
      eval_data: the held-out ones.
      rewards: the reward functions, of which the weighted sum is the reward.
    """

    def __init__(self, config: LLMConfig, data: list[Prompt], eval_data: list[Prompt], rewards: list[Reward]) -> None:
        self.config = dataclasses.replace(config, group_size=2) if config.pairs else config
        self.rewards = rewards
        self.folder = read_folder(config.model, config.dtype)
        self.tokenizer = load_tokenizer(self.folder)
        self.longest = 0
        self.data = [self._as_seen(prompt, PAIR if config.pairs else ()) for prompt in data]
        self.eval_data = [self._as_seen(prompt) for prompt in eval_data]

    def _as_seen(self, prompt: Prompt, completions: Sequence[str] = ()) -> Prompt:
        """The prompt as the model sees it, if it fits into its context, and so do the columns with completions."""
        text, limit = prompt.prompt, self.config.max_new_tokens
        if not isinstance(text, str):
            try:
                text = self.tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program, and raises what it likes
                reason = error_summary(error)
                raise ConfigError(f"{prompt.where}: the tokenizer's chat template refuses it: {reason}") from None
        tokens, begin = self.tokenizer.encode(text), self.tokenizer.bos_token_id
        # The sampler begins every prompt with one such token, where the tokenizer has it.
        length = len(tokens) + (bool(begin) and tokens[:1] != [begin])
        if length > self.folder.context - limit:
            raise ConfigError(
                f"{prompt.where}: a prompt of {length} tokens and max_new_tokens={limit} "
                f"are more than the model's context of {self.folder.context} tokens"
            )
        for key in completions:
            if (count := len(self.tokenizer.encode(prompt.columns[key], add_special_tokens=False))) > limit:
                raise ConfigError(f"{prompt.where}: {key} has {count} tokens, more than max_new_tokens={limit}")
        self.longest = max(self.longest, length)
        return dataclasses.replace(prompt, prompt=text)

    def train(self, directory: RunDir, command: str) -> None:
        """Trains from the beginning, or from the newest checkpoint, and writes the fine-tuned folder.

        Args:
          directory: the run's.
          command: the command line, for the summary.

        Raises:
          ConfigError: a reward function raises, or returns anything but a finite number for each completion.
          Interrupted: a signal ended the run. In both cases there is a checkpoint of the last step.
          RunError: the device is out of memory, the disk is full, no checkpoint is intact, or the loss is no longer finite.
        """
        logging.set_verbosity(logging.ERROR)
        try:
            with (
                directory.lock(),
                StopSignals(directory.remove_if_empty) as stop,
                device_errors("a smaller micro_batch, max_new_tokens or lora_rank needs less"),
                disk_errors(directory.path),
                contextlib.ExitStack() as self._open,
            ):
                self._checkpoints = Checkpoints(directory.checkpoints)
                newest = self._checkpoints.newest()
                self.done = self._saved = newest.progress()["step"] if newest else 0
                if self.done == self.config.steps and directory.summary.exists():
                    print(f"the run in {directory.path} has ended; a larger steps= extends it")
                    return
                self._start(directory, newest)
                self._loop(stop)
                self._finish(command)
        except (ConfigError, Interrupted) as error:
            if not directory.holds_run():  # nothing was trained
                raise
            again = resume_command(directory, module="haepo_jax.llm")
            text = f"{error}; every step before it is saved, to resume: {again}"
            raise (Interrupted(error.signum, text) if isinstance(error, Interrupted) else ConfigError(text)) from None

    def _start(self, directory: RunDir, checkpoint: Checkpoint | None) -> None:
        """Builds the learner, in the state of a checkpoint if there is one."""
        self.directory = directory
        self.learner = Learner(self.config, self.folder, self.tokenizer, self.longest, offline=bool(self.config.pairs))
        self.kept: list[Batch] = []
        self._files = {name: directory.path / f"{name}.jsonl" for name in ("completions", "metrics", "eval")}
        self._board: EventFile | None = None
        if checkpoint is not None:
            now = self.learner.state, [self.learner.blank()] * min(self.done, self.config.replay_batches - 1)
            found = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), checkpoint.restore(now), now)
            self.learner.restore(found[0])
            self.kept = found[1]

    def _save(self) -> None:
        if self._saved != self.done:
            for file in self._files.values():
                flush_to_disk(file)
            self._checkpoints.write(to_arrays((self.learner.state, self.kept)), {"step": self.done})
            self._checkpoints.prune(self.config.keep_checkpoints)
            self._saved = self.done

    def _loop(self, stop: StopSignals) -> None:
        config, first, began = self.config, self.done, time.monotonic()
        self._cut("completions", "eval")
        self.directory.summary.unlink(missing_ok=True)
        if config.tensorboard:
            self._board = EventFile(self.directory.path)
            self._open.callback(self._board.close)
        stop.begin()
        try:
            self._evaluate()
            while self.done < config.steps:
                if (signum := stop()) is not None:
                    raise Interrupted(signum, f"ended after {self.done} of {config.steps} steps")
                row = self._step()
                if self.done == first:  # not before: a run whose first step fails should not occupy its directory
                    self._cut("metrics")
                    self.directory.write_settings(dataclasses.asdict(config))
                self.done += 1
                self._write("metrics", row)
                self._show(row, (time.monotonic() - began) / (self.done - first))
                self._evaluate()
                if self.done % config.checkpoint_steps == 0 or self.done == config.steps:
                    self._save()
        except (ConfigError, Interrupted):
            if self.done:
                self._save()
            raise

    def _cut(self, *files: str) -> None:
        """Cuts files down to the rows that the checkpoint knows of; the others are written again."""
        for file in files:
            keep_rows(self._files[file], lambda row: row["step"] < self.done)

    def _step(self) -> dict[str, Any]:
        """Samples a batch, has it rewarded, and learns from it and the kept ones, or learns from given pairs; the row of the
        metrics."""
        config, learner, step, began = self.config, self.learner, self.done, time.monotonic()
        prompts = [prompt for prompt in self._prompts() for _ in range(config.group_size)]
        texts = [prompt.prompt for prompt in prompts]
        if config.pairs:
            pairs = zip(prompts, itertools.cycle(PAIR))
            completions = learner.given(texts, [prompt.columns[key] for prompt, key in pairs])
            rewards, judged, sampled = np.tile([1.0, 0.0], config.prompts_per_step), {}, time.monotonic()
        else:
            key = jax.random.fold_in(jax.random.key(config.seed), step)
            completions, sampled = learner.sample(texts, key), time.monotonic()
            rewards = self._reward(prompts, completions, "completions")
            judged = {"reward": rewards.mean(), "reward_min": rewards.min(), "reward_max": rewards.max()}
        rewarded = time.monotonic()
        kept, metrics = learner.learn([*self.kept, learner.batch(completions, rewards)])
        self.kept = kept[1 - config.replay_batches :] if config.replay_batches > 1 else []
        updates = [{name: float(value) for name, value in update.items()} for update in metrics]
        for number, update in enumerate(updates, 1):
            if not math.isfinite(update["loss"]) or not math.isfinite(update["grad_norm"]):
                raise RunError(
                    f"diverged: update {number} of step {step} has loss {update['loss']} and a gradient of norm "
                    f"{update['grad_norm']}; a lower learning_rate than {config.learning_rate:g} may help"
                )
        groups = [completions.texts[i : i + config.group_size] for i in range(0, len(prompts), config.group_size)]
        ended = time.monotonic()
        return {
            "step": step,
            **{name: float(value) for name, value in judged.items()},
            "distinct": float(np.mean([len(set(group)) / len(group) for group in groups])),
            "length": float(completions.mask.sum(-1).mean()),
            "tokens": int(completions.mask.sum()),
            **{name: float(np.mean([update[name] for update in updates])) for name in updates[0]},
            "kl": updates[0]["kl"],  # the first update's completions alone come from the current policy
            "updates": len(updates),
            "seconds_sampling": sampled - began,
            "seconds_reward": rewarded - sampled,
            "seconds_learning": ended - rewarded,
        }

    def _prompts(self) -> list[Prompt]:
        """The prompts of a step; every epoch of the data has a new order."""
        size, count = self.config.prompts_per_step, len(self.data)
        places = range(self.done * size, (self.done + 1) * size)
        return [self.data[_order(self.config.seed, place // count, count)[place % count]] for place in places]

    def _reward(self, prompts: Sequence[Prompt], completions: Completions, file: str) -> Any:
        """The weighted sum of the reward functions, (B,); every completion is written down with it."""
        texts = [prompt.prompt for prompt in prompts]
        found = {reward.name: reward(texts, completions.texts, prompts, self.done) for reward in self.rewards}
        total = np.sum([reward.weight * found[reward.name] for reward in self.rewards], axis=0)
        for i, (text, completion) in enumerate(zip(texts, completions.texts, strict=True)):
            row = {"step": self.done, "prompt": text, "completion": completion, "reward": float(total[i])}
            if len(found) > 1:
                row |= {name: float(values[i]) for name, values in found.items()}
            self._write(file, row)
        return total

    def _evaluate(self) -> None:
        """Every `eval_steps` steps and at the end: the greedy completion of every held-out prompt."""
        due = self.done % self.config.eval_steps == 0 or self.done == self.config.steps
        if self.eval_data and due:
            completions = self.learner.sample([prompt.prompt for prompt in self.eval_data], None)
            mean = float(self._reward(self.eval_data, completions, "eval").mean())
            if self._board is not None:
                self._board.add(self.done, {"eval_reward": mean})
            print(f"after {self.done} steps  held-out reward {mean:.4g} over {len(self.eval_data)} prompts", flush=True)

    def _write(self, file: str, row: dict[str, Any]) -> None:
        text = json_text(row) if file == "metrics" else json.dumps(row, ensure_ascii=False)
        append_record(self._files[file], f"{text}\n")
        if file == "metrics" and self._board is not None:
            self._board.add(row["step"], row)

    def _show(self, row: dict[str, Any], seconds: float) -> None:
        """At most about twenty lines a run; `seconds` is the time of a step so far."""
        steps = self.config.steps
        if self.done % max(1, steps // 20) == 0 or self.done == steps:
            speed = row["tokens"] / sum(value for name, value in row.items() if name.startswith("seconds"))
            shown = "  ".join(f"{name} {row[name]:.4g}" for name in ("reward", "accuracy", "loss") if name in row)
            print(
                f"step {self.done}/{steps}  {shown}  {speed:.3g} tokens/s  {duration(seconds * (steps - self.done))} left",
                flush=True,
            )

    def _finish(self, command: str) -> None:
        """Writes the fine-tuned folder and the summary."""
        config, directory = self.config, self.directory
        save_model(self.learner.model, self.folder, directory.path / "model")
        rows = directory.read_metrics()
        tenth = max(1, len(rows) // 10)
        means: dict[str, float] = {}
        outcome = []
        if not config.pairs:
            means |= {"reward_first": _mean_reward(rows[:tenth]), "reward_last": _mean_reward(rows[-tenth:])}
            outcome.append(f"mean reward {means['reward_first']:.4g} -> {means['reward_last']:.4g}")
        if count := len(self.eval_data):
            rows = rows_of(self._files["eval"].read_text(encoding="utf-8"))
            means |= {"eval_first": _mean_reward(rows[:count]), "eval_last": _mean_reward(rows[-count:])}
            outcome.append(f"held out, greedily {means['eval_first']:.4g} -> {means['eval_last']:.4g}")
        summary = {"algo": config.algo, "model": config.model, "steps": config.steps, **means, "command": command}
        write_atomically(directory.summary, json_text(summary, indent=2) + "\n")
        print("; ".join([*outcome, f"wrote {directory.path / 'model'}"]))


def _mean_reward(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([row["reward"] for row in rows]))


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Any:
    return np.random.default_rng((seed, epoch)).permutation(count)
