"""What HAEPO's weights know: whether training has made those episodes likelier that return more, asked of new ones.

The metric `alignment` asks the experience that was learnt from, whose luck the policy has learnt too. These episodes
have been seen by no update.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.algorithms.base import Algorithm
from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.algorithms.state import TrainState
from haepo_jax.losses.numerics import rank_correlation
from haepo_jax.rollout import Trajectory, collect_episodes, environment_keys
from haepo_jax.runner.loggers import TensorBoardLogger
from haepo_jax.runner.observers import Observer, Row, RunInfo
from haepo_jax.runner.run_dir import AppendedFile, RunDir, json_text


class FreshEpisodes(NamedTuple):
    """K episodes, an entry for each; all (K,) float32.

    Attributes:
      scores: sum over steps of log pi_after(a) - log pi_before(a): the score "log_ratio", whose softmax are the weights.
      log_likelihoods: sum over steps of log pi_after(a): the score "likelihood"; minus `scores`, that under pi_before.
      returns: undiscounted sums of rewards.
    """

    scores: jax.Array
    log_likelihoods: jax.Array
    returns: jax.Array


def fresh_alignment(
    algorithm: Algorithm, before: TrainState, after: TrainState, key: jax.Array, episodes: int
) -> FreshEpisodes:
    """Plays complete episodes with one policy of a run and scores them by how much likelier a later one makes them.

    Pure: it jits, and vmaps over states and keys.

    Args:
      algorithm: of the run.
      before: whose policy plays, by sampled actions; of both states only policy and normaliser are looked at.
      after: whose policy is compared with it.
      key: typed, of starts, actions and transitions.
      episodes: K, side by side.
    """
    reset_key, step_key = jax.random.split(key)
    return play_and_judge(
        algorithm, before, after, environment_keys(reset_key, episodes), environment_keys(step_key, episodes)
    )[1]


def play_and_judge(
    algorithm: Algorithm, before: TrainState, after: TrainState, reset_keys: jax.Array, step_keys: jax.Array
) -> tuple[Trajectory, FreshEpisodes]:
    """The steps (T, K) of what `fresh_alignment` plays, too; keys (K,) as `collect_episodes` takes them.

    Forced steps (see `Trajectory.decisions`) do not count, as in the losses. Both policies decide step by step, each
    with its own carry, so no step's log-probability has to be computed twice. What the environment spoils is not finite.
    """

    def act(
        carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
    ) -> tuple[Any, Any, Any]:
        carry_before, played = algorithm.act_distribution(before, carry[0], observation, is_first, action_mask)
        carry_after, judged = algorithm.act_distribution(after, carry[1], observation, is_first, action_mask)
        action = played.sample(key)
        log_prob = judged.log_prob(action)
        return (carry_before, carry_after), action, (log_prob - played.log_prob(action), log_prob)

    carry = algorithm.initial_carry()
    steps, returns, _ = collect_episodes(algorithm.env, act, (carry, carry), reset_keys, step_keys)
    assert steps is not None
    # The differences are summed: subtracting two long sums loses digits.
    scores, log_likelihoods = (jnp.sum(x, axis=0, where=steps.decisions) for x in steps.extras)
    return steps, FreshEpisodes(scores, log_likelihoods, returns)


class FreshLogger(Observer, abc.ABC):
    """Writes lines of JSON on new episodes, played at every row but the first by the policy of the row before.

    A subclass says what is played and what is written of it. Of several seeds it is the first. A resumed run's first row
    has none.
    """

    file_name: str

    def __init__(self, directory: RunDir, episodes: int, tensorboard: TensorBoardLogger | None) -> None:
        self._path, self.episodes, self.tensorboard = directory.path / self.file_name, episodes, tensorboard
        self._before: TrainState | None = None
        self._file: AppendedFile | None = None

    @abc.abstractmethod
    def play(self, algorithm: Algorithm, before: TrainState, after: TrainState) -> Any:
        """A pytree of what has been played, the pure part."""

    @abc.abstractmethod
    def lines(self, row: Row, played: Any) -> list[dict[str, Any]]:
        """What is written of it, as NumPy arrays here; `row` and `env_steps` are added. May write to TensorBoard."""

    def on_start(self, info: RunInfo) -> None:
        self._rows = info.rows
        self._play = jax.jit(lambda before, after: self.play(info.algorithm, before, after))

    def on_compiled(self, seconds: float) -> None:
        self._file = AppendedFile.continued(self._path, lambda line: line["row"] < self._rows)

    def on_state(self, row: Row, state: TrainState) -> None:
        if self._file is None:
            return
        # What no policy needs may be large: the optimiser's moments, experience that is kept.
        state = dataclasses.replace(state, opt_state=None, reference=None, extra=None)
        # A copy, because the run continues in these buffers.
        state = jax.tree.map(lambda x: x[0] if len(row.update) > 1 else jnp.copy(x), state)
        if self._before is not None:
            lines = self.lines(row, jax.device_get(self._play(self._before, state)))
            place = {"row": row.index, "env_steps": row.mean_steps}
            self._file.append("".join(json_text(place | line) + "\n" for line in lines).encode())
        self._before = state

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class WeightLogger(FreshLogger):
    """Writes `weights.jsonl`: of every row, lists of each new episode's `score` and `return` (see `FreshEpisodes`), and
    their `alignment`, Spearman's rank correlation. TensorBoard gets a scatter of them."""

    file_name = "weights.jsonl"

    def play(self, algorithm: Algorithm, before: TrainState, after: TrainState) -> tuple[FreshEpisodes, jax.Array]:
        key = jax.random.fold_in(jax.random.key(EVALUATION_SEED), after.update)
        fresh = fresh_alignment(algorithm, before, after, key, self.episodes)
        live = jnp.isfinite(fresh.scores) & jnp.isfinite(fresh.returns)
        return fresh, rank_correlation(fresh.scores, fresh.returns, live)

    def lines(self, row: Row, played: tuple[FreshEpisodes, Any]) -> list[dict[str, Any]]:
        fresh, alignment = played
        if self.tensorboard is not None:
            self.tensorboard.image("weights", _scatter(fresh, float(alignment)), row.mean_steps)
        return [{"alignment": float(alignment), "score": fresh.scores.tolist(), "return": fresh.returns.tolist()}]


def _scatter(fresh: FreshEpisodes, alignment: float) -> bytes:
    from haepo_jax.runner.plots import figure_png, panel

    known = np.isfinite(fresh.scores) & np.isfinite(fresh.returns)
    title = f"{known.sum()} new episodes, rank correlation {alignment:.2f}"
    figure, axes = panel("log-ratio since the row before", "return", title, (5, 4.2))
    axes.scatter(fresh.scores[known], fresh.returns[known], s=14, alpha=0.6, linewidths=0)
    return figure_png(figure)
