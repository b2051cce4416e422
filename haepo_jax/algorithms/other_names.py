"""Names of settings in other libraries and in earlier versions, for hints about unknown names."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from haepo_jax.messages import did_you_mean

RENAMED = {"history_batches": "replay_batches", "history_bonus": "surprisal_bonus"}
"""Former names of settings of this library."""

_ELSEWHERE = {
    "activation": "act act_fn activation_fn nonlinearity",
    "algo": "agent algorithm alg",
    "anneal_learning_rate": "anneal_lr lr_decay lr_schedule use_linear_lr_decay",
    "clip_eps": "clip clip_coef clip_epsilon clip_param clip_range clip_ratio clipping_epsilon epsilon epsilon_clip eps_clip",
    "clip_eps_high": "epsilon_high",
    "discount": "discount_factor discounting gamma",
    "entropy_coef": "beta_entropy ent_coef entropy_beta entropy_coeff entropy_cost entropy_loss_coef entropy_weight",
    "env": "env_id env_name environment game task",
    "eval_episodes": "eval_num_episodes n_eval_episodes num_eval_envs num_eval_episodes num_evaluation_episodes",
    "gae_lambda": "gae_lam lam lambda_ lmbda",
    "group_size": "num_generations",
    "hidden_sizes": "hidden_dim hidden_dims hidden_layer_sizes hidden_size layer_sizes net_arch policy_hidden_layer_sizes",
    "kl_coef": "beta kl_beta kl_coeff kl_penalty kl_weight",
    "learning_rate": "actor_lr alpha learning_rate_actor lr policy_lr step_size",
    "log_points": "eval_every eval_freq eval_frequency log_every log_freq log_interval num_evals",
    "max_grad_norm": "clip_grad_norm grad_clip grad_norm_clip gradient_clip max_gradient_norm",
    "normalize_advantages": "adv_norm norm_adv normalize_advantage standardize_advantages",
    "normalize_observations": "norm_obs normalize_obs obs_norm",
    "normalize_rewards": "norm_reward normalize_reward reward_norm",
    "num_envs": "n_envs nenvs num_actors num_environments num_workers",
    "num_epochs": "epochs k_epochs n_epochs noptepochs num_updates_per_batch ppo_epochs update_epochs",
    "num_minibatches": "batch_size mini_batch_size minibatch_size n_minibatch n_minibatches nminibatches num_mini_batches",
    "num_seeds": "n_seeds nseeds",
    "num_steps": "horizon n_steps nsteps num_rollout_steps rollout_length rollout_steps steps_per_env unroll_length",
    "run_dir": "exp_dir log_dir logdir out_dir output_dir save_dir save_path tensorboard_log",
    "shared_trunk": "share_layers shared_layers shared_network",
    "state_dependent_std": "state_dependent_log_std",
    "total_steps": "num_env_steps num_timesteps num_updates steps total_env_steps total_timesteps total_updates",
    "value_clip_eps": "clip_range_vf vf_clip_param",
    "value_coef": "critic_coef v_loss_coef value_loss_coef value_loss_weight vf_coef vf_coeff vf_cost",
}
ELSEWHERE = {name: ours for ours, names in _ELSEWHERE.items() for name in names.split()}
"""Names of these settings in Stable-Baselines3, CleanRL, PureJaxRL, rejax, Brax, Stoix, TRL and others."""


def our_name(name: str) -> str | None:
    """The name of a setting in this library, given its name elsewhere; None if unknown."""
    return RENAMED.get(name) or ELSEWHERE.get(name.lower())


def hint(name: str, known: Iterable[str]) -> str:
    """A hint to append to a message about an unknown setting: its name here, or a similar one; "" if there is none.

    Args:
      name: the unknown name, without a prefix.
      known: the valid names, with their prefix, such as `algo.learning_rate`.
    """
    known = list(known)
    ours = our_name(name)
    written = next((full for full in known if full.rpartition(".")[2] == ours), None)
    if written is None:
        return did_you_mean(name, known)
    return f"; it is now named {written!r}" if name in RENAMED else f"; did you mean {written!r}?"


def check_keywords(cls: type, names: Iterable[str]) -> None:
    """Raises TypeError, with a hint, for an unknown keyword argument of a class."""
    fields = getattr(cls, "__dataclass_fields__", ())
    for name in (name for name in names if name not in fields):
        parameters = inspect.signature(cls).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if name not in parameters and not takes_any:
            raise TypeError(f"{cls.__name__} has no hyperparameter {name!r}{hint(name, parameters)}")


class SignatureOfInit:
    """Makes `inspect.signature(cls)` and `help(cls)` show the arguments of `__init__` instead of `__new__`."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])
