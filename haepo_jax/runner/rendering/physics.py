"""Tasks of Brax and MuJoCo Playground as pictures, by MuJoCo's renderer. It needs OpenGL, but no display."""

from __future__ import annotations

import ctypes.util
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from haepo_jax.envs.physics import PhysicsEnv, PhysicsState
from haepo_jax.messages import first_line
from haepo_jax.runner.config import ConfigError

WIDTH, HEIGHT = 320, 240


def prefer_headless() -> None:
    """Makes MuJoCo choose EGL, which needs no display. MuJoCo reads the variable when it is imported, and cannot be imported
    where it names a library that is missing."""
    if sys.platform == "linux" and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def pose(state: PhysicsState) -> tuple[Any, ...]:
    """What the positions of all bodies follow from: `qpos`, and in Playground the positions and turns of mocap bodies."""
    if hasattr(state.inner, "pipeline_state"):  # Brax
        return (state.inner.pipeline_state.q,)
    data = state.inner.data
    return data.qpos, data.mocap_pos, data.mocap_quat


def mujoco_model(env: Any) -> Any:
    """The model of a physics task; None for other tasks, and for Brax's `fast`, which has none."""
    if not isinstance(env, PhysicsEnv):
        return None
    return getattr(env.params, "mj_model", None) or getattr(env.inner, "mj_model", None)


def pictures(model: Any, poses: Iterable[tuple[Any, ...]]) -> Iterator[Image.Image]:
    """A picture of each pose, from a camera that follows the first body at a distance at which all geoms are seen. Raises
    ConfigError without OpenGL."""
    import mujoco

    data, camera, body = mujoco.MjData(model), mujoco.MjvCamera(), min(1, model.nbody - 1)
    mujoco.mj_forward(model, data)
    reach = np.linalg.norm(data.geom_xpos - data.xpos[body], axis=1) + model.geom_rbound
    camera.azimuth, camera.elevation = 90, -20
    camera.distance = 3 * float(reach[model.geom_rbound > 0].max(initial=0.2))  # that of a plane is 0
    try:
        with warnings.catch_warnings(action="ignore"):  # GLFW's, that there is no display
            renderer = mujoco.Renderer(model, HEIGHT, WIDTH)
    except Exception as error:  # each OpenGL library fails in its own way
        raise ConfigError(
            f"MuJoCo cannot draw without OpenGL ({first_line(error)}): install EGL (Debian: libegl1 and "
            "libgl1-mesa-dri), or set MUJOCO_GL to the library to use, such as osmesa"
        ) from None
    with renderer:
        for qpos, *mocap in poses:
            data.qpos = qpos
            if mocap:
                data.mocap_pos, data.mocap_quat = mocap
            mujoco.mj_forward(model, data)
            camera.lookat = data.xpos[body]
            renderer.update_scene(data, camera)
            yield Image.fromarray(renderer.render())
