"""2D tasks as pictures. gymnax's own visualiser needs gymnasium and pygame, and a pyplot figure for every frame."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Stroke = tuple[Any, float, Colour]
"""A line with round ends: points (n, 2), where a single one makes a disc; its width; its colour."""
Draw = Callable[[Any, Any, Any], Image.Image]
"""(environment, state, observation) -> one picture; the last two hold NumPy arrays."""

WHITE, GREY, DARK, BLACK = (255, 255, 255), (190, 190, 190), (60, 60, 70), (20, 20, 30)
BLUE, ORANGE, GREEN, RED = (40, 110, 190), (225, 125, 40), (50, 150, 80), (205, 60, 60)
CHANNELS: tuple[Colour, ...] = (
    (90, 160, 230), (240, 170, 70), (120, 200, 120), (230, 100, 100), (170, 130, 220),
    (190, 140, 110), (240, 170, 210), (160, 160, 160), (215, 215, 90), (90, 210, 215),
)  # fmt: skip

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


def _cartpole(env: Any, state: Any, observation: Any) -> Image.Image:
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


def _pendulum(env: Any, state: Any, observation: Any) -> Image.Image:
    length, edge = float(env.params.l), 1.4 * float(env.params.l)
    turned = np.linspace(0, math.pi * float(state.last_u) / float(env.params.max_torque), 24)
    torque = 0.35 * length * np.stack([np.sin(-turned), np.cos(turned)], axis=-1)
    rod = _chain([length], [math.pi / 2 + state.theta])
    strokes = [(rod, 0.16 * length, ORANGE), (torque, 0.035 * length, BLUE), (rod[:1], 0.1 * length, DARK)]
    return _strokes((-edge, -edge), (edge, edge), strokes, 280)


def _acrobot(env: Any, state: Any, observation: Any) -> Image.Image:
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


def _mountain_car(env: Any, state: Any, observation: Any) -> Image.Image:
    def ground(x: Any) -> npt.NDArray[np.float64]:
        return np.stack([x, 0.45 * np.sin(3 * x) + 0.55], axis=-1)

    left, right = float(env.params.min_position), float(env.params.max_position)
    goal, position = ground(float(env.params.goal_position)), float(state.position)
    slope = math.atan(1.35 * math.cos(3 * position))
    turn = np.array([[math.cos(slope), math.sin(slope)], [-math.sin(slope), math.cos(slope)]])
    body, *wheels = (
        ground(position) + np.array([[[-0.06, 0.06], [0.06, 0.06]], [[-0.045, 0.03]] * 2, [[0.045, 0.03]] * 2]) @ turn
    )
    strokes = [
        (ground(np.linspace(left, right, 80)), 0.012, DARK),
        ([goal, goal + np.array([0, 0.18])], 0.012, DARK),
        ([goal + np.array(end) for end in ([0.02, 0.16], [0.06, 0.16])], 0.04, GREEN),
        (body, 0.05, ORANGE),
        *((wheel, 0.05, DARK) for wheel in wheels),
    ]
    return _strokes((left, 0), (right, 1.25), strokes)


def _point_robot(env: Any, state: Any, observation: Any) -> Image.Image:
    radius = float(env.params.circle_radius)
    low, high = np.array([-1.35, -0.6]) * radius, np.array([1.35, 1.35]) * radius
    angles = np.linspace(0, math.pi, 60)
    strokes = [
        (radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1), 0.015, GREY),
        ([state.goal], 2 * float(env.params.goal_radius), (170, 215, 180)),
        ([np.clip(state.pos, low, high)], 0.1 * radius, RED),
    ]
    return _strokes(low, high, strokes)


def _reacher(env: Any, state: Any, observation: Any) -> Image.Image:
    joints, edge = _chain(np.ones(len(state.angles)), state.angles), 1.5 * len(state.angles)
    strokes = [([state.goal_xy], 0.24, GREEN), (joints, 0.12, BLUE), *(([joint], 0.18, DARK) for joint in joints)]
    return _strokes((-edge, -edge), (edge, edge), strokes, 280)


def _swimmer(env: Any, state: Any, observation: Any) -> Image.Image:
    urchins = [([urchin], 0.24, (210, 190, 225)) for urchin in state.urchin_xys]
    strokes = [*urchins, ([state.goal_xy], 0.16, GREEN), ([np.clip(state.xy, -1.5, 1.5)], 0.12, ORANGE)]
    return _strokes((-1.5, -1.5), (1.5, 1.5), strokes, 280)


def _cells(cells: Any, colours: Sequence[Colour], *marks: Any) -> Image.Image:
    """A grid (rows, columns) of indices into the colours; the last colours are those of the marks, (row, column) each."""
    cells = np.array(cells, int)
    for index, mark in enumerate(marks, len(colours) - len(marks)):
        cells[tuple(np.asarray(mark, int))] = index
    size = max(4, min(40, 300 // max(cells.shape)))
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
    paddle, ball = (state.paddle_y, state.paddle_x), (state.ball_y, state.ball_x)
    return _cells(np.zeros_like(observation), (WHITE, BLUE, ORANGE), paddle, ball)


def _deep_sea(env: Any, state: Any, observation: Any) -> Image.Image:
    place = (min(int(state.row), len(observation) - 1), state.column)
    return _cells(np.zeros_like(observation), ((215, 230, 245), (235, 205, 80), ORANGE), (-1, -1), place)


def _maze(env: Any, state: Any, observation: Any) -> Image.Image:
    return _cells(env.inner.occupied_map, (WHITE, DARK, GREEN, ORANGE), state.goal, state.pos)


def _frozen_lake(env: Any, state: Any, observation: Any) -> Image.Image:
    tiles = np.asarray(env.inner.desc)
    colours = ((200, 220, 235), (235, 243, 250), (70, 110, 150), GREEN, ORANGE)
    return _cells(tiles, colours, divmod(int(state.position), tiles.shape[1]))


def _random_walk(env: Any, state: Any, observation: Any) -> Image.Image:
    return _cells(np.zeros((1, env.length)), (WHITE, GREEN, ORANGE), (0, -1), (0, state.position))


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
"""How a task is drawn, and for how many milliseconds each picture is shown. Other 2D tasks have nothing to show."""


def pictures(env: Any, states: Any, observations: Any) -> Iterator[Image.Image]:
    """A picture of each step of a task in `DRAWINGS`: states and observations are NumPy arrays with a leading axis."""
    import jax

    draw, _ = DRAWINGS[env.name]
    for index in range(len(jax.tree.leaves(observations)[0])):
        state, observation = jax.tree.map(operator.itemgetter(index), (states, observations))
        yield draw(env, state, observation)
