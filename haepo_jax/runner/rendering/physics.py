"""Tasks of Brax and MuJoCo Playground as pictures, drawn with Pillow.

MuJoCo's own renderer needs OpenGL, which containers and cluster nodes often lack. Here a shape is its convex hull with a
shadow, enough to see what a policy does. Height fields are not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Shape(NamedTuple):
    """The convex hull of points (n, 3) in the coordinates of a body, and its colour."""

    body: int
    points: Array
    colour: tuple[int, ...]


class Camera(NamedTuple):
    """A camera that looks at a point (3,) from the front and above, and sees what is within a radius of it."""

    target: Array
    radius: float

    def project(self, points: Array) -> Array:
        """(..., 3) in the world -> (..., 3): pixels to the right and down, and the distance from the camera."""
        right = np.array([1.0, 0, 0])
        forward = np.array([0, np.cos(ELEVATION), -np.sin(ELEVATION)])
        offset = points - (self.target - 3.2 * self.radius * forward)
        depth = np.maximum(offset @ forward, 1e-3)
        scale = SAMPLES * WIDTH / 2 * FOCAL / depth
        x = SAMPLES * WIDTH / 2 + scale * (offset @ right)
        y = SAMPLES * HEIGHT / 2 - scale * (offset @ np.cross(right, forward))
        return np.stack([x, y, depth], axis=-1)

    def pixels(self, points: Any) -> list[float]:
        """(n, 3) in the world -> x and y of each in turn, as Pillow takes them."""
        return self.project(np.asarray(points))[:, :2].ravel().tolist()

    def outline(self, points: Array) -> list[float]:
        """The same of the corners of their convex hull in the picture."""
        return _hull(self.project(points)[:, :2]).ravel().tolist()


def pictures(env: PhysicsEnv, positions: Array, quaternions: Array) -> Iterator[Image.Image]:
    """A picture of each frame: (frames, bodies, 3) and (frames, bodies, 4) from `body_poses`.

    The camera follows the first body, at a distance at which the first frame is seen as a whole.
    """
    shapes, floor = _shapes(env)
    without_world = len(positions[0]) == _mujoco_model(env).nbody - 1  # in Brax
    camera: Camera | None = None
    offset = np.zeros(3)
    for places, turns in zip(np.asarray(positions, np.float64), np.asarray(quaternions, np.float64), strict=True):
        if without_world:
            places, turns = np.concatenate([[[0, 0, 0]], places]), np.concatenate([[[1, 0, 0, 0]], turns])
        rotations, body = _rotations(turns), places[min(1, len(places) - 1)]
        points = [places[shape.body] + rotations[shape.body].apply(shape.points) for shape in shapes]
        if camera is None:
            low, high = np.min(np.concatenate(points), axis=0), np.max(np.concatenate(points), axis=0)
            offset = (low + high) / 2 - body
            camera = Camera(body + offset, max(0.2, float(np.linalg.norm(high - low)) / 2))
        camera = camera._replace(target=body + offset)
        yield _picture(camera, points, [shape.colour for shape in shapes], floor)


def _shapes(env: PhysicsEnv) -> tuple[list[Shape], float | None]:
    """The visible shapes of a task, and the height of its floor."""
    # Places and sizes of the shapes are those of the model that the episode was played with.
    model, mujoco_model = env.params, _mujoco_model(env)
    shapes, floor = [], None
    for index, kind in enumerate(np.asarray(model.geom_type)):
        *colour, opacity = (float(x) for x in mujoco_model.geom_rgba[index])
        place = np.asarray(model.geom_pos[index], np.float64)
        if kind == PLANE:
            floor = float(place[2])
        elif opacity and mujoco_model.geom_group[index] <= LAST_VISIBLE_GROUP:
            points = _surface(int(kind), np.asarray(model.geom_size[index], np.float64), mujoco_model, index)
            if points is not None:
                turned = _rotations(np.asarray(model.geom_quat[index], np.float64)).apply(points)
                shown = OUR_COLOUR if np.allclose(colour, DEFAULT_COLOUR) else colour
                body = int(model.geom_bodyid[index])
                shapes.append(Shape(body, place + turned, tuple(int(255 * x) for x in shown)))
    return shapes, floor


def _picture(camera: Camera, shapes: list[Array], colours: list[tuple[int, ...]], floor: float | None) -> Image.Image:
    """One picture of shapes, each (n, 3) in the world: the floor, shadows, and the shapes from the farthest to the nearest."""
    image = Image.new("RGB", (SAMPLES * WIDTH, SAMPLES * HEIGHT), SKY)
    draw = ImageDraw.Draw(image)
    if floor is not None:
        # A square that moves with the camera, and grid lines that do not.
        low, high = camera.target[:2] - 2.5 * camera.radius, camera.target[:2] + 2.5 * camera.radius
        corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
        draw.polygon(camera.pixels([(*corner, floor) for corner in corners]), FLOOR)
        for axis in (0, 1):
            for place in np.arange(np.ceil(low[axis] / camera.radius), high[axis] / camera.radius) * camera.radius:
                ends = np.array([[*low, floor], [*high, floor]])
                ends[:, axis] = place
                draw.line(camera.pixels(ends), GRID, SAMPLES)
        for shape in shapes:
            shadow = np.column_stack([shape[:, :2], np.full(len(shape), floor)])
            draw.polygon(camera.outline(shadow), SHADOW)
    for index in np.argsort([-camera.project(shape.mean(axis=0))[2] for shape in shapes]):
        colour = colours[index]
        draw.polygon(camera.outline(shapes[index]), colour, tuple(int(0.6 * x) for x in colour), SAMPLES)
    return image.reduce(SAMPLES)


def _surface(kind: int, size: Array, mujoco_model: Any, index: int) -> Array | None:
    """Points (n, 3) whose convex hull is the shape, in its own coordinates; None for one that is not drawn."""
    from trimesh import creation  # a dependency of Brax and of MuJoCo's MJX

    if kind == MESH:
        mesh = int(mujoco_model.geom_dataid[index])
        first, count = int(mujoco_model.mesh_vertadr[mesh]), int(mujoco_model.mesh_vertnum[mesh])
        return _hull(np.asarray(mujoco_model.mesh_vert[first : first + count], np.float64))
    if kind == BOX:
        shape = creation.box(2 * size)
    elif kind == CYLINDER:
        shape = creation.cylinder(size[0], 2 * size[1], sections=16)
    elif kind == CAPSULE:
        shape = creation.capsule(2 * size[1], size[0], count=(8, 16))
    elif kind in (SPHERE, ELLIPSOID):
        shape = creation.icosphere(2)
        shape.vertices *= size if kind == ELLIPSOID else size[0]
    else:
        return None
    return np.asarray(shape.vertices - shape.bounds.mean(axis=0), np.float64)


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
