"""What a policy says in a token task: text for every logged row."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.algorithms.state import TrainState
from haepo_jax.rollout import collect_episodes, environment_keys
from haepo_jax.runner.observers import Observer, Row, RunInfo
from haepo_jax.runner.run_dir import RunDir, append_record, json_text, keep_rows


class CompletionLogger(Observer):
    """Writes `completions.jsonl`, a line for each completion.

    At every row the policy (of the first seed) completes new prompts, each as often as a group has members, or 8 times. A
    task without tokens has none.
    """

    def __init__(self, directory: RunDir, prompts: int) -> None:
        self._file, self._prompts = directory.path / "completions.jsonl", prompts

    def on_start(self, info: RunInfo) -> None:
        algorithm, self._rows = info.algorithm, info.rows
        self._decode: Any = getattr(algorithm.env, "decode", None)
        group = getattr(algorithm, "group_size", 1)
        members = group if group > 1 else 8

        @jax.jit
        def play(state: TrainState) -> Any:
            def act(carry: Any, observation: Any, is_first: Any, action_mask: Any, key: Any) -> tuple[Any, Any, None]:
                carry, distribution = algorithm.act_distribution(state, carry, observation, is_first, action_mask)
                return carry, distribution.sample(key), None

            reset_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(EVALUATION_SEED), state.update))
            reset_keys = jnp.repeat(environment_keys(reset_key, self._prompts), members)
            step_keys = environment_keys(step_key, len(reset_keys))
            steps, returns, _ = collect_episodes(algorithm.env, act, algorithm.initial_carry(), reset_keys, step_keys)
            assert steps is not None
            return steps.observation[0], steps.action, steps.mask, steps.decisions, returns

        self._play = play

    def on_compiled(self, seconds: float) -> None:
        if self._decode is not None:
            keep_rows(self._file, lambda line: line["row"] < self._rows)

    def on_row(self, row: Row, state: TrainState) -> None:
        if self._decode is None:
            return
        # What no policy needs may be large: the optimiser's moments, a replay buffer.
        state = dataclasses.replace(state, opt_state=None, reference=None, extra=None)
        if len(row.update) > 1:
            state = jax.tree.map(lambda x: x[0], state)
        first, actions, mask, decided, returns = jax.device_get(self._play(state))
        for k in range(len(returns)):
            line = {
                "row": row.index,
                "env_steps": row.mean_steps,
                "prompt": self._decode([first[k], *actions[mask[:, k] & ~decided[:, k], k]]),
                "completion": self._decode(actions[decided[:, k], k]),
                "reward": float(returns[k]),
            }
            append_record(self._file, json_text(line) + "\n")
