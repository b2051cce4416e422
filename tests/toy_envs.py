"""Small environments and policies, written for the tests, whose every number can be followed by hand."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from haepo_jax.envs.base import TimeStep
from haepo_jax.spaces import Box, Discrete, MultiDiscrete


@dataclasses.dataclass(eq=False)
class Drift:
    """An ordinary object: a noisy walk from a random start, which ends by itself after a random number of steps.

    Attributes:
      horizon: the time limit; an episode's own length is uniform on 1 to horizon + 2, so some are truncated.
      nan_after_end: what is asked of an episode that is over is NaN.
      broken: "reward" or "observation": not finite from the second step on, in the episodes that start above 0; "reset": nor is
        their first observation; "huge reward" or "huge observation": finite, but with a square that is not.
      on_step: called on the host at every step.
    """

    horizon: int = 6
    nan_after_end: bool = False
    broken: str = ""
    on_step: Any = None

    name = "toy/drift"
    observation_space = Box(-np.inf, np.inf, (2,))
    action_space = Discrete(3)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        start_key, length_key = jax.random.split(key)
        x = jax.random.uniform(start_key, minval=-1.0)
        length = jax.random.randint(length_key, (), 1, self.horizon + 3)
        state = {"x": x, "time": jnp.int32(0), "length": length, "broken": x > 0}
        observation = self._observe(state)
        return state, jnp.where(x > 0, jnp.nan, observation) if self.broken == "reset" else observation

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        if self.on_step is not None:
            jax.debug.callback(self.on_step, state["time"])
        x = 0.5 * state["x"] + (action - 1) + 0.1 * jax.random.normal(key)
        time = state["time"] + 1
        over = state["time"] >= jnp.minimum(state["length"], self.horizon)
        reward = x + action
        if self.nan_after_end:
            x, reward = (jnp.where(over, jnp.nan, value) for value in (x, reward))
        new = {**state, "x": x, "time": time}
        observation = self._observe(new)
        is_broken, huge = state["broken"] & (time >= 2), self.broken.startswith("huge")
        if self.broken.endswith("reward"):
            reward = jnp.where(is_broken, 1e20 if huge else jnp.nan, reward)
        if self.broken.endswith("observation"):
            observation = jnp.where(is_broken, 1e20 if huge else jnp.inf, observation)
        return TimeStep(new, observation, reward, time >= state["length"], time >= self.horizon)

    def _observe(self, state: Any) -> jax.Array:
        return jnp.stack([state["x"], state["time"] / self.horizon])


@dataclasses.dataclass(eq=False)
class Start:
    """The observation and the reward of every step are a number drawn at the start, whatever is done."""

    horizon: int = 3
    truncates: bool = True

    name = "toy/start"
    observation_space = Box(0.0, 1.0, (1,))
    action_space = Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        state = (jax.random.uniform(key), jnp.int32(0))
        return state, state[0][None]

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        state = (state[0], state[1] + 1)
        over = state[1] >= self.horizon
        return TimeStep(state, state[0][None], state[0], over & (not self.truncates), over & self.truncates)


@dataclasses.dataclass(eq=False)
class Count:
    """The observation counts the steps of an episode from 100 up, so a final observation can be told from a reset's.

    In each environment, the first action is 0 or 1: with 0 the episode terminates after 2 steps, with 1 it is cut off after 3.
    """

    horizon: int = 3

    name = "toy/count"
    observation_space = Box(0.0, np.inf, (1,))
    action_space = Discrete(2)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        return (jnp.int32(0), jnp.int32(0)), jnp.array([100.0])

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        time, first = state
        first = jnp.where(time == 0, action, first)
        time = time + 1
        observation = (100.0 + time)[None].astype(jnp.float32)
        return TimeStep((time, first), observation, jnp.float32(1.0), (first == 0) & (time >= 2), time >= self.horizon)


@dataclasses.dataclass(eq=False)
class Lock:
    """A dictionary observation (image, integer, vector) and two valid actions of four, other ones at every step.

    An invalid action makes the reward NaN. The valid action named by `observation["code"]` pays 1.
    """

    horizon: int = 2

    name = "toy/lock"
    action_space = Discrete(4)
    observation_space = {
        "image": Box(0, 255, (4, 4, 3), np.uint8),
        "code": Discrete(4),
        "nested": (Box(-1.0, 1.0, (2,)), Box(0, 9, (), np.int32)),
    }

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        state = {"key": key, "time": jnp.int32(0)}
        return state, self._observe(state)

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> TimeStep:
        right = (action == self._code(state)).astype(jnp.float32)
        reward = jnp.where(self.action_mask(state)[action], right, jnp.nan)
        state = {**state, "time": state["time"] + 1}
        return TimeStep(state, self._observe(state), reward, state["time"] >= self.horizon, jnp.bool_(False))

    def action_mask(self, state: Any) -> jax.Array:
        other = (self._code(state) + 1 + state["time"] % 2) % 4
        return (jnp.arange(4) == self._code(state)) | (jnp.arange(4) == other)

    def _code(self, state: Any) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(state["key"], state["time"]), (), 0, 4)

    def _observe(self, state: Any) -> Any:
        image = jnp.full((4, 4, 3), 50 * state["time"], jnp.uint8)
        return {"image": image, "code": self._code(state), "nested": (jnp.zeros(2), state["time"])}


@dataclasses.dataclass(eq=False)
class Controls:
    """Actions and masks in a dict: a lever, two dials and two sliders, each worth up to 1, told by the observation.

    An invalid action, or a slider outside its range, makes the reward NaN. The lever's right position is always valid.
    """

    horizon: int = 1

    name = "toy/controls"
    action_space = {"lever": Discrete(2), "dials": (MultiDiscrete((2, 3)), Box(0.0, 10.0, (2,)))}
    observation_space = {"lever": Discrete(2), "dials": MultiDiscrete((2, 3))}

    def reset(self, key: jax.Array) -> tuple[Any, Any]:
        lever, *dials = jax.random.randint(key, (3,), 0, jnp.array([2, 2, 3]))
        state = {"lever": lever, "dials": jnp.stack(dials)}
        return state, state

    def step(self, key: jax.Array, state: Any, action: Any) -> TimeStep:
        dials, sliders = action["dials"]
        valid = jnp.all((sliders >= 0) & (sliders <= 10)) & self.action_mask(state)["dials"][0][2 + dials[1]]
        right = (action["lever"] == state["lever"]).astype(jnp.float32) + jnp.sum(dials == state["dials"])
        reward = right - jnp.sum(jnp.abs(sliders - 5.0)) / 5.0
        return TimeStep(state, state, jnp.where(valid, reward, jnp.nan), jnp.bool_(True), jnp.bool_(False))

    def action_mask(self, state: Any) -> Any:
        second = jnp.arange(3) != (state["dials"][1] + 1) % 3  # one wrong position is barred
        return {"lever": jnp.ones(2, bool), "dials": (jnp.concatenate([jnp.ones(2, bool), second]), None)}


@dataclasses.dataclass(frozen=True)
class Pair:
    """A policy (or, with `num_outputs=0`, a value function) of one's own: a linear map with `init` and `apply`."""

    num_outputs: int

    def init(self, key: jax.Array, observation: jax.Array) -> tuple[Any, Any]:
        shape = (observation.shape[-1], self.num_outputs) if self.num_outputs else observation.shape[-1:]
        return 0.1 * jax.random.normal(key, shape), ()

    def apply(self, params: Any, carry: Any, observation: jax.Array, is_first: jax.Array) -> tuple[Any, jax.Array]:
        return carry, observation @ params


@dataclasses.dataclass(frozen=True)
class GRU:
    """A recurrent policy (or, with `num_outputs=0`, a value function) with weights of its own making."""

    num_outputs: int
    size: int = 4

    def init(self, key: jax.Array, observation: jax.Array) -> tuple[Any, Any]:
        width = observation.shape[-1] + self.size
        shapes = {"update": (width, self.size), "reset": (width, self.size), "new": (width, self.size)}
        shapes["out"] = (self.size, max(self.num_outputs, 1))
        keys = jax.random.split(key, len(shapes))
        params = {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}
        return params, jnp.zeros(self.size)

    def apply(self, params: Any, carry: Any, observation: jax.Array, is_first: jax.Array) -> tuple[Any, jax.Array]:
        step = functools.partial(self._step, params)
        return (jax.lax.scan if jnp.ndim(is_first) else lambda f, c, x: f(c, x))(step, carry, (observation, is_first))

    def _step(self, params: Any, carry: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        observation, is_first = now
        carry = jnp.where(is_first, 0.0, carry)
        both = jnp.concatenate([observation, carry])
        update, reset = jax.nn.sigmoid(both @ params["update"]), jax.nn.sigmoid(both @ params["reset"])
        candidate = jnp.tanh(jnp.concatenate([observation, reset * carry]) @ params["new"])
        carry = (1 - update) * carry + update * candidate
        output = carry @ params["out"]
        return carry, output if self.num_outputs else output[..., 0]


def equations(jaxpr: Any) -> list[Any]:
    """Every equation of a jaxpr and of all jaxprs inside it."""
    found = []
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        found.append(equation)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(getattr(inner, "jaxpr", None), "eqns"):
                    found += equations(inner)
    return found


def trees_equal(left: Any, right: Any) -> bool:
    """Whether two trees of arrays are bit for bit the same."""

    def raw(x: Any) -> np.ndarray[Any, Any]:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)

    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(raw(x), raw(y), equal_nan=True) for x, y in pairs)
