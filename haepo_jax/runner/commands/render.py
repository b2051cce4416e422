"""Shows one episode of a run's policy: `python -m haepo_jax.render run_dir=runs/x`."""

from __future__ import annotations

import dataclasses

from haepo_jax.algorithms.fields import Range
from haepo_jax.messages import number
from haepo_jax.runner.config import SEEDS, ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import output_file, read_run, write_output

HELP = """\
Records one episode of a run's policy as a GIF or an MP4. No display and no OpenGL are needed.

usage: python -m haepo_jax.render <run directory> [key=value ...]

  python -m haepo_jax.render runs/x
  python -m haepo_jax.render runs/x seed=3 checkpoint=best greedy=false episode=7 out=film.mp4

settings (key, default, meaning):
{settings}

Tasks that can be rendered: those of Brax and MuJoCo Playground, and {drawn}. An .mp4 needs
imageio-ffmpeg (pip install imageio-ffmpeg). Invalid settings exit with a one-line error (status 2).
"""


PHYSICS_MILLISECONDS = 40
"""Shortest time between two pictures of a physics task; its control steps are often shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """The settings of `python -m haepo_jax.render`."""

    run_dir: str = setting("", str, "the directory of the run, finished or not (required)")
    seed: int | None = setting(None, int, "which of the run's seeds, by number; null: the first", within=SEEDS)
    checkpoint: str = setting("last", str, "which checkpoint to load", choices=("last", "best"))
    greedy: bool = setting(True, bool, "take the most likely action instead of a sampled one")
    episode: int = setting(0, int, "index among the episodes that haepo_jax.evaluate plays", within=SEEDS)
    max_steps: int = setting(1000, int, "stop a longer episode after this many steps", within=Range(1, 10**6))
    out: str | None = setting(None, str, "the .gif or .mp4 file to write; null: episode.gif in the run's directory")


def _drawn() -> str:
    from haepo_jax.runner.rendering.drawing import DRAWINGS

    return ", ".join(DRAWINGS)


@entry_point(lambda argv: help_text(HELP, RenderConfig, drawn=_drawn()))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, RenderConfig)
    directory = read_run(config.run_dir)
    run = directory.read_config()

    import jax
    import numpy as np

    from haepo_jax.runner.loading import load
    from haepo_jax.runner.program import build
    from haepo_jax.runner.rendering import drawing, film, physics
    from haepo_jax.runner.rendering.episode import record

    # Checked before the policy is loaded, which takes longer.
    env, flat = build(run).env, run.env in drawing.DRAWINGS
    if not flat and not physics.can_be_drawn(env):
        raise ConfigError(f"{run.env} cannot be rendered (--help lists the tasks that can)")
    name = config.out or str(directory.path / "episode.gif")
    suffix = ".mp4" if name.lower().endswith(".mp4") else ".gif"
    out = output_file(name, suffix, " or .mp4")
    film.check_suffix(suffix)

    _, policy = load(directory.path, seed=config.seed, checkpoint=config.checkpoint)
    seen = (lambda state, observation: (state, observation)) if flat else physics.body_poses
    moments, rewards, ended = record(policy, config.episode, seen, greedy=config.greedy, max_steps=config.max_steps)
    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    milliseconds = drawing.DRAWINGS[run.env][1] if flat else 1000 * float(env.inner.dt)
    stride = 1 if flat else max(1, round(PHYSICS_MILLISECONDS / milliseconds))
    shown = [*range(0, len(rewards), stride), len(rewards)]
    captions = [f"step {index}   return {number(returns[index])}" for index in shown]
    pictures = (drawing if flat else physics).pictures(env, *jax.tree.map(lambda x: x[shown], moments))
    write_output(out, film.film(pictures, captions, milliseconds * stride, suffix))
    seed = run.seed if config.seed is None else config.seed
    played = f"{run.algo.name} on {run.env}, seed {seed}, episode {config.episode}"
    end = "" if ended else f", stopped at max_steps={config.max_steps}"
    print(f"{played}: return {number(returns[-1])} in {len(rewards):,} steps{end}")
    print(f"wrote {out} ({out.stat().st_size / 1000:,.0f} kB)")
    return 0
