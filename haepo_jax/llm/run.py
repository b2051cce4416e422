"""One fine-tuning run: its prompts, rewards and files."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import shutil
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from haepo_jax.llm.folder import ModelFolder, load_tokenizer, read_folder, save_model
from haepo_jax.llm.learner import Batch, Completions, Learner
from haepo_jax.llm.settings import LLMConfig, Prompt, Reward, describe, settings_text
from haepo_jax.messages import duration
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.devices import device_errors
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.resume import resume_command
from haepo_jax.runner.run_dir import RunDir, append_record, flush_to_disk, json_text, keep_rows, write_atomically
from haepo_jax.runner.signals import StopSignals


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, checked before anything is computed.

    Attributes:
      config: the settings.
      folder: the model's, checked.
      tokenizer: the model's.
      data: the prompts as the model sees them, through the tokenizer's chat template where they are chats.
      eval_data: the held-out ones.
      longest: tokens of the longest prompt.
      rewards: the reward functions.
    """

    config: LLMConfig
    folder: ModelFolder
    tokenizer: Any
    data: list[Prompt]
    eval_data: list[Prompt]
    longest: int
    rewards: list[Reward]


def prepare(config: LLMConfig, data: list[Prompt], eval_data: list[Prompt], rewards: list[Reward]) -> Plan:
    """Checks the model's folder, and the prompts against it; raises ConfigError."""
    folder = read_folder(config.model, config.dtype)
    tokenizer = load_tokenizer(folder)
    room = folder.context - config.max_new_tokens
    longest = 0

    def as_seen(prompt: Prompt) -> Prompt:
        nonlocal longest
        text = prompt.prompt
        if not isinstance(text, str):
            try:
                text = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program, and raises what it likes
                told = describe(error)
                raise ConfigError(f"{prompt.where}: the tokenizer's chat template refuses it: {told}") from None
        tokens = tokenizer.encode(text)
        # The sampler begins every prompt with one such token, where the tokenizer has it.
        length = len(tokens) + (bool(tokenizer.bos_token_id) and tokens[:1] != [tokenizer.bos_token_id])
        if length > room:
            raise ConfigError(
                f"{prompt.where}: a prompt of {length} tokens and max_new_tokens={config.max_new_tokens} "
                f"are more than the model's context of {folder.context} tokens"
            )
        longest = max(longest, length)
        return dataclasses.replace(prompt, prompt=text)

    trained, held_out = ([as_seen(prompt) for prompt in some] for some in (data, eval_data))
    return Plan(config, folder, tokenizer, trained, held_out, longest, rewards)


def fine_tune(plan: Plan, directory: RunDir, *, resumed: bool, command: str) -> None:
    """Trains from the beginning, or from the newest checkpoint, and writes the fine-tuned folder.

    Args:
      plan: from `prepare`.
      directory: the run's.
      resumed: whether the directory holds the beginning of this run.
      command: the command line, for the summary.

    Raises:
      ConfigError: a reward function raises, or returns anything but a finite number for each completion.
      Interrupted: a signal ended the run. In both cases there is a checkpoint of the last step.
      RunError: the device is out of memory, the disk is full, or the loss is no longer finite.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        with (
            directory.lock(),
            StopSignals(directory.remove_if_empty) as stop,
            device_errors("a smaller micro_batch, max_new_tokens or lora_rank needs less"),
            disk_errors(directory.path),
            contextlib.closing(_Run(plan, directory)) as run,
        ):
            run.train(stop, resumed, command)
    except (ConfigError, Interrupted) as error:
        if not directory.holds_run():  # nothing was trained
            raise
        again = resume_command(directory, module="haepo_jax.llm")
        text = f"{error}; every step before it is saved, to resume: {again}"
        raise (Interrupted(error.signum, text) if isinstance(error, Interrupted) else ConfigError(text)) from None
    finally:
        directory.remove_if_empty()


class _Run:
    def __init__(self, plan: Plan, directory: RunDir) -> None:
        self.plan, self.config, self.directory = plan, plan.config, directory
        self.learner = Learner(plan.config, plan.folder, plan.tokenizer, plan.longest)
        self.kept: list[Batch] = []
        self.checkpoints = ocp.CheckpointManager(
            directory.checkpoints.resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=plan.config.keep_checkpoints, create=True),
        )
        self.done = self._restore()
        self._files = {name: directory.path / f"{name}.jsonl" for name in ("completions", "metrics", "eval")}
        self._board: Any = None

    def train(self, stop: StopSignals, resumed: bool, command: str) -> None:
        config, directory, done = self.config, self.directory, self.done
        if done >= config.steps:
            print(f"the run in {directory.path} has ended; a larger steps= extends it")
            return
        for file in self._files.values():
            keep_rows(file, lambda row: row["step"] < done)
        if config.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(directory.path), purge_step=done)
        write_atomically(directory.config, settings_text(config))
        directory.summary.unlink(missing_ok=True)
        stop.begin()
        try:
            self._evaluate(done)
            began = time.monotonic()
            for step in range(done, config.steps):
                if (signum := stop()) is not None:
                    raise Interrupted(signum, f"ended after {step} of {config.steps} steps")
                row = self._step(step)
                self.done = step + 1
                self._write("metrics", row)
                self._show(row, began, done)
                self._evaluate(step + 1)
                if self.done % config.checkpoint_steps == 0 or self.done == config.steps:
                    self._save()
        except (ConfigError, Interrupted):
            if self.done == 0 and not resumed:
                self._discard()
            else:
                self._save()
            raise
        save_model(self.learner.model, self.plan.folder, directory.path / "model", config.lora_scale)
        summary = self._summary(command)
        write_atomically(directory.summary, json_text(summary, indent=2) + "\n")
        told = [f"mean reward {summary['reward_first']:.4g} -> {summary['reward_last']:.4g}"]
        if self.plan.eval_data:
            told.append(f"held out, greedily {summary['eval_first']:.4g} -> {summary['eval_last']:.4g}")
        print(f"{'; '.join(told)}; wrote {directory.path / 'model'}")

    def _step(self, step: int) -> dict[str, Any]:
        """Samples a batch, has it rewarded, and learns from it and the kept ones; the row of the metrics."""
        config, learner, began = self.config, self.learner, time.monotonic()
        prompts = [prompt for prompt in self._prompts(step) for _ in range(config.group_size)]
        key = jax.random.fold_in(jax.random.key(config.seed), step)
        completions = learner.sample([prompt.prompt for prompt in prompts], key)
        sampled = time.monotonic()
        rewards = self._reward(prompts, completions, step)
        judged = time.monotonic()
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
            "reward": float(rewards.mean()),
            "reward_min": float(rewards.min()),
            "reward_max": float(rewards.max()),
            "distinct": float(np.mean([len(set(group)) / len(group) for group in groups])),
            "length": float(completions.mask.sum(-1).mean()),
            "tokens": int(completions.mask.sum()),
            **{name: float(np.mean([update[name] for update in updates])) for name in updates[0]},
            "updates": len(updates),
            "seconds_sampling": sampled - began,
            "seconds_reward": judged - sampled,
            "seconds_learning": ended - judged,
        }

    def _prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step; every epoch of the data has a new order."""
        size, count = self.config.prompts_per_step, len(self.plan.data)
        places = range(step * size, (step + 1) * size)
        return [self.plan.data[_order(self.config.seed, place // count, count)[place % count]] for place in places]

    def _reward(self, prompts: Sequence[Prompt], completions: Completions, step: int, file: str = "completions") -> Any:
        """The weighted sum of the reward functions, (B,); every completion is written down with it."""
        texts = [prompt.prompt for prompt in prompts]
        found = {reward.name: reward(texts, completions.texts, prompts, step) for reward in self.plan.rewards}
        total = np.sum([reward.weight * found[reward.name] for reward in self.plan.rewards], axis=0)
        for i, (text, completion) in enumerate(zip(texts, completions.texts, strict=True)):
            row = {"step": step, "prompt": text, "completion": completion, "reward": float(total[i])}
            if len(found) > 1:
                row |= {name: float(values[i]) for name, values in found.items()}
            self._write(file, row, show=False)
        return total

    def _evaluate(self, step: int) -> None:
        """Every `eval_steps` steps and at the end: the greedy completion of every held-out prompt."""
        due = step % self.config.eval_steps == 0 or step == self.config.steps
        if self.plan.eval_data and due:
            texts = [prompt.prompt for prompt in self.plan.eval_data]
            values = self._reward(self.plan.eval_data, self.learner.sample(texts, None), step, "eval")
            if self._board is not None:
                self._board.add_scalar("eval_reward", float(values.mean()), step)
            print(f"after {step} steps  held-out reward {values.mean():.4g} over {len(texts)} prompts", flush=True)

    def _write(self, file: str, row: dict[str, Any], show: bool = True) -> None:
        text = json_text(row) if show else json.dumps(row, ensure_ascii=False)
        append_record(self._files[file], f"{text}\n")
        if show and self._board is not None:
            for name, value in row.items():
                self._board.add_scalar(name, value, row["step"])

    def _show(self, row: dict[str, Any], began: float, first: int) -> None:
        steps = self.config.steps
        if self.done % max(1, steps // 20) == 0 or self.done == steps:
            speed = row["tokens"] / sum(value for name, value in row.items() if name.startswith("seconds"))
            left = duration((time.monotonic() - began) / (self.done - first) * (steps - self.done))
            told = f"step {self.done}/{steps}  reward {row['reward']:.4g}  loss {row['loss']:.4g}"
            print(f"{told}  {speed:.3g} tokens/s  {left} left", flush=True)

    def _saved(self, kept: list[Batch]) -> list[jax.Array]:
        return jax.tree.leaves((self.learner.state, kept))

    def _save(self) -> None:
        if self.checkpoints.latest_step() != self.done:
            for file in self._files.values():
                flush_to_disk(file)
            self.checkpoints.save(self.done, args=ocp.args.StandardSave(self._saved(self.kept)))
            self.checkpoints.wait_until_finished()  # before the optimiser's state is given away to the next update

    def _restore(self) -> int:
        """Restores the newest checkpoint; returns the number of steps done."""
        step = self.checkpoints.latest_step()
        if step is None:
            return 0
        kept = [self.learner.blank()] * min(step, self.config.replay_batches - 1)
        structure = jax.tree.structure((self.learner.state, kept))
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, self._saved(kept))
        found = self.checkpoints.restore(step, args=ocp.args.StandardRestore(shapes))
        state, self.kept = jax.tree.unflatten(structure, found)
        self.learner.restore(state)
        return int(step)

    def _discard(self) -> None:
        """Removes what a run that has trained nothing has written."""
        shutil.rmtree(self.directory.checkpoints, ignore_errors=True)
        events = self.directory.path.glob("events.out.tfevents.*")
        for file in (self.directory.config, *self.directory.path.glob("*.jsonl"), *events):
            file.unlink(missing_ok=True)

    def _summary(self, command: str) -> dict[str, Any]:
        def mean(rows: list[dict[str, Any]]) -> float:
            return float(np.mean([row["reward"] for row in rows]))

        rows, config = self.directory.read_metrics(), self.config
        tenth = max(1, len(rows) // 10)
        summary: dict[str, Any] = {"algo": config.algo, "model": config.model, "steps": config.steps}
        summary |= {"reward_first": mean(rows[:tenth]), "reward_last": mean(rows[-tenth:])}
        for total in ("updates", "tokens", "seconds_sampling", "seconds_reward", "seconds_learning"):
            summary[total] = sum(row[total] for row in rows)
        if count := len(self.plan.eval_data):
            rows = [json.loads(line) for line in (self.directory.path / "eval.jsonl").read_text().splitlines()]
            summary |= {"eval_first": mean(rows[:count]), "eval_last": mean(rows[-count:])}
        return summary | {"command": command}

    def close(self) -> None:
        """Closes what is open."""
        self.checkpoints.close()
        if self._board is not None:
            self._board.close()


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Any:
    return np.random.default_rng((seed, epoch)).permutation(count)
