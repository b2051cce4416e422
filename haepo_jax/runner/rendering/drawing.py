"""Tasks as pictures: physics by MuJoCo, gymnax's classic control and MinAtar here. gymnax's own visualiser needs gymnasium and
pygame, and a pyplot figure for every frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from haepo_jax.runner.rendering import physics

Colour = tuple[int, int, int]
Stroke = tuple[Any, float, Colour]
"""A line with round ends: points (n, 2), where a single one makes a disc; its width; its colour."""
Draw = Callable[[Any, Any], Image.Image]
"""(environment, state) -> one picture; the state holds NumPy arrays."""

WHITE, GREY, DARK = (255, 255, 255), (190, 190, 190), (60, 60, 70)
BLUE, ORANGE, GREEN, RED = (40, 110, 190), (225, 125, 40), (50, 150, 80), (205, 60, 60)

SAMPLES = 2
"""Pictures are drawn this many times larger and then reduced, for smooth edges."""


def _strokes(low: Any, high: Any, strokes: Sequence[Stroke], width: int = 400) -> Image.Image:
    """Strokes, one over the other, in the task's coordinates (y upwards) between two corners; `width` is in pixels."""
    scale = SAMPLES * width / (high[0] - low[0])
    image = Image.new("RGB", (SAMPLES * width, SAMPLES * round(width * (high[1] - low[1]) / (high[0] - low[0]))), WHITE)
    draw = ImageDraw.Draw(image)
    for points, thickness, colour in strokes:
        pixels = [((float(x) - low[0]) * scale, (high[1] - float(y)) * scale) for x, y in points]
        draw.line(pixels, colour, max(1, round(thickness * scale)), joint="curve")
        radius = thickness * scale / 2
        for x, y in (pixels[0], pixels[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
    return image.reduce(SAMPLES)


def _chain(lengths: Any, angles: Any) -> npt.NDArray[np.float64]:
    """The ends (n + 1, 2) of a chain of links from the origin, by their angles to the x axis."""
    links = np.asarray(lengths)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(links, axis=0)])


def _cartpole(env: Any, state: Any) -> Image.Image:
    limit, length, x = float(env.params.x_threshold), 2 * float(env.params.length), float(state.x)
    pole = _chain([length], [math.pi / 2 - state.theta]) + np.array((x, 0.1))
    strokes = [
        ([(-1.2 * limit, 0), (1.2 * limit, 0)], 0.02, GREY),
        *(([(edge, -0.12), (edge, 0.12)], 0.03, RED) for edge in (-limit, limit)),
        ([(x - 0.15, 0), (x + 0.15, 0)], 0.3, DARK),
        (pole, 0.09, ORANGE),
        (pole[:1], 0.1, WHITE),
    ]
    return _strokes((-1.2 * limit, -0.45), (1.2 * limit, length + 0.5), strokes)


def _pendulum(env: Any, state: Any) -> Image.Image:
    length, edge = float(env.params.l), 1.4 * float(env.params.l)
    rod = _chain([length], [math.pi / 2 + state.theta])
    return _strokes((-edge, -edge), (edge, edge), [(rod, 0.16 * length, ORANGE), (rod[:1], 0.1 * length, DARK)], 280)


def _acrobot(env: Any, state: Any) -> Image.Image:
    lengths = [float(env.params.link_length_1), float(env.params.link_length_2)]
    joints = _chain(lengths, np.cumsum([state.joint_angle1, state.joint_angle2]) - math.pi / 2)
    reach = 1.15 * sum(lengths)
    strokes = [
        ([(-reach, 1), (reach, 1)], 0.02, RED),
        (joints[:2], 0.16, BLUE),
        (joints[1:], 0.16, ORANGE),
        *(([joint], 0.12, DARK) for joint in joints[:2]),
    ]
    return _strokes((-reach, -reach), (reach, reach), strokes, 280)


def _mountain_car(env: Any, state: Any) -> Image.Image:
    def ground(x: Any) -> npt.NDArray[np.float64]:
        return np.stack([x, 0.45 * np.sin(3 * x) + 0.55], axis=-1)

    left, right = float(env.params.min_position), float(env.params.max_position)
    goal, car = (ground(float(x)) for x in (env.params.goal_position, state.position))
    strokes = [
        (ground(np.linspace(left, right, 80)), 0.012, DARK),
        ([goal, goal + np.array([0, 0.18])], 0.03, GREEN),
        ([car + np.array([0, 0.05])], 0.1, ORANGE),
    ]
    return _strokes((left, 0), (right, 1.25), strokes)


def _grid(observation: Any) -> Image.Image:
    """A grid (height, width, channels), of which the first channel that is set colours a cell."""
    pixels = np.full((*observation.shape[:2], 3), 255, np.uint8)
    for channel in reversed(range(observation.shape[2])):
        pixels[observation[..., channel] > 0] = (DARK, ORANGE, GREY, BLUE, GREEN, RED)[channel % 6]
    return Image.fromarray(pixels).resize((280, 280), Image.Resampling.NEAREST)


DRAWINGS: dict[str, tuple[Draw, int]] = {
    "CartPole-v1": (_cartpole, 20),
    "Pendulum-v1": (_pendulum, 50),
    "Acrobot-v1": (_acrobot, 100),
    "MountainCar-v0": (_mountain_car, 30),
    "MountainCarContinuous-v0": (_mountain_car, 30),
}
"""How a task is drawn, and for how many milliseconds each picture is shown."""


class Drawing(NamedTuple):
    """How the episodes of a task are drawn.

    Attributes:
      seen: (state) -> what a picture needs of a step.
      pictures: a picture of each of these, as NumPy arrays.
      milliseconds: for which each step is shown.
    """

    seen: Callable[[Any], Any]
    pictures: Callable[[Iterable[Any]], Iterator[Image.Image]]
    milliseconds: float


def drawing_of(env: Any) -> Drawing | None:
    """How a task is drawn; None where it cannot be."""
    if env.name in DRAWINGS:
        draw, milliseconds = DRAWINGS[env.name]
        return Drawing(lambda state: state, lambda states: (draw(env, state) for state in states), milliseconds)
    if env.name.endswith("-MinAtar"):
        return Drawing(env.inner.get_obs, lambda observations: map(_grid, observations), 60)
    if (model := physics.mujoco_model(env)) is not None:
        return Drawing(physics.pose, lambda poses: physics.pictures(model, poses), 1000 * float(env.inner.dt))
    return None
