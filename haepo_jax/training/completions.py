"""What a policy says in a token task, and what its training makes likelier: text for every logged row."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.base import EVALUATION_SEED, Algorithm, TrainState
from haepo_jax.distributions import action_distribution
from haepo_jax.losses import plackett_luce_weights
from haepo_jax.rollout import Trajectory, collect_episodes, lane_keys
from haepo_jax.training.loggers import TensorBoardLogger
from haepo_jax.training.observers import Observer, Row, RunInfo
from haepo_jax.training.run_dir import AppendedFile, RunDir, json_text


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Said:
    """Groups of completions, each group of one prompt: steps (T, G, K), rewards (G, K), and log-likelihoods (G, K) under
    the policy that said them."""

    steps: Trajectory
    reward: jax.Array
    log_likelihood: jax.Array


def say(algorithm: Algorithm, state: TrainState, prompts: int, members: int) -> Said:
    """`members` completions of each of `prompts` prompts, sampled from the current policy; new ones at every update."""
    key = jax.random.fold_in(jax.random.key(EVALUATION_SEED), state.update)
    reset_key, step_key = jax.random.split(key)

    def act(carry: Any, observation: Any, is_first: jax.Array, mask: Any, key: jax.Array) -> tuple[Any, jax.Array, Any]:
        carry, distribution = algorithm.act_distribution(state, carry, observation, is_first, mask)
        action = distribution.sample(key)
        return carry, action, distribution.log_prob(action)

    steps, returns, _ = collect_episodes(
        algorithm.env, act, algorithm.initial_carry(), jnp.repeat(lane_keys(reset_key, prompts), members),
        lane_keys(step_key, prompts * members),
    )  # fmt: skip
    assert steps is not None

    def grouped(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], prompts, members)

    likelihood = jnp.sum(steps.extras, axis=0, where=steps.decisions)
    steps = jax.tree.map(lambda x: x.reshape(x.shape[0], prompts, members, *x.shape[2:]), steps)
    return Said(steps, grouped(returns), grouped(likelihood))


def judge(algorithm: Algorithm, state: TrainState, said: Said) -> jax.Array:
    """Log-likelihoods (G, K) of completions under the current policy."""
    carry, is_first = algorithm.initial_carry(), np.arange(said.steps.mask.shape[0]) == 0

    def sequence(observation: Any, action: jax.Array, action_mask: Any) -> jax.Array:
        seen = algorithm.normalized(state.normalizer, observation)
        output = algorithm.policy_network.apply(algorithm.policy_params(state.params), carry, seen, is_first)[1]
        return action_distribution(algorithm.env.action_space, output, action_mask).log_prob(action)

    each = jax.vmap(jax.vmap(sequence, in_axes=1, out_axes=1), in_axes=1, out_axes=1)
    log_probs = each(said.steps.observation, said.steps.action, said.steps.action_mask)
    return jnp.sum(log_probs, axis=0, where=said.steps.decisions)


class CompletionLogger(Observer):
    """Writes `completions.jsonl`, a line for each completion, and a table of them as TensorBoard text.

    At every row the policy is asked, and at the next its answers are judged: by then training has changed their
    log-likelihoods from `log_likelihood` to `log_likelihood_after`, and `weight` is the Plackett-Luce weight of that
    change within the group, above 1/K where a completion was made likelier than its rivals. Of several seeds it is the
    first. A resumed run's first row has none, and neither has a task without tokens.
    """

    def __init__(self, directory: RunDir, prompts: int, tensorboard: TensorBoardLogger | None) -> None:
        self._path, self._prompts, self._tensorboard = directory.path / "completions.jsonl", prompts, tensorboard
        self._algorithm: Algorithm | None = None
        self._file: AppendedFile | None = None
        self._said: Said | None = None
        self._info: RunInfo | None = None

    def on_start(self, info: RunInfo) -> None:
        algorithm = info.algorithm
        if not callable(getattr(algorithm.env, "decode", None)):
            return
        self._info, self._algorithm = info, algorithm
        members = getattr(algorithm, "group_size", 1)
        self._say = jax.jit(lambda state: say(algorithm, state, self._prompts, members if members > 1 else 8))
        self._judge = jax.jit(lambda state, said: judge(algorithm, state, said))

    def on_compiled(self, seconds: float) -> None:
        if self._info is not None:
            rows = self._info.rows
            self._file = AppendedFile.continued(self._path, lambda line: line["row"] < rows)

    def on_state(self, row: Row, state: TrainState) -> None:
        if self._file is None:
            return
        if row.metrics and len(row.update) > 1:
            state = jax.tree.map(lambda x: x[0], state)
        if self._said is not None:
            table = self._table(row, self._said, self._judge(state, self._said))
            self._file.append("".join(json_text(line) + "\n" for line in table).encode())
            if self._tensorboard is not None:
                self._tensorboard.text("completions", _markdown(table), row.mean_steps)
        self._said = self._say(state)

    def _table(self, row: Row, said: Said, after: jax.Array) -> list[dict[str, Any]]:
        assert self._algorithm is not None
        weights = plackett_luce_weights(after - said.log_likelihood)
        host = jax.device_get((said.steps.action, said.steps.mask, said.steps.decisions, said.steps.observation[0]))
        actions, mask, decided, first = host
        lines = []
        for place in np.ndindex(said.reward.shape):
            here = (slice(None), *place)
            prompt = [first[place], *actions[here][mask[here] & ~decided[here]]]
            numbers = {
                "reward": said.reward, "weight": weights, "log_likelihood": said.log_likelihood, "log_likelihood_after": after,
            }  # fmt: skip
            lines.append(
                {
                    "row": row.index,
                    "env_steps": row.mean_steps,
                    "prompt": self._algorithm.env.decode(prompt),
                    "completion": self._algorithm.env.decode(actions[here][decided[here]]),
                    **{name: float(values[place]) for name, values in numbers.items()},
                }
            )
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _markdown(table: list[dict[str, Any]]) -> str:
    columns = ("prompt", "completion", "reward", "weight", "log_likelihood", "log_likelihood_after")
    rows = [
        " | ".join(f"`{v}`" if isinstance(v, str) else f"{v:.3f}" for v in (line[c] for c in columns)) for line in table
    ]
    head = [" | ".join(name.replace("_", " ") for name in columns), " | ".join("---" for _ in columns)]
    return "\n".join(f"| {line} |" for line in [*head, *rows])
