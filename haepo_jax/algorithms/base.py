"""What every algorithm shares: the train state, schedules, the optimiser, evaluation and the loop over updates.

An algorithm is a frozen pytree. Its methods are pure, so they jit, vmap and scan; its numeric hyperparameters are
leaves, so `jax.vmap(lambda lr: algo.replace(learning_rate=lr).train(key))(rates)` trains them all at once.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from haepo_jax.action_outputs import squashed
from haepo_jax.algorithms import hyperparameters
from haepo_jax.algorithms.other_names import SignatureOfInit, check_keywords
from haepo_jax.counting import StepCount
from haepo_jax.distributions import Distribution, action_distribution
from haepo_jax.envs import make_env
from haepo_jax.envs.base import check_environment
from haepo_jax.losses import AUTO
from haepo_jax.networks import Policy, as_policy, default_policy, default_value
from haepo_jax.normalization import RunningStatistics
from haepo_jax.rollout import collect_episodes, environment_keys
from haepo_jax.sequence_networks import sequence_policy
from haepo_jax.spaces import Box, Space, space_leaves
from haepo_jax.unbatched import any_in_batch, hold_finished

Metrics = dict[str, jax.Array]

EVALUATION_SEED = 0x5EED


CAUSES = ("the loss", "the gradients", "the parameters after the step", "the optimiser's state")
"""What `Health.cause` counts: bit i is set where the i-th was not finite."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Health:
    """What became of updates that were not finite; all () int32.

    Attributes:
      skipped: how many were dropped (`on_nan="skip"`).
      diverged_at: the update that ended the run (`on_nan="stop"`), or -1; the state stays as it was before that update.
      cause: of the last one; see `CAUSES`.
      invalid_episodes: how many the environment spoilt with an observation or reward that was not finite.
    """

    skipped: jax.Array
    diverged_at: jax.Array
    cause: jax.Array
    invalid_episodes: jax.Array

    @property
    def diverged(self) -> jax.Array:
        return self.diverged_at >= 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that one update needs from the one before.

    Attributes:
      params: of the policy being optimised, and of the value function where there is one.
      opt_state: of optax.
      reference: parameters of the frozen policy that a KL or a preference is measured against; None where it is always
        the policy that collected the batch.
      normalizer: running statistics of observations, or None where they are not normalised.
      extra: what some algorithms keep beside, such as environments in mid-episode.
      key: the run's typed PRNG key, never changed; randomness is folded in from it by update and lane.
      update: () int32, updates done.
      env_steps: live environment steps done.
      health: whether an update went wrong.
    """

    params: Any
    opt_state: Any
    reference: Any
    normalizer: RunningStatistics | None
    extra: Any
    key: jax.Array
    update: jax.Array
    env_steps: StepCount
    health: Health


class Start(NamedTuple):
    """What a training starts from in place of fresh weights: a policy's parameters, and the normaliser it was trained
    with or None; see `haepo_jax.load`."""

    params: Any
    normalizer: RunningStatistics | None


@dataclasses.dataclass(frozen=True)
class Algorithm(hyperparameters.Common):
    """The base of `HAEPO`, `EpisodicHAEPO`, `PPO`, `GRPO` and `DPO`, which add `_update`.

    Attributes:
      env: an environment, its name, or an environment object of another library; see `make_env`.
      policy: a Flax Linen module, a function rngs -> NNX module, or an object with `init` and `apply`; None: the
        network that `network` names, for the environment's spaces.

    Raises:
      HyperparameterError: at construction, for a value that cannot be used.
    """

    env: Any
    policy: Any = dataclasses.field(default=None, kw_only=True, metadata={"static": True})

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        check_keywords(cls, keywords)
        return super().__new__(cls)

    __signature__ = SignatureOfInit()

    def __post_init__(self) -> None:
        # jax rebuilds the object with tracers and placeholders in its leaves, so every step here leaves those alone.
        if isinstance(self.env, str) or type(self.env) is tuple or jax.tree_util.all_leaves([self.env]):
            object.__setattr__(self, "env", make_env(self.env))
        if self.policy is not None:
            object.__setattr__(self, "policy", as_policy(self.policy))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata.get("kind") is tuple and isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            elif field.metadata.get("scheduled") and callable(value) and not isinstance(value, jax.tree_util.Partial):
                object.__setattr__(self, field.name, jax.tree_util.Partial(value))
            elif isinstance(value, str) and value == "auto" and field.metadata.get("word") == "auto":
                object.__setattr__(self, field.name, AUTO)
        self.check()
        if hasattr(self.env, "action_space"):
            self._check_actions()

    def replace(self, **changes: Any) -> Self:
        """The same algorithm with some hyperparameters changed; numbers may be tracers."""
        return dataclasses.replace(self, **changes)

    # Parts that follow from the environment and the hyperparameters.

    @property
    def policy_network(self) -> Policy:
        """The policy as a pair of pure functions."""
        return self.policy or self.default_network(self.env.action_space)

    def default_network(self, action_space: Space | None, with_features: bool = False) -> Policy:
        """The network that `network` names: a policy, or with None for an action space a value function. A policy
        `with_features` puts out a pair, of its output and its last hidden layer."""
        space = self.env.observation_space
        if self.network != "mlp":
            context = min(self.context or self.env.horizon, self.env.horizon)
            return sequence_policy(
                self.network, space, action_space, hidden_sizes=self.hidden_sizes, activation=self.activation, layer_norm=self.layer_norm,
                num_heads=self.num_heads, context=context, state_dependent_std=self.state_dependent_std,
                with_features=with_features,
            )  # fmt: skip
        if action_space is None:
            return default_value(space, self.hidden_sizes, self.activation, self.layer_norm)
        hidden = self.hidden_sizes, self.activation, self.layer_norm
        return default_policy(space, action_space, *hidden, self.state_dependent_std, with_features)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Clipping and Adam, without the step size, which follows the share of live steps done."""
        return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), optax.scale_by_adam(eps=1e-5))

    def scheduled(self, progress: jax.Array) -> Self:
        """This algorithm with every schedule replaced by its value at `progress` () in [0, 1]."""
        values = {}
        for field in dataclasses.fields(self):
            if field.metadata.get("scheduled"):
                value = getattr(self, field.name)
                if (
                    field.name == "learning_rate"
                    and self.anneal_learning_rate
                    and not isinstance(value, tuple)
                    and not callable(value)
                ):
                    value = (value, 0.0)
                if isinstance(value, tuple):
                    value = optax.linear_schedule(*value, transition_steps=1)(progress)
                elif callable(value):
                    value = value(progress)
                values[field.name] = value
        return self.replace(**values)

    # The life of a run.

    def init(self, key: jax.Array, start: Start | None = None) -> TrainState:
        """A fresh train state from a typed PRNG key (`jax.random.key(seed)`).

        With `start` the policy begins there, and so does a reference policy that is kept: `algo.init(key, policy.start)`
        for a policy that `haepo_jax.load` gave. A value function begins afresh.

        Raises:
          ValueError: `start` is of another network, or its observations were normalised and these are not.
        """
        check_environment(self.env)
        params_key, run_key = jax.random.split(key)
        observation = self._example_observation()
        params = self._init_params(params_key, observation)
        normalize = self.normalize_observations
        if normalize is None:
            normalize = any(isinstance(part, Box) for part in space_leaves(self.env.action_space))
        normalizer = RunningStatistics.of(observation) if normalize else None
        if start is not None:
            _check_fits(start, Start(self.policy_params(params), normalizer))
            params, normalizer = self._with_policy(params, start.params), start.normalizer
        state = TrainState(
            params=params,
            opt_state=self.optimizer.init(params),
            reference=self._init_reference(params),
            normalizer=normalizer,
            extra=None,
            key=run_key,
            update=jnp.int32(0),
            env_steps=StepCount.of(0),
            health=Health(jnp.int32(0), jnp.int32(-1), jnp.int32(0), jnp.int32(0)),
        )
        return dataclasses.replace(state, extra=self._init_extra(state))

    def train_step(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One update: rollout, loss, optimisation. The metrics are float32 scalars with one fixed set of names.

        An update whose loss, gradients or result is not finite is dropped. With `on_nan="skip"` it is counted and the
        run goes on with new episodes; with `on_nan="stop"` the state is frozen as it was before it.
        """
        new, metrics = self._update(state)
        finite = jnp.stack([_all_finite(x) for x in (metrics["loss"], metrics["grad_norm"], new.params, new.opt_state)])
        sick = ~jnp.all(finite)
        invalid = state.health.invalid_episodes + jnp.int32(metrics.get("invalid_episodes", 0))
        cause = jnp.where(sick, jnp.sum(~finite * 2 ** jnp.arange(len(CAUSES))), state.health.cause).astype(jnp.int32)
        if self.on_nan == "skip":
            health = Health(state.health.skipped + sick, state.health.diverged_at, cause, invalid)
            dropped = dataclasses.replace(state, extra=new.extra, update=new.update, env_steps=new.env_steps)
        else:
            frozen_already = state.health.diverged
            sick |= frozen_already
            diverged_at = jnp.where(frozen_already | ~sick, state.health.diverged_at, state.update)
            health = Health(
                state.health.skipped, diverged_at, jnp.where(frozen_already, state.health.cause, cause), invalid
            )
            dropped = state
        kept = jax.tree.map(lambda x, old: jnp.where(sick, old, x), new, dropped)
        return dataclasses.replace(kept, health=health), metrics

    def _update(self, state: TrainState) -> tuple[TrainState, Metrics]:
        raise TypeError(f"{type(self).__name__} has no _update of its own")

    def advance(self, state: TrainState, until: StepCount) -> tuple[TrainState, Metrics]:
        """Updates until `until` live steps are done; the metrics are the last update's (NaN where there was none)."""

        def unfinished(state: TrainState) -> jax.Array:
            return (state.env_steps < until) & ~state.health.diverged

        def step(loop: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            return hold_finished(unfinished(loop[0]), train_step(loop[0]), loop)

        train_step = jax.jit(self.train_step)  # traced once, for its shapes and for the loop
        shapes = jax.eval_shape(train_step, state)[1]
        nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
        return jax.lax.while_loop(lambda loop: any_in_batch(unfinished(loop[0])), step, (state, nothing))

    def evaluate(
        self,
        state: TrainState,
        *,
        episodes: int = 128,
        greedy: bool = False,
        key: jax.Array | None = None,
        max_steps: int | None = None,
    ) -> dict[str, jax.Array]:
        """Plays complete episodes with the current policy.

        Args:
          state: of the run.
          episodes: how many, side by side.
          greedy: take each distribution's mode instead of a sample.
          key: of starts, actions and transitions; by default one fixed key, shared by all runs and seeds, so that
            differences between them are not differences of luck.
          max_steps: end episodes after as many steps, if that is less than the environment's horizon.

        Returns:
          `return` (episodes,) float32 and `length` (episodes,) int32.
        """
        key = jax.random.key(EVALUATION_SEED) if key is None else key
        return self._evaluate(state, episodes, jnp.bool_(greedy), key, max_steps)

    def _evaluate(
        self, state: TrainState, episodes: int, greedy: jax.Array, key: jax.Array, max_steps: int | None = None
    ) -> dict[str, jax.Array]:
        reset_key, step_key = jax.random.split(key)

        def act(
            carry: Any, observation: Any, is_first: jax.Array, action_mask: Any, key: jax.Array
        ) -> tuple[Any, jax.Array, None]:
            carry, distribution = self.act_distribution(state, carry, observation, is_first, action_mask)
            choose = lambda mode, sample: jnp.where(greedy, mode, sample)  # noqa: E731
            return carry, jax.tree.map(choose, distribution.mode(), distribution.sample(key)), None

        # Where an algorithm is a constant of the compiled program, the compiler would compute ahead with the environment's
        # numbers and round differently; so evaluation is the same to the last bit inside `jax.jit` and outside.
        env = jax.lax.optimization_barrier(self.env)
        reset_keys, step_keys = environment_keys(reset_key, episodes), environment_keys(step_key, episodes)
        _, returns, lengths = collect_episodes(
            env, act, self.initial_carry(), reset_keys, step_keys, record=False, max_steps=max_steps
        )
        return {"return": returns, "length": lengths}

    def train(self, key: jax.Array, start: Start | None = None) -> tuple[TrainState, dict[str, Any]]:
        """The whole run, one compiled program under `jax.jit`; with `start` from there, as `init` says.

        Returns:
          The final state, and a history of `log_points` rows evenly spaced in live steps: the metrics of the last update
          before each point, `env_steps` (a `StepCount`), `update`, and the mean `eval_return`, `eval_return_greedy`
          and `eval_length` of `eval_episodes` episodes. Where one update passes several points, their rows repeat.
        """
        points = [-(-self.total_steps * (row + 1) // self.log_points) for row in range(self.log_points)]
        until = StepCount(
            jnp.array([p >> 32 for p in points], jnp.uint32), jnp.array([p & 0xFFFFFFFF for p in points], jnp.uint32)
        )
        state = self.init(key, start)
        shapes = jax.eval_shape(self.train_step, state)[1]

        def row(
            loop: tuple[TrainState, Metrics], until: StepCount
        ) -> tuple[tuple[TrainState, Metrics], dict[str, Any]]:
            state, metrics = self.advance(loop[0], until)
            passed = state.update > loop[0].update
            metrics = jax.tree.map(lambda new, old: jnp.where(passed, new, old), metrics, loop[1])
            return (state, metrics), {**metrics, **self.progress(state)}

        nothing = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), shapes)
        (state, _), history = jax.lax.scan(row, (state, nothing), until)
        return state, history

    def progress(self, state: TrainState, max_steps: int | None = None) -> dict[str, Any]:
        """What a row of the history has beside the metrics: counters, and an evaluation where `eval_episodes` > 0;
        `max_steps` as in `evaluate`."""
        row: dict[str, Any] = {"env_steps": state.env_steps, "update": state.update}
        if self.eval_episodes:
            # Both kinds in one loop: it then takes as many steps as the longest episode, not as the two longest.
            both = jax.vmap(
                lambda greedy: self._evaluate(
                    state, self.eval_episodes, greedy, jax.random.key(EVALUATION_SEED), max_steps
                )
            )
            played = both(jnp.array([False, True]))
            row["eval_return"], row["eval_return_greedy"] = jnp.mean(played["return"], axis=1)
            row["eval_length"] = jnp.mean(played["length"][0].astype(jnp.float32))
        return row

    # The policy as a function.

    def initial_carry(self) -> Any:
        """The carry of one environment's policy before its first step."""
        # The carry holds no parameters, so under jit the initialisation of those is dead code.
        return self.policy_network.init(jax.random.key(0), self._example_observation())[1]

    def act_distribution(
        self, state: TrainState, carry: Any, observation: Any, is_first: jax.Array, action_mask: jax.Array | None = None
    ) -> tuple[Any, Distribution]:
        """The action distribution of the current policy in one environment, and its next carry."""
        observation = self.normalized(state.normalizer, observation)
        carry, output = self.policy_network.apply(self.policy_params(state.params), carry, observation, is_first)
        return carry, self.distribution(output, action_mask)

    def distribution(self, output: Any, action_mask: jax.Array | None) -> Distribution:
        """The action distribution of a policy network's output."""
        if self.squash_actions:
            output = squashed(self.env.action_space, output)
        return action_distribution(self.env.action_space, output, action_mask)

    @staticmethod
    def policy_params(params: Any) -> Any:
        """The policy's part of the parameters."""
        return params

    @staticmethod
    def _with_policy(params: Any, policy_params: Any) -> Any:
        """The parameters with another policy's in place of the policy's."""
        return policy_params

    def normalized(self, normalizer: RunningStatistics | None, observation: Any) -> Any:
        """An observation as the networks see it; what counts choices stays the integers that the networks make one-hot."""
        if normalizer is None:
            return observation
        leaves, structure = jax.tree.flatten(observation)
        parts = zip(
            space_leaves(self.env.observation_space),
            leaves,
            jax.tree.leaves(normalizer.normalize(observation)),
            strict=True,
        )
        return jax.tree.unflatten(structure, [seen if isinstance(space, Box) else raw for space, raw, seen in parts])

    # What an algorithm may override.

    def _check_actions(self) -> None:
        boxes = [part for part in space_leaves(self.env.action_space) if isinstance(part, Box)]
        for name in ("squash_actions", "state_dependent_std"):
            if getattr(self, name) and not boxes:
                raise hyperparameters.HyperparameterError(
                    f"{name}=true needs continuous actions, and those of {self.env.name} are discrete"
                )
        if self.squash_actions and not all(box.bounded for box in boxes):
            raise hyperparameters.HyperparameterError(
                f"squash_actions=true needs bounded actions, and those of {self.env.name} have no bounds"
            )

    def _init_params(self, key: jax.Array, observation: Any) -> Any:
        return self.policy_network.init(key, observation)[0]

    def _init_reference(self, params: Any) -> Any:
        return None

    def _init_extra(self, state: TrainState) -> Any:
        return None

    def _example_observation(self) -> Any:
        shapes = jax.eval_shape(self.env.reset, jax.random.key(0))[1]
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def _optimize(self, params: Any, opt_state: Any, gradients: Any) -> tuple[Any, Any]:
        """One optimiser step; `self` must be `scheduled`."""
        updates, opt_state = self.optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, jax.tree.map(lambda u: -self.learning_rate * u, updates)), opt_state


def _check_fits(start: Start, own: Start) -> None:
    """Raises ValueError, in one line, where one policy cannot start from another's parameters."""
    if (start.normalizer is None) != (own.normalizer is None):
        there, here = ("normalised", "are not") if own.normalizer is None else ("not normalised", "are")
        raise ValueError(f"the policy to start from saw observations that were {there}, and these {here}")
    named = [
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (start, own)
    ]
    for name in {**named[1], **named[0]}:
        there, here = (str(shapes.get(name, "missing")) for shapes in named)
        if there != here:
            raise ValueError(f"the policy to start from has another network: {name} is {there} there and {here} here")


def _all_finite(tree: Any) -> jax.Array:
    # As one vector: a reduction for each leaf takes seconds to compile.
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.isfinite(jnp.concatenate([jnp.ravel(x) for x in leaves])))
