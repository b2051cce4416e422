"""HAEPO's loss in a custom training loop: a network, a rollout, optax, and `hx.haepo_prefix_loss`."""

import jax
import jax.numpy as jnp
import optax

import haepo_jax as hx
from haepo_jax.rollout import collect_episodes, environment_keys

env = hx.make_env("CartPole-v1")
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3))
params = {"in": 0.5 * jax.random.normal(jax.random.key(0), (4, 32)), "out": jnp.zeros((32, 2))}


def log_probs(params, observation):  # (..., 4) -> (..., 2)
    return jax.nn.log_softmax(jnp.tanh(observation @ params["in"]) @ params["out"])


@jax.jit
def update(params, opt_state, key):
    def act(carry, observation, is_first, action_mask, key):  # selects an action in one environment
        action = jax.random.categorical(key, log_probs(params, observation))
        return carry, action, log_probs(params, observation)[action]

    def loss(params):  # arrays are (time, members): one group of 16 episodes
        current = jnp.sum(log_probs(params, steps.observation) * jax.nn.one_hot(steps.action, 2), axis=-1)
        return hx.haepo_prefix_loss(current, steps.extras, steps.reward, steps.mask)[0]

    steps, returns, _ = collect_episodes(
        env, act, (), environment_keys(key, 16), environment_keys(jax.random.fold_in(key, 1), 16)
    )
    for _ in range(4):  # safe on one batch: the weights saturate once a history has moved far
        changes, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        params = optax.apply_updates(params, changes)
    return params, opt_state, jnp.mean(returns)


opt_state = optimizer.init(params)
for number in range(31):
    params, opt_state, mean_return = update(params, opt_state, jax.random.key(number))
    if number % 5 == 0:
        print(f"update {number}: return {mean_return:.0f}")
