"""A custom environment: a plain object whose `reset` and `step` handle a single environment in JAX."""

import jax
import jax.numpy as jnp

import haepo_jax as hx
from haepo_jax.envs import Box, Discrete, TimeStep


class Landing:
    """A lander with an engine that is on or off, rewarded for landing slowly."""

    name, horizon = "landing", 100
    observation_space, action_space = Box(-10.0, 10.0, (2,)), Discrete(2)

    def reset(self, key):  # -> state, observation
        height, speed = jax.random.uniform(key, minval=1.0, maxval=2.0), jnp.float32(0)
        return {"height": height, "speed": speed, "time": jnp.int32(0)}, jnp.stack([height, speed])

    def step(self, key, state, action):
        speed = state["speed"] - 0.02 + 0.05 * action
        height, time = state["height"] + speed, state["time"] + 1
        landed = height <= 0
        reward = jnp.where(landed, 1 - 10 * jnp.abs(speed), 0.0)
        state = {"height": height, "speed": speed, "time": time}
        cut_off = (time >= self.horizon) & ~landed  # a time limit is not termination: the value is bootstrapped
        return TimeStep(state, jnp.stack([height, speed]), reward, terminated=landed, truncated=cut_off)


if __name__ == "__main__":
    algo = hx.HAEPO(Landing(), total_steps=12_000, log_points=6)
    _, metrics = jax.jit(algo.train)(jax.random.key(0))
    for steps, value in zip(metrics["env_steps"].to_int(), metrics["eval_return"], strict=True):
        print(f"{steps:>6} steps: return {value:.2f}")
