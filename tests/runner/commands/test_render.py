"""`python -m haepo_jax.render`: films of flat tasks, a page of physics, one line for the rest."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import haepo_jax as hx
from haepo_jax.envs.names import list_envs, tasks_of
from haepo_jax.runner.commands import render
from haepo_jax.runner.rendering import drawing
from haepo_jax.runner.rendering import viewer_page as page


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
    assert drawing.gif([picture, picture], ["one", "two"], milliseconds).startswith(b"GIF89a")


def test_a_page_holds_all_that_it_shows() -> None:
    env = hx.make_env("brax/reacher", backend="spring")
    state, _ = jax.device_get(jax.jit(env.reset)(jax.random.key(0)))
    poses = page.body_poses(state)
    assert poses is not None and page.can_be_drawn(env)
    positions, quaternions = (np.stack([x, x, x]) for x in poses)
    text = page.episode_page(env, '<b>&"', positions, quaternions, np.array([0.0, -1.0, -2.5]))

    assert not re.search(r"https?:|src=|href=|@import|url\(|\bimport\b|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text and "<title>&lt;b&gt;&amp;&quot;</title>" in text
    found = re.search(r'<script id="scene" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    scene = json.loads(found[1])
    assert scene["title"] == '<b>&"' and scene["seconds"] == pytest.approx(float(env.inner.dt))
    shown = np.frombuffer(base64.b64decode(scene["poses"]), np.float32).reshape(3, scene["bodies"], 7)
    np.testing.assert_array_equal(shown[:, 0], np.tile([0, 0, 0, 1, 0, 0, 0], (3, 1)))
    np.testing.assert_allclose(shown[1, 1:, :3], poses[0], atol=1e-6)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(scene["returns"]), np.float32), [0, -1, -2.5])
    assert {"plane", "capsule", "sphere"} <= {geom["type"] for geom in scene["geoms"]}
    assert all(0 <= geom["body"] < scene["bodies"] for geom in scene["geoms"]) and 0.2 <= scene["radius"] < 1


def test_what_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bandit = tmp_path / "bandit"
    shutil.copytree(run, bandit)
    config = bandit / "config.yaml"
    config.write_text(config.read_text().replace("env: CartPole-v1", "env: haepo/bandit"))
    for arguments, message in [
        ([], "run_dir= is missing"),
        ([f"run_dir={tmp_path}/nowhere"], "is no directory"),
        ([f"run_dir={bandit}"], "haepo/bandit has nothing that can be drawn"),
        ([f"run_dir={run}", "seed=1"], "seed=1 is not in this run"),
        ([f"run_dir={run}", "out=film.html"], "must end in .gif"),
        ([f"run_dir={run}", f"out={tmp_path}/no/film.gif"], "there is no directory"),
        ([f"run_dir={run}", f"out={'x' * 5000}/film.gif"], "there is no directory"),
        ([f"run_dir={run}", "max_steps=0"], "max_steps=0 is out of range"),
    ]:
        assert render.main(arguments) == 2, arguments
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.count("\n") == 1
    assert render.main(["--help"]) == 0 and "CartPole-v1" in capsys.readouterr().out


def test_every_brax_task_but_fast_has_a_model_to_draw() -> None:
    assert not page.can_be_drawn(hx.make_env("brax/fast")) and not page.can_be_drawn(hx.make_env("haepo/bandit"))
    assert "fast" in tasks_of("brax")
