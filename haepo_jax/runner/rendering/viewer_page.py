"""An episode of a physics task as one HTML page that needs nothing else: no network, no server, no other file.

Brax's own page (`brax.io.html`) fetches its viewer, three.js and two more libraries from the network when it is opened,
so the viewer here (`viewer.html`) is our own: plain WebGL, with the episode inside.
"""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

from haepo_jax.envs.physics import PhysicsEnv

Floats = npt.NDArray[np.float32]

# MuJoCo's numbers of the shapes that can be drawn (mjtGeom).
_SHAPES = {0: "plane", 2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box", 7: "mesh"}
_DEFAULT_COLOUR, _OUR_COLOUR = (0.5, 0.5, 0.5, 1.0), (0.85, 0.55, 0.25, 1.0)
_FLOOR_COLOUR = (0.58, 0.63, 0.67, 1.0)
# MuJoCo's convention: groups above are for collision and not for the eye.
_LAST_VISIBLE_GROUP = 2


def body_poses(state: Any) -> tuple[Any, Any] | None:
    """Positions (bodies, 3) and quaternions (bodies, 4) of a `PhysicsState`; body 0 is the world where `has_world`."""
    inner = state.inner
    pipeline = getattr(inner, "pipeline_state", None)
    if pipeline is not None and hasattr(pipeline, "x"):
        return pipeline.x.pos, pipeline.x.rot
    data = getattr(inner, "data", None)
    return (data.xpos, data.xquat) if data is not None and hasattr(data, "xpos") else None


def episode_page(env: PhysicsEnv, title: str, positions: Floats, quaternions: Floats, returns: Floats) -> str:
    """The page.

    Args:
      env: the task.
      title: shown above the picture.
      positions: (frames, bodies, 3) from `body_poses`, in metres.
      quaternions: (frames, bodies, 4), real part first.
      returns: (frames,) sum of the rewards up to each frame.
    """
    model = env.params
    bodies = int(np.asarray(_mujoco_model(env).nbody))
    if positions.shape[1] == bodies - 1:  # Brax leaves the world out
        positions = np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)
        world = np.zeros_like(quaternions[:, :1])
        world[..., 0] = 1
        quaternions = np.concatenate([world, quaternions], axis=1)
    geoms = _geoms(model, _mujoco_model(env))
    centre, radius = _bounds(geoms, positions[0], quaternions[0])
    scene = {
        "title": title,
        "seconds": float(env.inner.dt),
        "bodies": bodies,
        "follow": min(1, bodies - 1),
        "centre": centre,
        "radius": radius,
        "geoms": geoms,
        "poses": _base64(np.concatenate([positions, quaternions], axis=-1)),
        "returns": _base64(returns),
    }
    page = resources.files("haepo_jax.runner.rendering").joinpath("viewer.html").read_text(encoding="utf-8")
    # `</` would end the script element that the scene stands in.
    text = json.dumps(scene, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")
    return page.replace("__TITLE__", html.escape(title)).replace("__SCENE__", text)


def can_be_drawn(env: Any) -> bool:
    """Whether it is a physics task with a MuJoCo model, as are all of Brax's and Playground's but Brax's `fast`."""
    return isinstance(env, PhysicsEnv) and _mujoco_model(env) is not None


def _mujoco_model(env: PhysicsEnv) -> Any:
    return getattr(env.params, "mj_model", None) or getattr(env.inner, "mj_model", None)


def _geoms(model: Any, mujoco_model: Any) -> list[dict[str, Any]]:
    """The visible shapes; where and how large they are comes from the model that the episode was played with."""
    kinds, bodies = np.asarray(model.geom_type), np.asarray(model.geom_bodyid)
    positions, quaternions, sizes = (
        np.asarray(getattr(model, f"geom_{part}"), np.float64) for part in ("pos", "quat", "size")
    )
    geoms = []
    for index in range(len(kinds)):
        kind, colour = _SHAPES.get(int(kinds[index])), tuple(float(x) for x in mujoco_model.geom_rgba[index])
        if kind is None or colour[3] == 0 or mujoco_model.geom_group[index] > _LAST_VISIBLE_GROUP:
            continue
        if kind == "plane":
            colour = _FLOOR_COLOUR
        elif np.allclose(colour, _DEFAULT_COLOUR):
            colour = _OUR_COLOUR
        geom: dict[str, Any] = {
            "type": kind,
            "body": int(bodies[index]),
            "position": positions[index].tolist(),
            "quaternion": quaternions[index].tolist(),
            "size": sizes[index].tolist(),
            "colour": colour,
        }
        if kind == "mesh":
            number = int(mujoco_model.geom_dataid[index])
            vertex, face = int(mujoco_model.mesh_vertadr[number]), int(mujoco_model.mesh_faceadr[number])
            vertices = mujoco_model.mesh_vert[vertex : vertex + int(mujoco_model.mesh_vertnum[number])]
            geom["vertices"] = np.round(np.asarray(vertices, np.float64), 5).tolist()
            geom["faces"] = np.asarray(
                mujoco_model.mesh_face[face : face + int(mujoco_model.mesh_facenum[number])]
            ).tolist()
        geoms.append(geom)
    return geoms


def _bounds(geoms: list[dict[str, Any]], positions: Floats, quaternions: Floats) -> tuple[list[float], float]:
    """Centre and radius of what is to be seen in the first frame, floors left out."""
    points = []
    for geom in geoms:
        if geom["type"] != "plane":
            real, vector = quaternions[geom["body"], 0], quaternions[geom["body"], 1:]
            offset = np.asarray(geom["position"])
            turned = offset + 2 * np.cross(vector, np.cross(vector, offset) + real * offset)
            reach = 0.0 if geom["type"] == "mesh" else max(geom["size"])
            points += [positions[geom["body"]] + turned + sign * reach for sign in (-1, 1)]
    if not points:
        return [0.0, 0.0, 0.0], 1.0
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    return ((low + high) / 2).tolist(), max(0.2, float(np.linalg.norm(high - low)) / 2)


def _base64(values: npt.NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode("ascii")
