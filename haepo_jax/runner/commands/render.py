"""Shows one episode of a run's policy: `python -m haepo_jax.render run_dir=runs/x`."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from haepo_jax.algorithms import fields as hp
from haepo_jax.runner.commands.evaluate import read_run, warn
from haepo_jax.runner.config import ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.progress import number
from haepo_jax.runner.run_dir import output_file, write_output

if TYPE_CHECKING:
    import jax

    from haepo_jax.runner.loading import TrainedPolicy

HELP = """\
Shows one episode of a run's policy: a GIF of a flat task, a page for the browser of a physics task. Neither needs a
display, and the page needs no network.

usage: python -m haepo_jax.render run_dir=<directory> [key=value ...]

  python -m haepo_jax.render run_dir=runs/x
  python -m haepo_jax.render run_dir=runs/x seed=3 checkpoint=best greedy=false episode=7 out=film.gif

settings (key, default, meaning):
{settings}

Tasks that are drawn as a GIF: {drawn}; as a page: those of Brax and MuJoCo Playground. Settings that cannot be used end
with exit status 2.
"""


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
    max_steps: int = setting(1000, int, "where to stop an episode that is longer", within=hp.Range(1, 10**6))
    out: str | None = setting(None, str, "the file to write; null: episode.gif or episode.html in the run's directory")


def _help() -> str:
    from haepo_jax.runner.rendering.drawing import DRAWINGS

    return help_text(HELP, RenderConfig, drawn=", ".join(DRAWINGS))


@entry_point(lambda argv: _help())
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv).overrides, RenderConfig)
    directory = read_run(config.run_dir)
    run = directory.read_config()

    from haepo_jax.runner.program import build
    from haepo_jax.runner.rendering import drawing, viewer_page

    # Whether there is anything to see is known before the policy is loaded.
    env = build(run).env
    flat = run.env in drawing.DRAWINGS
    if not flat and not viewer_page.can_be_drawn(env):
        raise ConfigError(f"{run.env} has nothing that can be drawn (--help lists the tasks that have)")
    suffix = ".gif" if flat else ".html"
    name = str(directory.path / f"episode{suffix}") if config.out is None else config.out
    out = output_file(name, suffix, f": that is what {run.env} is drawn as")

    from haepo_jax.runner.loading import load_run, policy_of

    algorithm, run, states = load_run(directory, config.checkpoint, warn)
    policy = policy_of(algorithm, run, states, config.seed)
    moments, rewards, ended = record(
        policy, config.episode, greedy=config.greedy, max_steps=config.max_steps, flat=flat
    )
    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    title = f"{run.algo.name} on {run.env}"
    if flat:
        content: str | bytes = _film(env, moments, returns)
    else:
        positions, quaternions = moments
        content = viewer_page.episode_page(env, title, positions, quaternions, returns)
    write_output(out, content)
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
    from haepo_jax.runner.rendering.viewer_page import body_poses

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


def _film(env: Any, moments: Any, returns: Any) -> bytes:
    import jax

    from haepo_jax.runner.rendering.drawing import DRAWINGS, gif

    draw, milliseconds = DRAWINGS[env.name]
    moment = [jax.tree.map(operator.itemgetter(index), moments) for index in range(len(returns))]
    frames = [draw(env, state, observation) for state, observation in moment]
    captions = [f"step {index}   return {number(value)}" for index, value in enumerate(returns)]
    return gif(frames, captions, milliseconds)
