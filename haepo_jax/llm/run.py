"""One fine-tuning run: what Tunix is given, and what is written down."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl import logging
from flax import nnx
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig
from tunix.sft.hooks import TrainingHooks
from tunix.sft.metrics_logger import MetricsLoggerOptions, TensorboardBackend

from haepo_jax.llm.folder import ModelFolder, load_model, load_tokenizer, read_folder, save_model
from haepo_jax.llm.learner import HAEPOConfig, HAEPOLearner
from haepo_jax.llm.rollout import Rollout
from haepo_jax.llm.settings import LLMConfig, Prompt, RewardFunction, describe, settings_text
from haepo_jax.messages import short
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.devices import device_errors
from haepo_jax.runner.errors import Interrupted, RunError, disk_errors
from haepo_jax.runner.resume import resume_command
from haepo_jax.runner.run_dir import AppendedFile, RunDir, json_text, write_atomically
from haepo_jax.runner.signals import StopSignals

LORA_MODULES = ".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run consists of, checked before anything is computed.

    Attributes:
      config: the settings.
      folder: the model's, checked.
      tokenizer: that belongs to it.
      data: the prompts.
      texts: the prompts as the model sees them, with the tokenizer's chat template where they are chats.
      longest: tokens of the longest prompt.
    """

    config: LLMConfig
    folder: ModelFolder
    tokenizer: Any
    data: list[Prompt]
    texts: list[str]
    longest: int


def prepare(config: LLMConfig, data: list[Prompt]) -> Plan:
    """Checks the model's folder, and the prompts against it; raises ConfigError."""
    folder = read_folder(config.model, config.dtype)
    tokenizer = load_tokenizer(folder)
    texts, longest = [], 0
    room = folder.context - config.max_new_tokens
    for prompt in data:
        where = f"data={short(config.data)}, line {prompt.line}"
        text = prompt.prompt
        if not isinstance(text, str):
            try:
                text = tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program, and raises what it likes
                raise ConfigError(f"{where}: the tokenizer's chat template refuses it: {describe(error)}") from None
        tokens = tokenizer.encode(text)
        # The sampler begins every prompt with one such token, where the tokenizer has it.
        length = len(tokens) + (bool(tokenizer.bos_token_id) and tokens[:1] != [tokenizer.bos_token_id])
        if length > room:
            raise ConfigError(
                f"{where}: a prompt of {length} tokens and max_new_tokens={config.max_new_tokens} "
                f"are more than the model's context of {folder.context} tokens"
            )
        texts.append(text)
        longest = max(longest, length)
    return Plan(config, folder, tokenizer, data, texts, longest)


def fine_tune(
    plan: Plan, directory: RunDir, reward: tuple[RewardFunction, list[str]], *, goes_on: bool, command: str
) -> None:
    """Trains as planned, or on from the newest checkpoint, and writes the fine-tuned folder.

    Args:
      plan: what `prepare` returned.
      directory: of the run.
      reward: the function, and the columns of the data that it takes.
      goes_on: whether the directory holds the beginning of this run.
      command: the command line, for the summary.

    Raises:
      ConfigError: the reward function raises, or returns something else than a finite number for each completion.
      Interrupted: a signal ended the run. In both cases there is a checkpoint of the last step.
      RunError: the device is out of memory, the disk full, or the loss no longer finite.
    """
    logging.set_verbosity(logging.ERROR)
    try:
        advice = "a smaller micro_batch, max_new_tokens or lora_rank needs less"
        with (
            directory.lock(),
            StopSignals(directory.remove_if_empty) as stop,
            device_errors(advice),
            disk_errors(directory.path),
        ):
            _fine_tune(plan, directory, reward, goes_on, command, stop)
    except (ConfigError, Interrupted) as error:
        if not directory.holds_run():  # nothing was trained
            raise
        again = resume_command(directory, module="haepo_jax.llm")
        text = f"{error}; every step before it is kept, to go on: {again}"
        if isinstance(error, Interrupted):
            raise Interrupted(error.signum, text) from None
        raise ConfigError(text) from None
    finally:
        directory.remove_if_empty()


def _fine_tune(
    plan: Plan,
    directory: RunDir,
    reward: tuple[RewardFunction, list[str]],
    goes_on: bool,
    command: str,
    stop: StopSignals,
) -> None:
    config = plan.config
    curves = Curves(config, TensorboardBackend(str(directory.path)) if config.tensorboard else None)
    cluster = _cluster(plan, directory, curves)
    trainer = cluster.actor_trainer
    done = trainer.train_steps // config.num_iterations
    if done >= config.steps:
        cluster.close()
        print(f"the run in {directory.path} has ended; a larger steps= would extend it")
        return

    completions = directory.path / "completions.jsonl"
    rewards = Rewards(plan, reward, AppendedFile.continued(completions, lambda row: row["step"] < done), curves)
    curves.file = AppendedFile.continued(directory.metrics, lambda row: row["update"] <= trainer.train_steps)
    trainer.with_training_hooks(curves)
    learner = _learner(config, cluster, rewards)
    cluster.global_steps = done
    cluster.rollout.calls = done * (config.prompts_per_step // (config.micro_batch or config.prompts_per_step))
    write_atomically(directory.config, settings_text(config))
    directory.summary.unlink(missing_ok=True)
    stop.begin()
    try:
        # Tunix goes on at this many batches, those of every iteration counted.
        skipped = itertools.repeat(next(_batches(plan, 0, stop)), trainer.train_steps)
        learner.train(itertools.chain(skipped, _batches(plan, done, stop)))
    except (ConfigError, Interrupted):
        cluster.close()  # with a checkpoint
        if trainer.train_steps == 0 and not goes_on:
            _discard(directory, completions)
        raise
    finally:
        rewards.file.close()
        curves.file.close()

    save_model(trainer.model, plan.folder, directory.path / "model", config.lora_scale)
    summary = _summary(config, directory, command)
    write_atomically(directory.summary, json_text(summary, indent=2) + "\n")
    print(
        f"mean reward {summary['reward_first']:.4g} -> {summary['reward_last']:.4g}; wrote {directory.path / 'model'}"
    )


def _cluster(plan: Plan, directory: RunDir, curves: Curves) -> RLCluster:
    """The models, the sampler, the optimiser and the checkpoints; goes on from the newest of these."""
    config = plan.config
    # Every device along the axis that weights and batches are shared out over.
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1), ("fsdp", "tp"))
    with mesh:
        model = load_model(plan.folder, mesh)
        actor = model if config.lora_rank is None else _with_lora(model, config)
    # Beside LoRA the model itself stays as it was. Otherwise variables of its own hold the same arrays, which training
    # replaces in the first one's.
    graph, state = nnx.split(model)
    reference = model if config.lora_rank is not None else nnx.merge(graph, jax.tree.map(lambda x: x, state))
    every = config.checkpoint_steps * config.num_iterations
    training = RLTrainingConfig(
        actor_optimizer=optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(config.learning_rate)),
        eval_every_n_steps=config.steps * config.num_iterations + 1,
        max_steps=config.steps * config.num_iterations,
        mini_batch_size=config.prompts_per_step,
        train_micro_batch_size=config.micro_batch or config.prompts_per_step,
        checkpoint_root_directory=str(directory.checkpoints.resolve()),
        checkpointing_options=ocp.CheckpointManagerOptions(
            save_interval_steps=every, max_to_keep=config.keep_checkpoints
        ),
        metrics_logging_options=MetricsLoggerOptions(
            log_dir=str(directory.path), backend_kwargs={"custom_backend": [lambda: curves]}
        ),
    )
    rollout = RolloutConfig(
        max_tokens_to_generate=config.max_new_tokens,
        temperature=config.sampling_temperature,
        seed=config.seed,
        max_prompt_length=plan.longest,
        kv_cache_size=plan.longest + config.max_new_tokens,
    )
    return RLCluster(
        actor=actor,
        reference=reference if config.kl_coef else None,
        tokenizer=plan.tokenizer,
        cluster_config=ClusterConfig(
            role_to_mesh=dict.fromkeys((Role.ACTOR, Role.REFERENCE, Role.ROLLOUT), mesh),
            rollout_engine=Rollout,
            training_config=training,
            rollout_config=rollout,
        ),
    )


def _with_lora(model: nnx.Module, config: LLMConfig) -> nnx.Module:
    """A module that shares the model's weights and adds low-rank ones, which start at 0, to every projection."""
    import qwix

    assert config.lora_rank is not None
    provider = qwix.LoraProvider(
        module_path=LORA_MODULES, rank=config.lora_rank, alpha=config.lora_scale * config.lora_rank
    )
    inputs = model.get_model_input()  # type: ignore[attr-defined]
    adapted: nnx.Module = qwix.apply_lora_to_model(model, provider, rngs=nnx.Rngs(config.seed), **inputs)
    return adapted


def _learner(config: LLMConfig, cluster: RLCluster, rewards: Rewards) -> GRPOLearner[Any]:
    shared: dict[str, Any] = {
        "num_generations": config.group_size,
        "num_iterations": config.num_iterations,
        "beta": config.kl_coef,
    }
    if config.algo == "grpo":
        # The k3 estimate, which is GRPO's; Tunix's default has a gradient of mean 0.
        return GRPOLearner(cluster, GRPOConfig(epsilon=config.clip_eps, kl_loss_mode="low_var_kl", **shared), rewards)
    haepo = HAEPOConfig(
        score=config.score,
        weight_temperature=config.temperature,
        normalize=config.normalize,
        entropy_coef=config.entropy_coef,
        **shared,
    )
    return HAEPOLearner(cluster, haepo, rewards)


def _batches(plan: Plan, start: int, stop: Callable[[], int | None]) -> Iterator[dict[str, Any]]:
    """The batches of prompts from step `start` on, endlessly: a fresh order in every pass over the data."""
    size, count = plan.config.prompts_per_step, len(plan.texts)
    for step in itertools.count(start):
        signum = stop()
        if signum is not None:
            raise Interrupted(signum, f"ended after {step} of {plan.config.steps} steps")
        places = range(step * size, (step + 1) * size)
        indices = [_order(plan.config.seed, place // count, count)[place % count] for place in places]
        yield {
            "prompts": np.array([plan.texts[index] for index in indices]),
            "index": np.array(indices),
            "batch": np.full(size, step),  # Tunix takes a column `step` for its own
        }


@functools.lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> Any:
    return np.random.default_rng((seed, epoch)).permutation(count)


class Rewards:
    """The user's reward function as Tunix calls it: checked, and every completion written down."""

    __name__ = "reward"

    def __init__(
        self, plan: Plan, reward: tuple[RewardFunction, list[str]], file: AppendedFile, curves: Curves
    ) -> None:
        self._plan, (self._function, self._columns), self._curves = plan, reward, curves
        self.file = file

    def __call__(
        self, prompts: list[str], completions: list[str], index: list[int], batch: list[int], **_: Any
    ) -> list[float]:
        step = int(batch[0])
        data = [self._plan.data[i] for i in index]
        texts = [self._plan.texts[i] for i in index]
        columns = {key: [prompt.columns.get(key) for prompt in data] for key in self._columns}
        where = f"reward={self._plan.config.reward} in step {step}"
        try:
            found = list(self._function(texts, list(completions), **columns))
        except Exception as error:  # whatever it raises is the user's
            raise ConfigError(f"{where}: it raised {describe(error)}") from None
        if len(found) != len(texts):
            raise ConfigError(f"{where}: it returned {len(found)} values for {len(texts)} completions")
        values = []
        for value, completion in zip(found, completions, strict=True):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number):
                raise ConfigError(
                    f"{where}: it returned {short(value)} for {short(completion)}; a reward is a finite number"
                )
            values.append(number)
        for text, completion, value in zip(texts, completions, values, strict=True):
            row = {"step": step, "prompt": text, "completion": completion, "reward": value}
            self.file.append((json.dumps(row, ensure_ascii=False) + "\n").encode())
        self._curves.rewards[step] += values
        return values


class Curves(TrainingHooks):
    """Gathers what Tunix logs of an update, and writes a row of `metrics.jsonl` and, now and then, a line to look at.

    To Tunix it is a backend of its metrics logger, and hooks of its trainer.
    """

    def __init__(self, config: LLMConfig, tensorboard: TensorboardBackend | None) -> None:
        self._config, self._tensorboard = config, tensorboard
        self._values: dict[str, float] = {}
        self._start = time.monotonic()
        self.rewards: dict[int, list[float]] = defaultdict(list)
        self.file: AppendedFile

    def log_scalar(self, event: str, value: Any, **keywords: Any) -> None:
        prefix, _, name = event.rpartition("/")
        # Of a loss that is no likelihood there is no perplexity; and jax's own events begin with a slash.
        if name == "perplexity" or event.startswith("/"):
            return
        if prefix == "actor/train":
            self._values[name] = float(np.mean(value))
        if self._tensorboard is not None:
            self._tensorboard.log_scalar(event, value, **keywords)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None  # which would begin another file if anything came after

    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None:
        step = (train_step - 1) // self._config.num_iterations
        rewards = self.rewards[step]
        for old in [key for key in self.rewards if key < step]:
            del self.rewards[old]
        row = {"step": step, "update": train_step, "reward": float(np.mean(rewards))}
        row |= {"reward_min": min(rewards), "reward_max": max(rewards), **self._values}
        row["seconds"] = time.monotonic() - self._start
        self.file.append((json_text(row) + "\n").encode())
        if not math.isfinite(train_loss):
            rate = self._config.learning_rate
            raise RunError(
                f"diverged: update {train_step} has loss {train_loss}; a lower learning_rate than {rate:g} may help"
            )
        updates = self._config.steps * self._config.num_iterations
        if train_step % max(1, updates // 20) == 0 or train_step == updates:
            print(
                f"step {step + 1}/{self._config.steps}  reward {row['reward']:.4g}  loss {row['loss']:.4g}", flush=True
            )

    def on_train_start(self, train_ctx: Any) -> None: ...
    def on_train_end(self, train_ctx: Any) -> None: ...
    def on_train_step_start(self, train_ctx: Any) -> None: ...
    def on_eval_step_start(self, train_ctx: Any) -> None: ...
    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None: ...


def _discard(directory: RunDir, completions: Path) -> None:
    """Takes back what a run has written that has trained nothing."""
    shutil.rmtree(directory.checkpoints, ignore_errors=True)
    for file in (directory.config, directory.metrics, completions, *directory.path.glob("events.out.tfevents.*")):
        file.unlink(missing_ok=True)


def _summary(config: LLMConfig, directory: RunDir, command: str) -> dict[str, Any]:
    rows = directory.read_metrics()
    tenth = max(1, len(rows) // 10)
    return {
        "algo": config.algo,
        "model": config.model,
        "steps": config.steps,
        "updates": len(rows),
        "reward_first": float(np.mean([row["reward"] for row in rows[:tenth]])),
        "reward_last": float(np.mean([row["reward"] for row in rows[-tenth:]])),
        "seconds": rows[-1]["seconds"],
        "command": command,
    }
