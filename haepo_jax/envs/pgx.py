"""Pgx games under the environment protocol (optional: `pip install 'haepo_jax[pgx]'`).

Koyamada et al., "Pgx: Hardware-Accelerated Parallel Game Simulators for Reinforcement Learning" (arXiv 2303.17503). The
agent is player 0, who moves first in about half of the games; the other players are part of the environment.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import Array, Box, Discrete, PyTree, static_field, strongly_typed
from haepo_jax.envs.kwargs import check_settings
from haepo_jax.envs.libraries import LibraryEnvironment, check_horizon, load, make
from haepo_jax.messages import short

AGENT = 0

Opponent: TypeAlias = Callable[[Array, Array, Array], Array]
"""(key, observation, valid actions (n,) bool) -> action () int32: a move of the current player."""

# Games of bounded length: the maximum number of moves of one player.
_LONGEST_GAME: dict[str, int] = {
    "animal_shogi": 128,
    "chess": 256,
    "connect_four": 21,
    "gardner_chess": 128,
    "kuhn_poker": 2,
    "leduc_holdem": 4,
    "othello": 60,
    "shogi": 256,
    "tic_tac_toe": 5,
}


def random_opponent(key: Array, observation: Array, valid: Array) -> Array:
    """A uniformly random valid action."""
    return jax.random.categorical(key, jnp.where(valid, 0.0, -jnp.inf))


class PgxState(NamedTuple):
    """Pgx's state, in which it is the agent's turn or the game is over; the number of moves of the agent, int32 (); and
    the reward of the moves before its first one, float32 (), None for one player."""

    inner: Any
    steps: Array
    owed: Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PgxEnv(LibraryEnvironment):
    """A Pgx game. A step is a move of the agent and all opponent moves until its next turn, with the sum of rewards."""

    opponent: Opponent = static_field()

    def _reset(self, key: Array) -> tuple[PyTree, PyTree]:
        start_key, others_key = self._keys(key)
        inner = strongly_typed(self.inner.init(start_key))
        inner, reward = self._others(others_key, inner)
        owed = None if self.inner.num_players == 1 else reward
        return PgxState(inner, jnp.zeros((), jnp.int32), owed), inner.observation

    def _step(self, key: Array, state: PgxState, action: Array) -> tuple[PyTree, PyTree, Any, Any, Any]:
        own_key, others_key = self._keys(key)
        inner = self.inner.step(state.inner, action, own_key)
        inner, reward = self._others(others_key, inner)
        owed = state.owed
        if owed is not None:
            reward, owed = reward + owed, jnp.zeros_like(owed)
        new = PgxState(inner, state.steps + 1, owed)
        truncated = inner.truncated | (new.steps >= self.horizon)
        return new, inner.observation, reward, inner.terminated, truncated

    def action_mask(self, state: PgxState) -> Array:
        """The legal actions."""
        return state.inner.legal_action_mask

    def _keys(self, key: Array) -> tuple[Array, Array]:
        """The keys of the agent's and the opponents' moves. Not split for one player: splitting would take a fifth of
        the time of a step of MinAtar's Breakout."""
        own_key, others_key = (key, key) if self.inner.num_players == 1 else jax.random.split(key)
        return own_key, others_key

    def _others(self, key: Array, inner: Any) -> tuple[Any, Array]:
        """Plays the opponents' moves until the agent's turn or the end; returns the state and the agent's reward."""
        if self.inner.num_players == 1:
            return inner, inner.rewards[AGENT]

        def waiting(loop: tuple[Any, Array, Array]) -> Array:
            inner, _, _ = loop
            return (inner.current_player != AGENT) & ~(inner.terminated | inner.truncated)

        def move(loop: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
            inner, reward, key = loop
            key, choice_key, chance_key = jax.random.split(key, 3)
            action = self.opponent(choice_key, inner.observation, inner.legal_action_mask)
            new = self.inner.step(inner, jnp.asarray(action, jnp.int32), chance_key)
            return new, reward + new.rewards[AGENT], key

        inner, reward, _ = jax.lax.while_loop(waiting, move, (inner, inner.rewards[AGENT], key))
        return inner, reward


def make_pgx(task: str, **kwargs: Any) -> PgxEnv:
    """Creates the Pgx game `task` (`connect_four`, not `pgx/connect_four`).

    Args:
        task: one of the tasks in `list_envs`.
        **kwargs: `opponent` and `episode_length`; see `adapt_pgx`. For other settings pass a Pgx object.

    Raises:
        ValueError: an unknown setting, or an invalid value.
        TypeError: a setting of the wrong type.
        ImportError: Pgx is not installed.
    """
    name = f"pgx/{task}"
    inner = make(load(name, "Pgx", "pgx"), task)
    check_settings(name, kwargs, {"opponent": None, "episode_length": None})
    return adapt_pgx(name, inner, **kwargs)


def adapt_pgx(
    name: str, inner: Any, *, opponent: str | Opponent = "random", episode_length: int | None = None
) -> PgxEnv:
    """Adapts an instance of Pgx's `Env`.

    Args:
        name: name in messages.
        inner: the Pgx environment.
        opponent: "random", or from Python a function that selects the moves of all other players (see `Opponent`), for
            example with a trained policy.
        episode_length: limit on the agent's moves; None: the maximum length of the game, or 1000.

    Raises:
        ValueError: an invalid opponent, or a limit below 1.
        TypeError: the limit is not an integer.
    """
    if opponent == "random":
        opponent = random_opponent
    if not callable(opponent):
        raise ValueError(f"{name}: opponent must be 'random' or, from Python, a function, got {short(opponent)}")
    start = jax.eval_shape(inner.init, jax.eval_shape(lambda: jax.random.key(0)))
    low, high = (0, 1) if start.observation.dtype == jnp.bool_ else (-np.inf, np.inf)
    limit = _longest_game(inner) if episode_length is None else episode_length
    horizon = check_horizon(name, "episode_length", limit)
    seen = Box(low, high, start.observation.shape, start.observation.dtype)
    return PgxEnv((), inner, name, horizon, seen, Discrete(start.legal_action_mask.shape[0]), opponent)


def _longest_game(inner: Any) -> int:
    if inner.id == "hex":
        return (inner.size**2 + 1) // 2
    if inner.id.startswith("go_"):  # Pgx ends a game after two moves per board point
        return int(inner.id.rpartition("x")[2]) ** 2
    return _LONGEST_GAME.get(inner.id, 1000)
