"""The limit: what bare JAX takes for the same shapes, sharing no code with the library. It is frozen: leave it as it is.

    python limit.py STEPS ENVS EPOCHS MINIBATCHES [cartpole | breakout | inverted_pendulum]

A network of two hidden layers of 64: STEPS random steps in each of ENVS environments; as many with the policy; and EPOCHS
times MINIBATCHES gradients of the log-likelihood of stored steps, with plain gradient descent. CartPole's equations stand
here; Breakout-MinAtar is gymnax's own, seen through one convolution of 16 channels; the inverted pendulum is Brax's own.
An environment that ends goes back to one start, which costs nothing.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

HIDDEN = 64

Task = tuple[Callable[[], Any], Callable[[jax.Array, Any, jax.Array], Any], Callable[[Any], jax.Array], int, bool]
"""() -> state; (key, state, action) -> state; state -> observation; how many outputs; whether actions are continuous."""


def cartpole() -> Task:
    def step(key: jax.Array, state: jax.Array, action: jax.Array) -> jax.Array:
        x, v, a, w = state
        force = jnp.where(action == 1, 10.0, -10.0)
        temp = (force + 0.05 * w**2 * jnp.sin(a)) / 1.1
        turn = (9.8 * jnp.sin(a) - jnp.cos(a) * temp) / (0.5 * (4 / 3 - 0.1 * jnp.cos(a) ** 2 / 1.1))
        push = temp - 0.05 * turn * jnp.cos(a) / 1.1
        new = jnp.stack([x + 0.02 * v, v + 0.02 * push, a + 0.02 * w, w + 0.02 * turn])
        # Stays in the range where sine and cosine take their usual time.
        return jnp.where(jnp.abs(new[2]) > 0.2, 0.01 * state, new)

    return lambda: 0.01 * jnp.ones(4), step, lambda state: state, 2, False


def breakout() -> Task:
    import gymnax

    env, params = gymnax.make("Breakout-MinAtar")
    start = jax.tree.map(jnp.asarray, env.reset_env(jax.random.key(0), params)[1])

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        _, new, _, done, _ = env.step_env(key, state, action, params)
        return jax.tree.map(lambda first, x: jnp.where(done, first, x).astype(first.dtype), start, new)

    return lambda: start, step, lambda state: env.get_obs(state, params).astype(jnp.float32), 3, False


def inverted_pendulum() -> Task:
    from brax import envs

    env = envs.get_environment("inverted_pendulum")
    start = jax.jit(env.reset)(jax.random.key(0))

    def step(key: jax.Array, state: Any, action: jax.Array) -> Any:
        new = env.step(state, action)
        return jax.tree.map(lambda first, x: jnp.where(new.done > 0, first, x).astype(first.dtype), start, new)

    return lambda: start, step, lambda state: state.obs, 1, True


def init(key: jax.Array, observation: jax.Array, outputs: int) -> list[tuple[jax.Array, jax.Array]]:
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, outputs)]
    if observation.ndim == 3:
        height, width, channels = observation.shape
        shapes = [(9 * channels, 16), (16 * (height - 2) * (width - 2), HIDDEN), *shapes]
    else:
        shapes = [(observation.size, HIDDEN), *shapes]
    return [
        (jax.random.normal(key, (m, n)) / jnp.sqrt(m), jnp.zeros(n))
        for key, (m, n) in zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    ]


def outputs(params: Any, x: jax.Array) -> jax.Array:
    if len(params) == 4:  # a 3x3 convolution, as a product of matrices: several times as fast on a CPU
        height, width = x.shape[-3] - 2, x.shape[-2] - 2
        x = jnp.concatenate([x[..., i : i + height, j : j + width, :] for i in range(3) for j in range(3)], axis=-1)
        x = jax.nn.relu(x @ params[0][0] + params[0][1])
        x, params = x.reshape(*x.shape[:-3], -1), params[1:]
    for weights, bias in params[:-1]:
        x = jnp.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


def rollout(task: Task, params: Any, key: jax.Array, steps: int, envs: int) -> tuple[jax.Array, jax.Array]:
    start, step, observe, size, continuous = task

    def turn(states: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        seen = jax.vmap(observe)(states)
        out = jnp.zeros((envs, size)) if params is None else outputs(params, seen)
        action_key, step_key = jax.random.split(key)
        actions = (
            out + jax.random.normal(action_key, out.shape) if continuous else jax.random.categorical(action_key, out)
        )
        return jax.vmap(step)(jax.random.split(step_key, envs), states, actions), (seen, actions)

    states = jax.tree.map(lambda x: jnp.broadcast_to(x, (envs, *x.shape)), start())
    return jax.lax.scan(turn, states, jax.random.split(key, steps))[1]


def learn(task: Task, params: Any, seen: jax.Array, actions: jax.Array, epochs: int, minibatches: int) -> Any:
    def likelihood(params: Any, seen: jax.Array, actions: jax.Array) -> jax.Array:
        out = outputs(params, seen)
        if task[4]:
            return -jnp.mean((actions - out) ** 2) / 2
        return jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), actions[:, None], axis=1))

    def turn(params: Any, index: jax.Array) -> tuple[Any, None]:
        part = lambda x: x.reshape(minibatches, -1, *x.shape[2:])[index % minibatches]  # noqa: E731
        gradient = jax.grad(likelihood)(params, part(seen), part(actions))
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), None

    return jax.lax.scan(turn, params, jnp.arange(epochs * minibatches))[0]


def main() -> None:
    steps, envs, epochs, minibatches = map(int, sys.argv[1:5])
    name = sys.argv[5] if len(sys.argv) > 5 else "cartpole"
    task = {"cartpole": cartpole, "breakout": breakout, "inverted_pendulum": inverted_pendulum}[name]()
    params, key = init(jax.random.key(0), task[2](task[0]()), task[3]), jax.random.key(1)
    random = jax.jit(lambda key: rollout(task, None, key, steps, envs))
    policy = jax.jit(lambda params, key: rollout(task, params, key, steps, envs))
    update = jax.jit(lambda params, seen, actions: learn(task, params, seen, actions, epochs, minibatches))
    seen, actions = policy(params, key)
    calls = {
        "random_seconds": lambda: random(key),
        "rollout_seconds": lambda: policy(params, key),
        "learn_seconds": lambda: update(params, seen, actions),
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
