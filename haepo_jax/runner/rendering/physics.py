"""Tasks of Brax and MuJoCo Playground as pictures, drawn with Pillow.

MuJoCo's own renderer needs OpenGL, which containers and cluster nodes often lack. Here a shape is its convex hull with a
shadow, enough to see what a policy does. Height fields are not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from haepo_jax.envs.physics import PhysicsEnv

Array = npt.NDArray[np.float64]

PLANE, SPHERE, CAPSULE, ELLIPSOID, CYLINDER, BOX, MESH = 0, 2, 3, 4, 5, 6, 7  # mjtGeom
LAST_VISIBLE_GROUP = 2
"""By MuJoCo's convention, higher groups are for collisions and not displayed."""
DEFAULT_COLOUR, OUR_COLOUR = (0.5, 0.5, 0.5), (0.88, 0.52, 0.2)
SKY, FLOOR, GRID, SHADOW = (232, 238, 243), (205, 213, 219), (182, 192, 200), (165, 175, 184)

WIDTH, HEIGHT, SAMPLES = 360, 270, 2
FOCAL = 1.9
"""Focal length, in halves of the picture's width."""
ELEVATION = np.radians(28)


def body_poses(state: Any, observation: Any = None) -> tuple[Any, Any]:
    """Positions (bodies, 3) in metres and quaternions (bodies, 4), real part first, of a `PhysicsState`."""
    if hasattr(state.inner, "pipeline_state"):  # Brax
        return state.inner.pipeline_state.x.pos, state.inner.pipeline_state.x.rot
    return state.inner.data.xpos, state.inner.data.xquat


def can_be_drawn(env: Any) -> bool:
    """Whether it is a physics task with a MuJoCo model: all of Brax's and Playground's but Brax's `fast`."""
    return isinstance(env, PhysicsEnv) and _mujoco_model(env) is not None


def _mujoco_model(env: PhysicsEnv) -> Any:
    return getattr(env.params, "mj_model", None) or getattr(env.inner, "mj_model", None)


class Scene:
    """The visible shapes of a task, seen by a camera that follows the first body."""

    def __init__(self, env: PhysicsEnv) -> None:
        # Places and sizes of the shapes are those of the model that the episode was played with.
        model, mujoco_model = env.params, _mujoco_model(env)
        self._bodies = int(mujoco_model.nbody)
        self._floor: float | None = None
        shapes: list[tuple[int, Array]] = []
        self._colours: list[tuple[int, ...]] = []
        for index, kind in enumerate(np.asarray(model.geom_type)):
            *colour, opacity = (float(x) for x in mujoco_model.geom_rgba[index])
            place = np.asarray(model.geom_pos[index], np.float64)
            if kind == PLANE:
                self._floor = float(place[2])
            elif opacity and mujoco_model.geom_group[index] <= LAST_VISIBLE_GROUP:
                points = _surface(int(kind), np.asarray(model.geom_size[index], np.float64), mujoco_model, index)
                if points is not None:
                    turned = _rotations(np.asarray(model.geom_quat[index], np.float64)).apply(points)
                    shapes.append((int(model.geom_bodyid[index]), place + turned))
                    shown = OUR_COLOUR if np.allclose(colour, DEFAULT_COLOUR) else colour
                    self._colours.append(tuple(int(255 * x) for x in shown))
        self._owners = np.concatenate([np.full(len(points), body) for body, points in shapes])
        self._points = np.concatenate([points for _, points in shapes])
        self._ends = np.cumsum([len(points) for _, points in shapes])[:-1]
        self._radius: float | None = None
        self._centre = np.zeros(3)

    def picture(self, positions: Array, quaternions: Array) -> Image.Image:
        """One picture of the bodies, at poses from `body_poses`. The first sets the distance of the camera."""
        if len(positions) == self._bodies - 1:  # Brax leaves the world out
            positions = np.concatenate([np.zeros((1, 3)), positions])
            quaternions = np.concatenate([[[1.0, 0, 0, 0]], quaternions])
        points = positions[self._owners] + _rotations(quaternions[self._owners]).apply(self._points)
        body = positions[min(1, self._bodies - 1)]
        if self._radius is None:
            low, high = points.min(axis=0), points.max(axis=0)
            self._radius, self._centre = max(0.2, float(np.linalg.norm(high - low)) / 2), (low + high) / 2 - body
        target = body + self._centre
        image = Image.new("RGB", (SAMPLES * WIDTH, SAMPLES * HEIGHT), SKY)
        draw = ImageDraw.Draw(image)
        shapes = np.split(points, self._ends)
        if self._floor is not None:
            self._draw_floor(draw, target)
            for shape in shapes:
                shadow = np.column_stack([shape[:, :2], np.full(len(shape), self._floor)])
                draw.polygon(_outline(self._project(shadow, target)), SHADOW)
        depths = [float(self._project(shape.mean(axis=0), target)[2]) for shape in shapes]
        for index in np.argsort(depths)[::-1]:
            colour = self._colours[index]
            edge = tuple(int(0.6 * x) for x in colour)
            draw.polygon(_outline(self._project(shapes[index], target)), colour, edge, SAMPLES)
        return image.reduce(SAMPLES)

    def _project(self, points: Array, target: Array) -> Array:
        """(..., 3) in the world -> (..., 3): pixels to the right and down, and the distance from the camera."""
        assert self._radius is not None
        right = np.array([1.0, 0, 0])
        forward = np.array([0, np.cos(ELEVATION), -np.sin(ELEVATION)])
        offset = points - (target - 3.2 * self._radius * forward)
        depth = np.maximum(offset @ forward, 1e-3)
        scale = SAMPLES * WIDTH / 2 * FOCAL / depth
        x = SAMPLES * WIDTH / 2 + scale * (offset @ right)
        y = SAMPLES * HEIGHT / 2 - scale * (offset @ np.cross(right, forward))
        return np.stack([x, y, depth], axis=-1)

    def _draw_floor(self, draw: ImageDraw.ImageDraw, target: Array) -> None:
        """A square that moves with the camera, and grid lines that do not."""
        assert self._radius is not None and self._floor is not None
        low, high = target[:2] - 2.5 * self._radius, target[:2] + 2.5 * self._radius

        def line(*corners: tuple[float, float]) -> list[tuple[float, float]]:
            ground = np.array([(x, y, self._floor) for x, y in corners])
            return [(float(x), float(y)) for x, y, _ in self._project(ground, target)]

        draw.polygon(line((low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])), FLOOR)
        for x in np.arange(np.ceil(low[0] / self._radius), high[0] / self._radius) * self._radius:
            draw.line(line((x, low[1]), (x, high[1])), GRID, SAMPLES)
        for y in np.arange(np.ceil(low[1] / self._radius), high[1] / self._radius) * self._radius:
            draw.line(line((low[0], y), (high[0], y)), GRID, SAMPLES)


def pictures(env: PhysicsEnv, positions: Array, quaternions: Array) -> Iterator[Image.Image]:
    """A picture of each frame: (frames, bodies, 3) and (frames, bodies, 4) from `body_poses`."""
    scene = Scene(env)
    for position, quaternion in zip(positions, quaternions, strict=True):
        yield scene.picture(np.asarray(position, np.float64), np.asarray(quaternion, np.float64))


def _surface(kind: int, size: Array, mujoco_model: Any, index: int) -> Array | None:
    """Points (n, 3) whose convex hull is the shape, in its own coordinates; None for one that is not drawn."""
    around = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    if kind == MESH:
        mesh = int(mujoco_model.geom_dataid[index])
        first, count = int(mujoco_model.mesh_vertadr[mesh]), int(mujoco_model.mesh_vertnum[mesh])
        return _hull(np.asarray(mujoco_model.mesh_vert[first : first + count], np.float64))
    if kind == BOX:
        return size * np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(-1, 3)
    circle = np.stack([np.cos(around), np.sin(around), np.zeros(16)], axis=-1)
    if kind == CYLINDER:
        return np.concatenate([[size[0], size[0], 1] * circle + [0, 0, end * size[1]] for end in (-1, 1)])
    if kind not in (SPHERE, CAPSULE, ELLIPSOID):
        return None
    rings = [np.cos(a) * circle + [0, 0, np.sin(a)] for a in np.linspace(-np.pi / 2, np.pi / 2, 9)]
    ball = np.concatenate(rings) * (size if kind == ELLIPSOID else size[0])
    if kind == CAPSULE:
        return np.concatenate([np.add(ball, (0, 0, end * size[1])) for end in (-1, 1)])
    return ball


def _rotations(quaternions: Array) -> Any:
    """Quaternions (..., 4), real part first, as SciPy's rotations."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(np.roll(quaternions, -1, axis=-1))


def _hull(points: Array) -> Array:
    """The corners of the points' convex hull, in the plane in order around it; all points where there is no hull."""
    from scipy.spatial import ConvexHull, QhullError

    try:
        return np.asarray(points[ConvexHull(points).vertices])
    except QhullError:  # all in one place, or on one line
        return points


def _outline(projected: Array) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in _hull(projected[:, :2])]
