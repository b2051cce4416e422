"""`python -m haepo_jax.render`: films of flat tasks and of physics, one line for the rest."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import haepo_jax as hx
from haepo_jax.envs.names import list_envs, tasks_of
from haepo_jax.runner.commands import render
from haepo_jax.runner.rendering import drawing, film, physics


@pytest.fixture(scope="module")
def run(finished_runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("render") / "run"
    shutil.copytree(finished_runs["cartpole"], path)
    return path


def test_a_film_shows_the_episode_that_evaluation_plays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.main([f"run_dir={run}", "seed=4", "episode=2", "greedy=false"]) == 0
    output = capsys.readouterr().out
    algo, policy = hx.load(run, seed=4)
    expected = int(algo.evaluate(policy.state, episodes=8)["return"][2])
    assert f"haepo on CartPole-v1, seed 4, episode 2: return {expected} in {expected} steps" in output
    with Image.open(run / "episode.gif") as film:
        assert film.format == "GIF" and film.n_frames == expected + 1 and film.info["loop"] == 0
        assert film.info["duration"] == 20 and film.width == 400
        film.seek(expected)
        colours = film.convert("RGB").getcolors(1 << 16)
        assert colours is not None and len(colours) > 10


def test_a_long_episode_is_cut_and_another_file_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert render.main([f"run_dir={run}", "max_steps=3", f"out={tmp_path}/x.GIF"]) == 0
    assert "in 3 steps, stopped at max_steps=3" in capsys.readouterr().out
    with Image.open(tmp_path / "x.GIF") as film:
        assert film.n_frames == 4


@pytest.mark.parametrize("name", [name for name in drawing.DRAWINGS if name in list_envs()])
def test_every_task_of_the_table_is_drawn(name: str) -> None:
    env = hx.make_env(name)
    state, observation = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    draw, milliseconds = drawing.DRAWINGS[name]
    picture = draw(env, state, observation)
    assert picture.mode == "RGB" and 10 < picture.height <= 400 and 10 < picture.width <= 400
    colours = picture.getcolors(1 << 18)
    assert colours is not None and len(colours) >= 2, "something is to be seen"
    assert film.film([picture, picture], ["one", "two"], milliseconds, ".gif").startswith(b"GIF89a")


def test_a_physics_task_is_drawn_where_its_bodies_are() -> None:
    env = hx.make_env("brax/reacher", backend="spring")
    state, _ = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    poses = physics.body_poses(state)
    assert poses is not None and physics.can_be_drawn(env)
    positions, quaternions = (np.stack([x, x, x]) for x in poses)
    moved = positions.copy()
    moved[1, 1:] += [0.0, 0.0, 0.1]  # all but the body that the camera follows
    first, lifted, last = (np.asarray(picture, int) for picture in physics.pictures(env, moved, quaternions))
    assert first.shape == (physics.HEIGHT, physics.WIDTH, 3)
    np.testing.assert_array_equal(first, last)
    changed = (first != lifted).any(axis=-1).mean()
    assert 0.001 < changed < 0.5, "some of the picture moves, and not all"


def test_a_camera_sees_what_is_higher_above_and_what_is_nearer_larger() -> None:
    camera = physics.Camera(target=np.zeros(3), radius=1.0)
    middle, above, right, behind = camera.project(np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0.0]]))
    np.testing.assert_allclose(middle[:2], [physics.WIDTH, physics.HEIGHT])  # in the middle, drawn twice too large
    assert above[1] < middle[1] and above[0] == pytest.approx(middle[0])
    assert right[0] > middle[0] and right[1] == pytest.approx(middle[1])
    assert behind[2] > middle[2] and behind[1] < middle[1]


@pytest.mark.skipif(importlib.util.find_spec("imageio_ffmpeg") is None, reason="needs imageio-ffmpeg")
def test_an_mp4_holds_as_many_pictures_as_the_episode(run: Path, tmp_path: Path) -> None:
    import imageio_ffmpeg

    assert render.main([f"run_dir={run}", "max_steps=3", f"out={tmp_path}/x.mp4"]) == 0
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "x.mp4"))
    assert frames == 4 + film.LAST_FRAME // 20 and seconds == pytest.approx(frames * 0.02, abs=0.02)


def test_an_mp4_without_its_library(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(film.importlib.util, "find_spec", lambda name: None)
    assert render.main([f"run_dir={run}", f"out={tmp_path}/x.mp4"]) == 2
    error = capsys.readouterr().err
    assert "pip install imageio-ffmpeg" in error and error.count("\n") == 1 and not (tmp_path / "x.mp4").exists()


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bandit = tmp_path / "bandit"
    shutil.copytree(run, bandit)
    config = bandit / "config.yaml"
    config.write_text(config.read_text().replace("env: CartPole-v1", "env: haepo/bandit"))
    for arguments, message in [
        ([], "run_dir= is missing"),
        ([f"run_dir={tmp_path}/nowhere"], "is no directory"),
        ([f"run_dir={bandit}"], "haepo/bandit cannot be rendered"),
        ([f"run_dir={run}", "seed=1"], "seed=1 is not in this run"),
        ([f"run_dir={run}", "out=film.html"], "must end in .gif or .mp4"),
        ([f"run_dir={run}", f"out={tmp_path}/no/film.gif"], "there is no directory"),
        ([f"run_dir={run}", f"out={'x' * 5000}/film.gif"], "there is no directory"),
        ([f"run_dir={run}", "max_steps=0"], "max_steps=0 is out of range"),
    ]:
        assert render.main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
    assert render.main(["--help"]) == 0 and "CartPole-v1" in capsys.readouterr().out


def test_every_brax_task_but_fast_has_a_model_to_draw() -> None:
    assert not physics.can_be_drawn(hx.make_env("brax/fast")) and not physics.can_be_drawn(hx.make_env("haepo/bandit"))
    assert "fast" in tasks_of("brax")
