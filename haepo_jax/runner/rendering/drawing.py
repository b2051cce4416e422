"""Flat tasks as pictures. gymnax's own visualiser needs gymnasium and pygame, and a pyplot figure for every frame."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]
Place = Sequence[Any] | npt.NDArray[Any]
"""A point as two numbers of any kind."""
Draw = Callable[[Any, Any, Any], Image.Image]
"""(environment, state, observation) -> one picture; the last two hold NumPy arrays."""

WHITE, GREY, DARK, BLACK = (255, 255, 255), (190, 190, 190), (60, 60, 70), (20, 20, 30)
BLUE, ORANGE, GREEN, RED = (40, 110, 190), (225, 125, 40), (50, 150, 80), (205, 60, 60)
CHANNELS: tuple[Colour, ...] = (
    (90, 160, 230), (240, 170, 70), (120, 200, 120), (230, 100, 100), (170, 130, 220),
    (190, 140, 110), (240, 170, 210), (160, 160, 160), (215, 215, 90), (90, 210, 215),
)  # fmt: skip

SAMPLES = 2
"""Pictures are drawn this many times too large and then reduced, for smooth edges."""


class Canvas:
    """A drawing in the coordinates of the task, y upwards, with equal scales on both axes."""

    def __init__(self, low: Point, high: Point, width: int = 400) -> None:
        self._low, self._high = low, high
        self._scale = SAMPLES * width / (high[0] - low[0])
        height = round(width * (high[1] - low[1]) / (high[0] - low[0]))
        self._image = Image.new("RGB", (SAMPLES * width, SAMPLES * height), WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def _pixel(self, point: Place) -> Point:
        return (float(point[0]) - self._low[0]) * self._scale, (self._high[1] - float(point[1])) * self._scale

    def line(self, points: Sequence[Place] | npt.NDArray[Any], width: float, colour: Colour) -> None:
        pixels, thick = [self._pixel(point) for point in points], max(1, round(width * self._scale))
        self._draw.line(pixels, colour, thick, joint="curve")
        for point in (points[0], points[-1]):
            self.circle(point, width / 2, colour)

    def circle(self, centre: Place, radius: float, colour: Colour) -> None:
        x, y = self._pixel(centre)
        r = radius * self._scale
        self._draw.ellipse((x - r, y - r, x + r, y + r), colour)

    def polygon(self, points: Sequence[Place], colour: Colour) -> None:
        self._draw.polygon([self._pixel(point) for point in points], colour)

    def image(self) -> Image.Image:
        return self._image.reduce(SAMPLES)


def _cartpole(env: Any, state: Any, observation: Any) -> Image.Image:
    limit, length = float(env.params.x_threshold), 2 * float(env.params.length)
    canvas = Canvas((-1.2 * limit, -0.45), (1.2 * limit, length + 0.5))
    canvas.line([(-1.2 * limit, 0), (1.2 * limit, 0)], 0.02, GREY)
    for edge in (-limit, limit):
        canvas.line([(edge, -0.12), (edge, 0.12)], 0.03, RED)
    x, theta = float(state.x), float(state.theta)
    canvas.polygon([(x - 0.25, -0.15), (x + 0.25, -0.15), (x + 0.25, 0.15), (x - 0.25, 0.15)], DARK)
    canvas.line([(x, 0.1), (x + length * math.sin(theta), 0.1 + length * math.cos(theta))], 0.09, ORANGE)
    canvas.circle((x, 0.1), 0.05, WHITE)
    return canvas.image()


def _pendulum(env: Any, state: Any, observation: Any) -> Image.Image:
    length, theta = float(env.params.l), float(state.theta)
    canvas = Canvas((-1.4 * length, -1.4 * length), (1.4 * length, 1.4 * length), 280)
    tip = (-length * math.sin(theta), length * math.cos(theta))
    canvas.line([(0, 0), tip], 0.16 * length, ORANGE)
    torque = float(state.last_u) / float(env.params.max_torque)
    angles = np.linspace(0, torque * math.pi, 24)
    canvas.line([(0.35 * length * math.sin(-a), 0.35 * length * math.cos(a)) for a in angles], 0.035 * length, BLUE)
    canvas.circle((0, 0), 0.05 * length, DARK)
    return canvas.image()


def _acrobot(env: Any, state: Any, observation: Any) -> Image.Image:
    one, two = float(env.params.link_length_1), float(env.params.link_length_2)
    first, second = float(state.joint_angle1), float(state.joint_angle1 + state.joint_angle2)
    reach = 1.15 * (one + two)
    canvas = Canvas((-reach, -reach), (reach, reach), 280)
    canvas.line([(-reach, 1), (reach, 1)], 0.02, RED)
    elbow = (one * math.sin(first), -one * math.cos(first))
    canvas.line([(0, 0), elbow], 0.16, BLUE)
    canvas.line([elbow, (elbow[0] + two * math.sin(second), elbow[1] - two * math.cos(second))], 0.16, ORANGE)
    for joint in ((0, 0), elbow):
        canvas.circle(joint, 0.06, DARK)
    return canvas.image()


def _mountain_car(env: Any, state: Any, observation: Any) -> Image.Image:
    def ground(x: float) -> Point:
        return x, 0.45 * math.sin(3 * x) + 0.55

    left, right = float(env.params.min_position), float(env.params.max_position)
    canvas = Canvas((left, 0), (right, 1.25))
    canvas.polygon([(left, 0), *(ground(x) for x in np.linspace(left, right, 80)), (right, 0)], (225, 230, 220))
    canvas.line([ground(x) for x in np.linspace(left, right, 80)], 0.012, DARK)
    x, y = ground(float(env.params.goal_position))
    canvas.line([(x, y), (x, y + 0.18)], 0.012, DARK)
    canvas.polygon([(x, y + 0.18), (x, y + 0.1), (x + 0.09, y + 0.14)], GREEN)
    x, y = ground(float(state.position))
    slope = math.atan(1.35 * math.cos(3 * x))
    along, up = np.array([math.cos(slope), math.sin(slope)]), np.array([-math.sin(slope), math.cos(slope)])
    place = np.array([x, y])
    body = [place + a * along + b * up for a, b in ((-0.08, 0.03), (0.08, 0.03), (0.08, 0.08), (-0.08, 0.08))]
    canvas.polygon(body, ORANGE)
    for wheel in (-0.045, 0.045):
        canvas.circle(place + wheel * along + 0.03 * up, 0.025, DARK)
    return canvas.image()


def _point_robot(env: Any, state: Any, observation: Any) -> Image.Image:
    radius = float(env.params.circle_radius)
    edge = 1.35 * radius
    canvas = Canvas((-edge, -0.6 * radius), (edge, edge))
    angles = np.linspace(0, math.pi, 60)
    canvas.line(np.stack([radius * np.cos(angles), radius * np.sin(angles)], -1), 0.015, GREY)
    canvas.circle(state.goal, float(env.params.goal_radius), (170, 215, 180))
    canvas.circle(np.clip(state.pos, (-edge, -0.6 * radius), (edge, edge)), 0.05 * radius, RED)
    return canvas.image()


def _reacher(env: Any, state: Any, observation: Any) -> Image.Image:
    links = np.stack([np.cos(state.angles), np.sin(state.angles)], -1)
    joints = np.concatenate([np.zeros((1, 2)), np.cumsum(links, 0)])
    edge = 1.5 * len(links)
    canvas = Canvas((-edge, -edge), (edge, edge), 280)
    canvas.circle(state.goal_xy, 0.12, GREEN)
    canvas.line(joints, 0.12, BLUE)
    for joint in joints:
        canvas.circle(joint, 0.09, DARK)
    return canvas.image()


def _swimmer(env: Any, state: Any, observation: Any) -> Image.Image:
    canvas = Canvas((-1.5, -1.5), (1.5, 1.5), 280)
    for urchin in state.urchin_xys:
        canvas.circle(urchin, 0.12, (210, 190, 225))
    canvas.circle(state.goal_xy, 0.08, GREEN)
    canvas.circle(np.clip(state.xy, -1.5, 1.5), 0.06, ORANGE)
    return canvas.image()


def _cells(cells: npt.NDArray[np.integer[Any]], colours: Sequence[Colour]) -> Image.Image:
    """A grid (rows, columns) of indices into the colours, with thin lines between its cells."""
    rows, columns = cells.shape
    size = max(4, min(40, 300 // max(rows, columns)))
    pixels = np.asarray(colours, np.uint8)[cells].repeat(size, 0).repeat(size, 1)
    if size >= 8:
        pixels[::size], pixels[:, ::size] = GREY, GREY
    return Image.fromarray(pixels)


def _channels(env: Any, state: Any, observation: Any) -> Image.Image:
    """An image of on-off channels (rows, columns, channels); where several are on, the last is seen."""
    on = np.asarray(observation) > 0
    highest = np.where(on.any(-1), on.shape[-1] - np.argmax(on[..., ::-1], -1), 0)
    return _cells(highest, (BLACK, *(CHANNELS[channel % len(CHANNELS)] for channel in range(on.shape[-1]))))


def _catch(env: Any, state: Any, observation: Any) -> Image.Image:
    cells = np.zeros(np.shape(observation), int)
    cells[int(state.paddle_y), int(state.paddle_x)] = 1
    cells[int(state.ball_y), int(state.ball_x)] = 2
    return _cells(cells, (WHITE, BLUE, ORANGE))


def _deep_sea(env: Any, state: Any, observation: Any) -> Image.Image:
    cells = np.zeros(np.shape(observation), int)
    cells[-1, -1] = 1
    cells[min(int(state.row), len(cells) - 1), int(state.column)] = 2
    return _cells(cells, ((215, 230, 245), (235, 205, 80), ORANGE))


def _maze(env: Any, state: Any, observation: Any) -> Image.Image:
    cells = np.asarray(env.inner.occupied_map).astype(int)
    for place, index in ((state.goal, 2), (state.pos, 3)):
        row, column = np.asarray(place).astype(int)
        cells[row, column] = index
    return _cells(cells, (WHITE, DARK, GREEN, ORANGE))


def _frozen_lake(env: Any, state: Any, observation: Any) -> Image.Image:
    cells = np.asarray(env.inner.desc).astype(int)
    cells.flat[int(state.position)] = 4
    return _cells(cells, ((200, 220, 235), (235, 243, 250), (70, 110, 150), GREEN, ORANGE))


def _random_walk(env: Any, state: Any, observation: Any) -> Image.Image:
    cells = np.zeros((1, env.length), int)
    cells[0, -1] = 1
    cells[0, int(state.position)] = 2
    return _cells(cells, (WHITE, GREEN, ORANGE))


_MINATAR = ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")
DRAWINGS: dict[str, tuple[Draw, int]] = {
    "CartPole-v1": (_cartpole, 20),
    "Pendulum-v1": (_pendulum, 50),
    "Acrobot-v1": (_acrobot, 100),
    "MountainCar-v0": (_mountain_car, 30),
    "MountainCarContinuous-v0": (_mountain_car, 30),
    **{f"{game}-MinAtar": (_channels, 60) for game in _MINATAR},
    "Pong-misc": (_channels, 60),
    "Catch-bsuite": (_catch, 200),
    "DeepSea-bsuite": (_deep_sea, 200),
    "FourRooms-misc": (_maze, 150),
    "MetaMaze-misc": (_maze, 150),
    "FrozenLake-misc": (_frozen_lake, 250),
    "PointRobot-misc": (_point_robot, 80),
    "Reacher-misc": (_reacher, 50),
    "Swimmer-misc": (_swimmer, 50),
    "haepo/random_walk": (_random_walk, 150),
}
"""How a task is drawn, and for how many milliseconds each picture stands; the other flat tasks have nothing to see."""


def pictures(env: Any, states: Any, observations: Any) -> Iterator[Image.Image]:
    """A picture of each moment of a task in `DRAWINGS`: states and observations as NumPy arrays with a leading axis."""
    import jax

    draw, _ = DRAWINGS[env.name]
    for index in range(len(jax.tree.leaves(observations)[0])):
        state, observation = jax.tree.map(operator.itemgetter(index), (states, observations))
        yield draw(env, state, observation)
