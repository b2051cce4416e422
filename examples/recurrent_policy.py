"""A custom recurrent policy: two pure functions, `init` and `apply`, and a carry."""

import dataclasses

import jax
import jax.numpy as jnp

import haepo_jax as hx


@dataclasses.dataclass(frozen=True)
class Minimal:
    """A minimal gated unit, h' = h + gate * (candidate - h), and a linear output layer."""

    inputs: int
    outputs: int
    size: int = 32

    def init(self, key, observation):  # -> parameters and initial carry
        shapes = {"gate": (self.inputs, self.size), "candidate": (self.inputs + self.size, self.size)}
        shapes |= {"output": (self.size, self.outputs)}
        keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
        return {k: jax.random.normal(keys[k], s) / s[0] ** 0.5 for k, s in shapes.items()}, jnp.zeros(self.size)

    def apply(self, params, carry, observation, is_first):  # one step, or a sequence with a leading time axis
        if jnp.ndim(is_first):
            step = lambda carry, now: self.apply(params, carry, *now)  # noqa: E731
            return jax.lax.scan(step, carry, (observation, is_first))
        h, x = jnp.where(is_first, 0, carry), observation.reshape(-1)  # reset at the start of an episode
        gate = jax.nn.sigmoid(x @ params["gate"])
        h = h + gate * (jnp.tanh(jnp.concatenate([x, h]) @ params["candidate"]) - h)
        return h, h @ params["output"]  # logits of two actions


if __name__ == "__main__":
    env = hx.make_env("MemoryChain-bsuite", memory_length=5)  # shows a bit and asks for it five steps later
    algo = hx.PPO(env, policy=Minimal(inputs=3, outputs=2), total_steps=20_000, learning_rate=3e-3, log_points=4)
    _, metrics = jax.jit(algo.train)(jax.random.key(0))
    print("return (0 without memory, at most 1):", *(f"{value:.2f}" for value in metrics["eval_return"]))
