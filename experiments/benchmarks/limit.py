"""The limit: what bare JAX takes for the same shapes, sharing no code with the library. It is frozen: leave it as it is.

    python limit.py STEPS ENVS EPOCHS MINIBATCHES [HIDDEN]

CartPole's equations, and a network of two hidden layers: STEPS random steps in each of ENVS environments; as many with
the policy; and EPOCHS times MINIBATCHES gradients of the log-likelihood of stored steps, with plain gradient descent.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp


def step(state: jax.Array, action: jax.Array) -> jax.Array:
    x, v, a, w = state
    force = jnp.where(action == 1, 10.0, -10.0)
    temp = (force + 0.05 * w**2 * jnp.sin(a)) / 1.1
    turn = (9.8 * jnp.sin(a) - jnp.cos(a) * temp) / (0.5 * (4 / 3 - 0.1 * jnp.cos(a) ** 2 / 1.1))
    push = temp - 0.05 * turn * jnp.cos(a) / 1.1
    new = jnp.stack([x + 0.02 * v, v + 0.02 * push, a + 0.02 * w, w + 0.02 * turn])
    # Stays in the range where sine and cosine take their usual time.
    return jnp.where(jnp.abs(new[2]) > 0.2, 0.01 * state, new)


def init(key: jax.Array, hidden: int) -> list[tuple[jax.Array, jax.Array]]:
    sizes = (4, hidden, hidden, 2)
    keys = jax.random.split(key, 3)
    return [
        (jax.random.normal(k, (m, n)) / jnp.sqrt(m), jnp.zeros(n))
        for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def logits(params: Any, x: jax.Array) -> jax.Array:
    for weights, bias in params[:-1]:
        x = jnp.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


def rollout(params: Any, key: jax.Array, steps: int, envs: int) -> tuple[jax.Array, jax.Array]:
    def turn(states: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        scores = jnp.zeros((envs, 2)) if params is None else logits(params, states)
        actions = jax.random.categorical(key, scores)
        return jax.vmap(step)(states, actions), (states, actions)

    return jax.lax.scan(turn, 0.01 * jnp.ones((envs, 4)), jax.random.split(key, steps))[1]


def learn(params: Any, states: jax.Array, actions: jax.Array, epochs: int, minibatches: int) -> Any:
    def likelihood(params: Any, states: jax.Array, actions: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(logits(params, states))
        return jnp.mean(jnp.take_along_axis(log_probs, actions[:, None], axis=1))

    def turn(params: Any, index: jax.Array) -> tuple[Any, None]:
        part = lambda x: x.reshape(minibatches, -1, *x.shape[2:])[index % minibatches]  # noqa: E731
        gradient = jax.grad(likelihood)(params, part(states), part(actions))
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), None

    return jax.lax.scan(turn, params, jnp.arange(epochs * minibatches))[0]


def main() -> None:
    steps, envs, epochs, minibatches, *rest = map(int, sys.argv[1:])
    params, key = init(jax.random.key(0), rest[0] if rest else 64), jax.random.key(1)
    random = jax.jit(lambda key: rollout(None, key, steps, envs))
    policy = jax.jit(lambda params, key: rollout(params, key, steps, envs))
    update = jax.jit(lambda params, states, actions: learn(params, states, actions, epochs, minibatches))
    states, actions = policy(params, key)
    calls = {
        "random_seconds": lambda: random(key),
        "rollout_seconds": lambda: policy(params, key),
        "learn_seconds": lambda: update(params, states, actions),
    }
    found: dict[str, Any] = {"env_steps": steps * envs}
    for name, call in calls.items():
        jax.block_until_ready(call())
        seconds = []
        for _ in range(11):
            begin = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - begin)
        found[name] = sorted(seconds)[5]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
