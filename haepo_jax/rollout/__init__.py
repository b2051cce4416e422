"""Rollouts: complete episodes for trajectory methods, fixed-length segments with auto-reset for PPO and HAEPO.

Environments and policies are functions for one environment; here they are vmapped over B environments that step in
lockstep. The randomness of each environment is derived from its own key and step number, so its results depend neither
on the number of parallel environments nor on how a run is split into calls.
"""

from haepo_jax.rollout.episodes import collect_episodes
from haepo_jax.rollout.segment import RolloutState, Segment, collect_segment, start_environments
from haepo_jax.rollout.stepping import Act, Trajectory, all_finite, environment_keys, to_env_action

__all__ = [
    "Act",
    "RolloutState",
    "Segment",
    "Trajectory",
    "all_finite",
    "collect_episodes",
    "collect_segment",
    "environment_keys",
    "start_environments",
    "to_env_action",
]
