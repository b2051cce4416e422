"""`python -m haepo_jax.render`: GIFs of flat tasks and of physics, one line for the rest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageSequence

import haepo_jax as hx
from haepo_jax.envs.names import list_envs
from haepo_jax.runner import policy_evaluation
from haepo_jax.runner.commands import render
from haepo_jax.runner.config import ConfigError
from haepo_jax.runner.loading import load_run
from haepo_jax.runner.rendering import drawing
from haepo_jax.runner.rendering import film as film_module
from haepo_jax.runner.rendering.drawing import drawing_of
from haepo_jax.runner.run_dir import RunDir
from tests.runner.surviving import flip


@pytest.fixture(scope="module")
def run(finished_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("render") / "run"
    shutil.copytree(finished_runs["cartpole"], path)
    return path


def milliseconds(film: Image.Image) -> int:
    """For which a GIF is shown: equal pictures in a row are one in the file."""
    return sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))


def test_a_film_shows_the_episode_that_evaluation_plays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main([f"run_dir={run}", "seed=4", "episode=2", "greedy=false"]) == 0
    output = capsys.readouterr().out
    algo, policy = hx.load(run, seed=4)
    expected = int(algo.evaluate(policy.state, episodes=8)["return"][2])
    assert f"haepo on CartPole-v1, seed 4, episode 2: return {expected} in {expected} steps" in output
    with Image.open(run / "episode.gif") as film:
        assert film.format == "GIF" and film.info["loop"] == 0 and film.width == 400
        assert milliseconds(film) == 20 * expected + film_module.LAST_FRAME
        colours = film.convert("RGB").getcolors(1 << 16)
        assert colours is not None and len(colours) > 10


def test_a_film_of_a_later_chunk_of_episodes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (policy_evaluation, film_module):
        monkeypatch.setattr(module, "CHUNK", 2)
    algorithm, _, states = load_run(RunDir(run), "last")
    lengths = policy_evaluation.play(algorithm, states, 4, None)["sampled"]["length"][0]
    policy = hx.load(run)[1]
    for episode, length in enumerate(lengths):
        rewards = film_module.record(policy, episode, lambda state: (), greedy=False, max_steps=1000)[1]
        assert len(rewards) == length


def test_a_long_episode_is_cut_and_another_file_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render.main([f"run_dir={run}", "max_steps=3", f"out={tmp_path}/x.GIF"]) == 0
    assert "in 3 steps, stopped at max_steps=3" in capsys.readouterr().out
    with Image.open(tmp_path / "x.GIF") as film:
        assert milliseconds(film) == 20 * 3 + film_module.LAST_FRAME


@pytest.mark.parametrize("name", [name for name in drawing.DRAWINGS if name in list_envs()])
def test_every_task_of_the_table_is_drawn(name: str) -> None:
    env = hx.make_env(name)
    state, _ = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    draw, duration = drawing.DRAWINGS[name]
    picture = draw(env, state)
    assert picture.mode == "RGB" and 10 < picture.height <= 400 and 10 < picture.width <= 400
    colours = picture.getcolors(1 << 18)
    assert colours is not None and len(colours) >= 2, "something is to be seen"
    assert film_module.gif([picture, picture], duration).startswith(b"GIF89a")


def test_minatar_is_drawn_cell_by_cell() -> None:
    env = hx.make_env("Breakout-MinAtar")
    state, observation = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    found = drawing_of(env)
    assert found is not None
    (picture,) = found.pictures([jax.device_get(found.seen(state))])
    cells = np.asarray(picture)[14::28, 14::28]
    paddle = np.argwhere(np.asarray(observation)[..., 0])
    assert len(paddle) == 1 and tuple(cells[tuple(paddle[0])]) == drawing.DARK
    np.testing.assert_array_equal((cells == 255).all(-1), ~np.asarray(observation).any(-1))


PHYSICS = """
from haepo_jax.runner.rendering import physics
physics.prefer_headless()
import sys, jax, mujoco, numpy as np, haepo_jax as hx
from haepo_jax.runner.rendering.drawing import drawing_of
try:
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>")).close()
except Exception as error:
    sys.exit(3)
env = hx.make_env("brax/reacher", backend="spring")
drawing = drawing_of(env)
(qpos,) = drawing.seen(jax.device_get(jax.jit(env.reset)(jax.random.key(0)))[0])
turned = qpos.copy()
turned[0] += 1
first, other, last = (np.asarray(picture, int) for picture in drawing.pictures([(qpos,), (turned,), (qpos,)]))
changed = (first != other).any(axis=-1).mean()
assert first.shape == (physics.HEIGHT, physics.WIDTH, 3) and (first == last).all() and 0.001 < changed < 0.5, changed
"""


def test_a_physics_task_is_drawn_where_its_bodies_are() -> None:
    """In a process of its own: MuJoCo decides for an OpenGL library when it is imported."""
    done = subprocess.run([sys.executable, "-c", PHYSICS], capture_output=True, text=True, env=os.environ)
    if done.returncode == 3:
        pytest.skip("needs OpenGL")
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_without_opengl_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    def renderer(*arguments: object) -> None:
        raise mujoco.FatalError("an OpenGL platform library has not been loaded\nand more")

    monkeypatch.setattr(mujoco, "Renderer", renderer)
    drawing = drawing_of(hx.make_env("brax/reacher", backend="spring"))
    assert drawing is not None
    with pytest.raises(ConfigError, match=r"without OpenGL \(an OpenGL .* loaded\): install EGL .*, or set MUJOCO_GL"):
        next(drawing.pictures([(np.zeros(4),)]))
    assert drawing_of(hx.make_env("brax/fast")) is None and drawing_of(hx.make_env("haepo/bandit")) is None


def test_a_damaged_checkpoint_is_told_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (intact,) = (damaged / "checkpoints").iterdir()
    newest = intact.with_name(intact.name.replace("000000", "000001"))
    shutil.copytree(intact, newest)
    flip(newest)
    assert render.main([f"run_dir={damaged}", "max_steps=2"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and newest.name in error and error.count("\n") == 1


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bandit = tmp_path / "bandit"
    shutil.copytree(run, bandit)
    config = bandit / "config.yaml"
    config.write_text(config.read_text().replace("env: CartPole-v1", "env: haepo/bandit"))
    for arguments, message in [
        ([], "run_dir= is missing"),
        ([f"run_dir={tmp_path}/nowhere"], "is not a directory"),
        ([f"run_dir={bandit}"], "haepo/bandit cannot be rendered"),
        ([f"run_dir={run}", "seed=1"], "seed=1 is not in this run"),
        ([f"run_dir={run}", "out=film.html"], "must end in .gif"),
        ([f"run_dir={run}", f"out={tmp_path}/no/film.gif"], "there is no directory"),
        ([f"run_dir={run}", f"out={'x' * 5000}/film.gif"], "there is no directory"),
        ([f"run_dir={run}", "max_steps=0"], "max_steps=0 is out of range"),
    ]:
        assert render.main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
    assert render.main(["--help"]) == 0 and "classic control" in capsys.readouterr().out
