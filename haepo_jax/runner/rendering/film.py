"""One episode of a trained policy: played and recorded, and as a GIF."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from haepo_jax.algorithms.running import EVALUATION_SEED
from haepo_jax.envs.base import has_action_mask
from haepo_jax.runner.loading import TrainedPolicy
from haepo_jax.runner.policy_evaluation import CHUNK, chunk_key

LAST_FRAME = 1000
"""Milliseconds for which the last picture is shown."""
PALETTE = 64


def record(
    policy: TrainedPolicy, episode: int, seen: Callable[[Any], Any], *, greedy: bool, max_steps: int
) -> tuple[Any, Any, bool]:
    """Plays the episode with this index in `python -m haepo_jax.evaluate`, from the same random keys.

    Args:
      seen: (state) -> what to record of a step.

    Returns:
      What was recorded at the start and after each step, as NumPy arrays with a leading axis of T + 1; the rewards (T,);
      and whether the episode ended within max_steps.
    """
    horizon = policy.algorithm.env.horizon

    def play(policy: TrainedPolicy, reset_key: jax.Array, step_key: jax.Array) -> Any:
        env = policy.algorithm.env
        state, observation = env.reset(reset_key)

        def step(loop: Any, time: jax.Array) -> Any:
            state, observation, carry, alive = loop
            action_key, env_key = jax.random.split(jax.random.fold_in(step_key, time))
            action_mask = env.action_mask(state) if has_action_mask(env) else None
            carry, action = policy.act(carry, observation, time == 0, None if greedy else action_key, action_mask)
            after = env.step(env_key, state, action)
            going = alive & ~(after.terminated | after.truncated)
            moment = seen(after.state)
            return (after.state, after.observation, carry, going), (moment, after.reward, alive, going)

        loop = (state, observation, policy.initial_carry(), jnp.bool_(True))
        return seen(state), jax.lax.scan(step, loop, jnp.arange(min(horizon, max_steps)))[1]

    chunk, index = divmod(episode, CHUNK)
    key = chunk_key(jax.random.key(EVALUATION_SEED), chunk)
    keys = [jax.random.fold_in(part, index) for part in jax.random.split(key)]
    start, (later, rewards, alive, going) = jax.device_get(jax.jit(play)(policy, *keys))
    length = int(alive.sum())
    moments = jax.tree.map(lambda x, y: np.concatenate([np.asarray(x)[None], y[:length]]), start, later)
    return moments, np.asarray(rewards[:length], np.float64), not going[length - 1] or length == horizon


def gif(frames: Iterable[Image.Image], milliseconds: float) -> bytes:
    """A GIF of pictures of one size; `milliseconds` are between two of them."""
    pictures = list(frames)
    # One palette for all, from pictures spread over the episode: with a palette each, colours flicker.
    chosen = [np.asarray(pictures[index]) for index in np.linspace(0, len(pictures) - 1, 8).astype(int)]
    palette = Image.fromarray(np.concatenate(chosen)).quantize(PALETTE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    # A GIF counts in hundredths of a second.
    durations = [max(20, 10 * round(milliseconds / 10))] * (len(small) - 1) + [LAST_FRAME]
    file = io.BytesIO()
    small[0].save(file, "GIF", save_all=True, append_images=small[1:], duration=durations, loop=0)
    return file.getvalue()
