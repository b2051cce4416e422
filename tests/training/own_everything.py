"""An environment, a recurrent network, a metric and an early stop of one's own: `python own_everything.py`."""

import dataclasses

import jax
import jax.numpy as jnp

import haepo_jax as hx
from haepo_jax.envs import Box, Discrete, TimeStep


class Recall:
    """A bit is shown at the first step and asked for at the last."""

    name, horizon = "recall", 4
    observation_space, action_space = Box(-1.0, 1.0, (2,)), Discrete(2)

    def reset(self, key):
        bit = jax.random.bernoulli(key)
        return (bit, jnp.int32(0)), jnp.array([2.0 * bit - 1, 0.0])

    def step(self, key, state, action):
        bit, time = state[0], state[1] + 1
        last = time == self.horizon
        seen = jnp.array([0.0, time / self.horizon])
        return TimeStep((bit, time), seen, 1.0 * (last & (action == bit)), last, False)


@dataclasses.dataclass(frozen=True)
class Elman:
    """h' = tanh([x, h] W); logits = h' V."""

    size: int = 16

    def init(self, key, observation):
        w, v = jax.random.normal(key, (2, self.size + 2, self.size))
        return {"w": 0.5 * w, "v": 0.1 * v[: self.size, :2]}, jnp.zeros(self.size)

    def apply(self, params, carry, observation, is_first):
        if is_first.ndim:  # a sequence: step after step
            return jax.lax.scan(lambda h, x: self.apply(params, h, *x), carry, (observation, is_first))
        h = jnp.where(is_first, 0.0, carry)
        h = jnp.tanh(jnp.concatenate([observation, h]) @ params["w"])
        return h, h @ params["v"]


class Watched(hx.PPO):
    """PPO that logs the size of its recurrent weights, too."""

    def _update(self, state):
        state, metrics = super()._update(state)
        return state, metrics | {"recurrent_norm": jnp.linalg.norm(state.params["policy"]["w"])}


algo = Watched(Recall(), policy=Elman(), total_steps=20_000, num_envs=16, num_steps=16, learning_rate=3e-3)
result = hx.train(algo, seeds=2, run_dir="runs/own", callbacks=[lambda row, state: row.mean("eval_return") > 0.95])
print(result.history["recurrent_norm"].shape, result.history["eval_return"][:, -1], result.summary["ended_early"])
