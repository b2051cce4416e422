"""Objects of the user's own as environments."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haepo_jax.envs import Box, Discrete, TimeStep, check_environment, has_action_mask, make_env


class Countdown:
    """A plain object: integer rewards, weakly typed state, a dictionary observation and an action mask."""

    name = "countdown"
    horizon = 7
    observation_space = {"left": Box(-np.inf, np.inf, ()), "parity": Discrete(2)}
    action_space = Discrete(3)

    def reset(self, key):
        state = {"left": 5, "key": key}
        return state, self._observe(state)

    def step(self, key, state, action):
        state = {"left": state["left"] - action, "key": key}
        return TimeStep(state, self._observe(state), -1, state["left"] <= 0, False)

    def action_mask(self, state):
        return jnp.arange(3) <= state["left"]

    def _observe(self, state):
        return {"left": 1.0 * state["left"], "parity": jnp.asarray(state["left"]) % 2}


def test_plain_object_becomes_a_pytree_without_leaves():
    obj = Countdown()
    env = make_env(obj)
    assert jax.tree.leaves(env) == [] and (env.name, env.horizon) == ("countdown", 7)
    assert has_action_mask(env) and not has_action_mask(make_env("haepo/bandit"))
    # The same object twice is the same static structure: no second compilation.
    assert jax.tree.structure(env) == jax.tree.structure(make_env(obj))
    assert jax.tree.structure(env) != jax.tree.structure(make_env(Countdown()))

    @jax.jit
    def episode(env, key):
        state, _ = env.reset(key)

        def body(carry):
            state, total, _ = carry
            step = env.step(state["key"], state, jnp.int32(2))
            return step.state, total + step.reward, step.terminated

        return jax.lax.while_loop(lambda carry: ~carry[2], body, (state, jnp.float32(0), jnp.bool_(False)))

    state, total, _ = jax.vmap(episode, (None, 0))(env, jax.random.split(jax.random.key(0), 3))
    assert total.tolist() == [-3, -3, -3] and state["left"].tolist() == [-1, -1, -1]
    assert env.action_mask({"left": 1}).tolist() == [True, True, False]


def test_registered_pytree_is_returned_as_it_is():
    env = make_env("haepo/random_walk")
    assert make_env(env) is env
    assert make_env("haepo/random_walk").name == env.name


def spoilt(**changes):
    obj = Countdown()
    for name, value in changes.items():
        setattr(obj, name, value)
    return obj


def step_with(**changes):
    def step(key, state, action):
        return Countdown().step(key, state, action)._replace(**changes)

    return spoilt(step=step)


@pytest.mark.parametrize(
    ("obj", "error", "message"),
    [
        (SimpleNamespace(name="x", reset=None), TypeError, "no horizon, observation_space, action_space, step"),
        (None, TypeError, "NoneType is not an environment"),
        (Countdown, TypeError, "pass an instance"),
        (spoilt(horizon=0), ValueError, "horizon must be at least 1"),
        (spoilt(horizon="7"), TypeError, "horizon must be an integer, got '7'"),
        (spoilt(action_space=3), TypeError, "action_space must consist of Discrete, MultiDiscrete and Box, got 3"),
        (spoilt(action_space=[Discrete(2)]), TypeError, "action_space may nest dicts and tuples only"),
        (spoilt(observation_space=Box(0, 1, (2,))), TypeError, "a different structure than observation_space"),
        (spoilt(observation_space=SimpleNamespace(n=2)), TypeError, "must consist of Discrete, MultiDiscrete and Box"),
        (
            spoilt(observation_space={"left": Box(0, 1, (2,)), "parity": Discrete(2)}),
            TypeError,
            "observation of reset is float32",
        ),
        (spoilt(step=lambda key, state, action: (state, 0)), TypeError, "step must return a TimeStep"),
        (
            spoilt(action_space=Box(0, 7, (2,), np.int32)),
            TypeError,
            "action_space has a Box of int32, but the actions of a Box must be floating point; use Discrete or MultiDiscrete",
        ),
        (step_with(reward=jnp.zeros(3)), TypeError, "reward must be a scalar"),
        (step_with(truncated={}), TypeError, "step must return a TimeStep, whose truncated is a scalar, got dict"),
        (step_with(terminated=jnp.zeros(2, bool)), TypeError, "terminated must be a scalar"),
        (step_with(state={"left": 0}), TypeError, "structure differs between reset and step"),
        (
            step_with(state={"left": 1.5, "key": jax.random.key(0)}),
            TypeError,
            r"the state\['left'\] is int32 \(\).* before a step and float32",
        ),
        (spoilt(action_mask=lambda state: jnp.ones(2, bool)), TypeError, r"action_mask must be bool \(3,\)"),
        (spoilt(action_mask=jnp.ones(3, bool)), TypeError, r"action_mask must be a method, action_mask\(state\)"),
    ],
)
def test_objects_that_break_the_protocol(obj, error, message):
    with pytest.raises(error, match=message) as raised:
        make_env(obj)
    assert "\n" not in str(raised.value)


def test_check_of_a_registered_environment():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Weak:
        gain: jax.Array
        name: str = dataclasses.field(default="weak", metadata={"static": True})
        horizon: int = dataclasses.field(default=3, metadata={"static": True})
        observation_space = Box(-np.inf, np.inf, ())
        action_space = Box(-1.0, 1.0, ())

        def reset(self, key):
            return jnp.float32(0), jnp.float32(0)

        def step(self, key, state, action):
            return TimeStep(jnp.asarray(1.0), self.gain, jnp.int32(0), jnp.bool_(True), jnp.bool_(False))

    with pytest.raises(TypeError, match="weakly typed after step|reward must be a float32 scalar"):
        check_environment(Weak(jnp.float32(1)))


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("horizon", "moving: horizon must depend on static fields"),
        ("name", "moving: name is no number, so it must be a static"),
    ],
)
def test_what_must_not_be_traced_is_a_static_field(leaf, message):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Moving(Countdown):
        name: str = dataclasses.field(default="moving", metadata={"static": leaf != "name"})
        horizon: int = dataclasses.field(default=7, metadata={"static": leaf != "horizon"})

    with pytest.raises(TypeError, match=message):
        make_env(Moving())


def test_a_horizon_that_is_computed_from_an_array():
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Moving(Countdown):
        steps: int = 3

        @property
        def horizon(self):
            return int(self.steps)

    with pytest.raises(TypeError, match="countdown: horizon must depend on static fields"):
        make_env(Moving())
