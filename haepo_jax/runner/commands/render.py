"""Shows one episode of a run's policy: `python -m haepo_jax.render run_dir=runs/x`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.messages import number
from haepo_jax.runner.config import ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import output_file, read_run, write_output

if TYPE_CHECKING:
    import jax

    from haepo_jax.runner.loading import TrainedPolicy

HELP = """\
Records one episode of a run's policy as a GIF or an MP4. No display and no OpenGL are needed.

usage: python -m haepo_jax.render <run directory> [key=value ...]

  python -m haepo_jax.render runs/x
  python -m haepo_jax.render runs/x seed=3 checkpoint=best greedy=false episode=7 out=film.mp4

settings (key, default, meaning):
{settings}

Tasks that can be drawn: those of Brax and MuJoCo Playground, and {drawn}. An .mp4 needs
imageio-ffmpeg (pip install imageio-ffmpeg). Invalid settings exit with a one-line error (status 2).
"""


PHYSICS_MILLISECONDS = 40
"""How far apart the pictures of a physics task are at least; its control steps are often shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """The settings of `python -m haepo_jax.render`."""

    run_dir: str = setting("", str, "the directory of the run, finished or not (required)")
    seed: int | None = setting(
        None, int, "which of the run's seeds, by its own number; null: the first", within=hp.Range(0, 2**31 - 1)
    )
    checkpoint: str = setting("last", str, "which state of the run", choices=("last", "best"))
    greedy: bool = setting(True, bool, "take the most likely action instead of a sampled one")
    episode: int = setting(0, int, "which of the episodes that haepo_jax.evaluate plays", within=hp.Range(0, 2**31 - 1))
    max_steps: int = setting(1000, int, "stop a longer episode after this many steps", within=hp.Range(1, 10**6))
    out: str | None = setting(None, str, "the .gif or .mp4 file to write; null: episode.gif in the run's directory")


def _help() -> str:
    from haepo_jax.runner.rendering.drawing import DRAWINGS

    return help_text(HELP, RenderConfig, drawn=", ".join(DRAWINGS))


@entry_point(lambda argv: _help())
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, RenderConfig)
    directory = read_run(config.run_dir)
    run = directory.read_config()

    import jax

    from haepo_jax.runner.program import build
    from haepo_jax.runner.rendering import drawing, film, physics

    # Whether there is anything to see is known before the policy is loaded.
    env = build(run).env
    flat = run.env in drawing.DRAWINGS
    if not flat and not physics.can_be_drawn(env):
        raise ConfigError(f"{run.env} has nothing that can be drawn (--help lists the tasks that have)")
    name = str(directory.path / "episode.gif") if config.out is None else config.out
    suffix = ".mp4" if name.lower().endswith(".mp4") else ".gif"
    out = output_file(name, suffix, " or .mp4")
    film.check_suffix(suffix)

    from haepo_jax.runner.loading import load_run, policy_of, warn_of_checkpoint

    algorithm, run, states = load_run(directory, config.checkpoint, warn_of_checkpoint)
    policy = policy_of(algorithm, run, states, config.seed)
    moments, rewards, ended = record(
        policy, config.episode, greedy=config.greedy, max_steps=config.max_steps, flat=flat
    )
    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    milliseconds = drawing.DRAWINGS[run.env][1] if flat else 1000 * float(env.inner.dt)
    stride = 1 if flat else max(1, round(PHYSICS_MILLISECONDS / milliseconds))
    shown = [*range(0, len(rewards), stride), len(rewards)]
    captions = [f"step {index}   return {number(returns[index])}" for index in shown]
    pictures = (drawing if flat else physics).pictures(env, *jax.tree.map(lambda x: x[shown], moments))
    write_output(out, film.film(pictures, captions, milliseconds * stride, suffix))
    title = f"{run.algo.name} on {run.env}"
    seed = run.seed if config.seed is None else config.seed
    end = "" if ended else f", stopped at max_steps={config.max_steps}"
    print(
        f"{title}, seed {seed}, episode {config.episode}: return {number(returns[-1])} in {len(rewards):,} steps{end}"
    )
    print(f"wrote {out} ({out.stat().st_size / 1000:,.0f} kB)")
    return 0


def record(policy: TrainedPolicy, episode: int, *, greedy: bool, max_steps: int, flat: bool) -> tuple[Any, Any, bool]:
    """Plays one episode: the one at this place in `algorithm.evaluate(state)`, to the same keys.

    Returns:
      What is to be drawn at the start and after each step, as NumPy arrays with a leading axis of T + 1: the state and
      the observation where `flat`, otherwise `body_poses`. The rewards (T,). Whether it ended within max_steps.
    """
    import jax
    import jax.numpy as jnp

    from haepo_jax.algorithms.running import EVALUATION_SEED
    from haepo_jax.envs.base import has_action_mask
    from haepo_jax.runner.rendering.physics import body_poses

    horizon = policy.algorithm.env.horizon
    limit = min(horizon, max_steps)

    def moment(state: Any, observation: Any) -> Any:
        return (state, observation) if flat else body_poses(state)

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
            seen = moment(after.state, after.observation)
            return (after.state, after.observation, carry, going), (seen, after.reward, alive, going)

        loop = (state, observation, policy.initial_carry(), jnp.bool_(True))
        _, steps = jax.lax.scan(step, loop, jnp.arange(limit))
        return moment(state, observation), steps

    reset_key, step_key = jax.random.split(jax.random.key(EVALUATION_SEED))
    keys = (jax.random.fold_in(reset_key, episode), jax.random.fold_in(step_key, episode))
    start, (seen, rewards, alive, going) = jax.device_get(jax.jit(play)(policy, *keys))
    length = int(alive.sum())
    moments = jax.tree.map(lambda first, later: np.concatenate([np.asarray(first)[None], later[:length]]), start, seen)
    return moments, np.asarray(rewards[:length], np.float64), not going[length - 1] or length == horizon
