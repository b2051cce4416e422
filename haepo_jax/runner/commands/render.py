"""Records one episode of a run's policy as a GIF: `python -m haepo_jax.render run_dir=runs/x`."""

from __future__ import annotations

import dataclasses
import operator

from haepo_jax.algorithms.fields import Range
from haepo_jax.messages import number
from haepo_jax.runner.config import SEEDS, ConfigError, setting
from haepo_jax.runner.config.arguments import compose, read_arguments
from haepo_jax.runner.config.help import help_text
from haepo_jax.runner.entry import entry_point
from haepo_jax.runner.run_dir import output_file, read_run, write_output

HELP = """\
Records one episode of a run's policy as a GIF. No display is needed.

usage: python -m haepo_jax.render <run directory> [key=value ...]

  python -m haepo_jax.render runs/x
  python -m haepo_jax.render runs/x seed=3 checkpoint=best greedy=false episode=7 out=film.gif

settings (key, default, meaning):
{settings}

Supported environments: Brax and MuJoCo Playground, drawn by MuJoCo with OpenGL (EGL, unless MUJOCO_GL names another
backend), and gymnax's classic control and MinAtar. Invalid settings exit with a one-line error (status 2).
"""

SHORTEST_MILLISECONDS = 25
"""Between two pictures, roughly; the steps of a physics task are often shorter."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """The settings of `python -m haepo_jax.render`."""

    run_dir: str = setting("", str, "directory of the run, finished or not (required)")
    seed: int | None = setting(None, int, "one of the run's seeds; null: the first", within=SEEDS)
    checkpoint: str = setting("last", str, "which checkpoint to load", choices=("last", "best"))
    greedy: bool = setting(True, bool, "take the most likely action instead of a sampled one")
    episode: int = setting(0, int, "index among the episodes that haepo_jax.evaluate plays", within=SEEDS)
    max_steps: int = setting(1000, int, "stop a longer episode after this many steps", within=Range(1, 10**6))
    out: str | None = setting(None, str, "the .gif file to write; null: episode.gif in the run's directory")


@entry_point(lambda argv: help_text(HELP, RenderConfig))
def main(argv: list[str]) -> int:
    """Runs the command line; returns its exit status: 0, or 2 for settings that cannot be used."""
    config = compose(read_arguments(argv, positional="run_dir").overrides, RenderConfig)
    directory = read_run(config.run_dir)
    run = directory.read_config()

    from haepo_jax.runner.rendering import physics

    physics.prefer_headless()
    import jax

    from haepo_jax.runner.loading import TrainedPolicy, load_run, seed_index
    from haepo_jax.runner.program import build
    from haepo_jax.runner.rendering import film
    from haepo_jax.runner.rendering.drawing import drawing_of

    # Checked before the policy is loaded, which takes longer.
    algorithm = build(run)
    drawing = drawing_of(algorithm.env)
    if drawing is None:
        raise ConfigError(f"{run.env} cannot be rendered (--help lists the tasks that can)")
    out = output_file(config.out or str(directory.path / "episode.gif"), ".gif")

    _, _, states = load_run(directory, config.checkpoint, algorithm)
    index = seed_index(run.seed_numbers, config.seed)
    policy = TrainedPolicy(algorithm, jax.tree.map(lambda x: x[index], states))
    moments, rewards, ended = film.record(
        policy, config.episode, drawing.seen, greedy=config.greedy, max_steps=config.max_steps
    )
    stride = max(1, round(SHORTEST_MILLISECONDS / drawing.milliseconds))
    shown = [*range(0, len(rewards), stride), len(rewards)]
    pictures = drawing.pictures(jax.tree.map(operator.itemgetter(index), moments) for index in shown)
    write_output(out, film.gif(pictures, drawing.milliseconds * stride))
    played = f"{run.algo.name} on {run.env}, seed {run.seed_numbers[index]}, episode {config.episode}"
    end = "" if ended else f", stopped at max_steps={config.max_steps}"
    print(f"{played}: return {number(rewards.sum())} in {len(rewards):,} steps{end}")
    print(f"wrote {out} ({out.stat().st_size / 1000:,.0f} kB)")
    return 0
