"""The built-in tasks by name, and two of them: the bandit and random walk of the HAEPO paper (arXiv 2508.18884)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from haepo_jax.envs.base import Array, Box, Discrete, Replaceable, TimeStep, static_field
from haepo_jax.envs.kwargs import check_range, check_settings, constructor_settings
from haepo_jax.envs.partial import make_hidden_cartpole
from haepo_jax.envs.tokens import make_addition, make_countdown, make_reverse

LARGEST = 1_000_000
"""The maximum number of arms or cells, which is also the observation size."""


class BanditParams(NamedTuple):
    """means: (num_arms,), mean reward of each arm; noise_std: (), standard deviation of the reward noise."""

    means: Array
    noise_std: Array


class BanditState(NamedTuple):
    """pulls: int32 (), number of pulls so far."""

    pulls: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Bandit(Replaceable):
    """A stationary k-armed bandit with Gaussian rewards and several pulls per episode (see `make_bandit`)."""

    params: BanditParams
    num_arms: int = static_field()
    horizon: int = static_field()

    @property
    def name(self) -> str:
        return "haepo/bandit"

    @property
    def observation_space(self) -> Box:
        return Box(-jnp.inf, jnp.inf, (self.num_arms + 2,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(self.num_arms)

    def reset(self, key: Array) -> tuple[BanditState, Array]:
        """Starts an episode; all episodes have the same arms."""
        state = BanditState(jnp.zeros((), jnp.int32))
        return state, self._observe(state, jnp.zeros((self.num_arms,)), jnp.zeros(()))

    def step(self, key: Array, state: BanditState, action: Array) -> TimeStep:
        """Pulls an arm. The last pull terminates the episode; it is never truncated."""
        noise = self.params.noise_std * jax.random.normal(key, dtype=jnp.float32)
        reward = self.params.means[action] + noise
        state = BanditState(state.pulls + 1)
        observation = self._observe(state, jax.nn.one_hot(action, self.num_arms), reward)
        return TimeStep(state, observation, reward, state.pulls >= self.horizon, jnp.zeros((), bool))

    def _observe(self, state: BanditState, last_action: Array, last_reward: Array) -> Array:
        remaining = 1.0 - state.pulls / self.horizon
        return jnp.concatenate([last_action, jnp.stack([last_reward, remaining])]).astype(jnp.float32)


def make_bandit(*, num_arms: int = 10, num_pulls: int = 10, noise_std: float = 1.0, seed: int = 0) -> Bandit:
    """A k-armed bandit whose mean rewards are drawn once, at construction, from a standard normal distribution.

    The observation, (num_arms + 2,), is the last arm pulled as one-hot (zeros at the start), its reward, and the
    fraction of pulls left. The best expected return is `num_pulls * env.params.means.max()`.

    Args:
        num_arms: number of arms.
        num_pulls: pulls per episode, the horizon.
        noise_std: standard deviation of a reward around the mean of its arm (leaf `params.noise_std`).
        seed: seed of the means (leaf `params.means`).

    Raises:
        ValueError: fewer than one arm or pull, more arms than `LARGEST`, or a negative noise_std.
    """
    check_range("haepo/bandit: num_arms", num_arms, 1, LARGEST)
    check_range("haepo/bandit: num_pulls", num_pulls, 1)
    check_range("haepo/bandit: noise_std", noise_std, 0)
    check_range("haepo/bandit: seed", seed, 0)
    means = jax.random.normal(jax.random.key(seed), (num_arms,), jnp.float32)
    return Bandit(BanditParams(means, jnp.asarray(noise_std, jnp.float32)), num_arms, num_pulls)


class RandomWalkParams(NamedTuple):
    """reward: (), reward at the right end; slip: (), probability that a move goes the other way."""

    reward: Array
    slip: Array


class RandomWalkState(NamedTuple):
    """position: int32 (), from the left; steps: int32 (), taken so far."""

    position: Array
    steps: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RandomWalk(Replaceable):
    """A chain with moves to the left (action 0) and right (1) and a reward at its right end; see `make_random_walk`."""

    params: RandomWalkParams
    length: int = static_field()
    horizon: int = static_field()

    @property
    def name(self) -> str:
        return "haepo/random_walk"

    @property
    def observation_space(self) -> Box:
        return Box(0.0, 1.0, (self.length,))

    @property
    def action_space(self) -> Discrete:
        return Discrete(2)

    def reset(self, key: Array) -> tuple[RandomWalkState, Array]:
        """Starts at the left end."""
        zero = jnp.zeros((), jnp.int32)
        state = RandomWalkState(zero, zero)
        return state, self._observe(state)

    def step(self, key: Array, state: RandomWalkState, action: Array) -> TimeStep:
        """Moves by one cell; the left end is a wall, the right end terminates, the horizon truncates."""
        slips = jax.random.bernoulli(key, self.params.slip)
        right = jnp.logical_xor(action == 1, slips)
        position = jnp.clip(state.position + jnp.where(right, 1, -1), 0, self.length - 1).astype(jnp.int32)
        state = RandomWalkState(position, state.steps + 1)
        arrived = position == self.length - 1
        reward = jnp.where(arrived, self.params.reward, 0.0).astype(jnp.float32)
        truncated = jnp.logical_and(state.steps >= self.horizon, jnp.logical_not(arrived))
        return TimeStep(state, self._observe(state), reward, arrived, truncated)

    def _observe(self, state: RandomWalkState) -> Array:
        return jax.nn.one_hot(state.position, self.length, dtype=jnp.float32)


def make_random_walk(*, length: int = 10, horizon: int = 100, reward: float = 1.0, slip: float = 0.0) -> RandomWalk:
    """A chain of `length` cells; episodes start at the left end and terminate with a reward at the right end.

    The observation, (length,), is the position as one-hot. The best return is `reward`, after length - 1 steps. A
    random policy needs about (length - 1)^2 steps, so length and horizon together determine how sparse the reward is.

    Args:
        length: number of cells, from 2 to `LARGEST`.
        horizon: time limit in steps, at least length - 1.
        reward: reward at the right end (leaf `params.reward`).
        slip: probability that a move goes the other way (leaf `params.slip`).

    Raises:
        ValueError: a value is out of range, or the right end cannot be reached.
    """
    check_range("haepo/random_walk: length", length, 2, LARGEST)
    check_range("haepo/random_walk: horizon", horizon, 1)
    check_range("haepo/random_walk: slip", slip, 0, 1)
    if horizon < length - 1:
        raise ValueError(
            f"haepo/random_walk: the right end of length={length} cannot be reached in horizon={horizon} steps"
        )
    params = RandomWalkParams(jnp.asarray(reward, jnp.float32), jnp.asarray(slip, jnp.float32))
    return RandomWalk(params, length, horizon)


TASKS: dict[str, Callable[..., Any]] = {
    "bandit": make_bandit,
    "random_walk": make_random_walk,
    "hidden_cartpole": make_hidden_cartpole,
    "addition": make_addition,
    "reverse": make_reverse,
    "countdown": make_countdown,
}


def make_task(task: str, **kwargs: Any) -> Any:
    """Creates a built-in task by the last part of its name, after checking the names and types of the settings.

    Raises:
        ValueError: an unknown setting, or a value is out of range.
        TypeError: a setting of the wrong type.
    """
    factory = TASKS[task]
    if factory is not make_hidden_cartpole:  # its settings are checked by CartPole
        check_settings(f"haepo/{task}", kwargs, constructor_settings(factory))
    return factory(**kwargs)
