"""Animations: a real episode and dreams of it on one canvas, drawn by one of the four environments,
or as curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dreamer.checkpoint import write_atomic
from lab.style import DREAM, RANDOM, REAL, STYLE

TINT = np.array([86, 180, 233])  # of what is dreamed: a blue that shows on black and on white


def set_state(env: gym.Env, obs: np.ndarray) -> None:
    """Put one of the four environments, once reset, where an observation (O,) says that it is.

    It may be a dreamed one: cosine and sine need not lie on the circle.
    """
    world, x = env.unwrapped, np.asarray(obs, np.float64)
    match type(world).__name__:
        case "CartPoleEnv":
            world.state = x.copy()
        case "PendulumEnv":
            world.state = np.array([math.atan2(x[1], x[0]), x[2]])
        case "AcrobotEnv":
            world.state = np.array([math.atan2(x[1], x[0]), math.atan2(x[3], x[2]), *x[4:]])
        case "LunarLander":
            set_lander(world, x)


def set_lander(world: Any, obs: np.ndarray) -> None:
    """The inverse of LunarLander's observation (its source: `LunarLander.step`), except velocities.
    The legs, which it does not show, hang where their springs hold them in flight."""
    from gymnasium.envs.box2d import lunar_lander as ll

    half_w, half_h = ll.VIEWPORT_W / ll.SCALE / 2, ll.VIEWPORT_H / ll.SCALE / 2  # metres
    lander, (x, y), angle = world.lander, map(float, obs[:2]), float(obs[4])
    height = y * half_h + world.helipad_y + ll.LEG_DOWN / ll.SCALE
    lander.position, lander.angle = (x * half_w + half_w, height), angle
    for side, leg, touches in zip((-1, 1), world.legs, obs[6:], strict=True):
        leg.angle = angle - side * 0.4  # the joint's limit, against which its motor pushes
        cos, sin = math.cos(leg.angle), math.sin(leg.angle)
        ax, ay = side * ll.LEG_AWAY / ll.SCALE, ll.LEG_DOWN / ll.SCALE  # lander, seen from the leg
        (x, y) = lander.position
        leg.position = x - (cos * ax - sin * ay), y - (sin * ax + cos * ay)
        leg.ground_contact = bool(touches > 0.5)


def render_observations(env_id: str, obs: np.ndarray, seed: int) -> list[np.ndarray]:
    """Pictures (height, width, 3) of observations (T, O), drawn by the environment itself.

    seed: of the reset, which decides what no observation shows (LunarLander's mountains).
    """
    env, frames = gym.make(env_id, render_mode="rgb_array"), []
    env.reset(seed=seed)
    for row in obs:
        set_state(env, row)
        frames.append(env.unwrapped.render())
    env.close()
    return frames


def scenery(env_id: str, obs_size: int, seed: int) -> np.ndarray:
    """A picture of the world without what moves in it: the median of pictures in which that is
    somewhere else each time."""
    anywhere = np.random.default_rng(0).normal(size=(25, obs_size))
    return np.median(render_observations(env_id, anywhere, seed), axis=0).astype(np.uint8)


def ghosts(
    env_id: str, obs: np.ndarray, dreams: np.ndarray, over: np.ndarray, seed: int
) -> list[np.ndarray]:
    """Pictures of an episode's rows (T, O), and behind them of dreams (K, H, O) of the last H rows,
    which are not drawn where they are over (K, H)."""
    pictures = render_observations(env_id, obs, seed)
    empty = scenery(env_id, obs.shape[-1], seed)
    for t in range(dreams.shape[1]):
        alive, row = render_observations(env_id, dreams[~over[:, t], t], seed), t - dreams.shape[1]
        pictures[row] = lay_behind(pictures[row], alive, empty)
    return pictures


def lay_behind(real: np.ndarray, dreams: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """One picture of many: what moves in the dreams shows through, tinted, behind what is real.

    All (height, width, 3); empty: the world without what moves.
    """

    def moves(picture: np.ndarray) -> np.ndarray:
        return (np.maximum(picture, empty) - np.minimum(picture, empty)).max(-1) > 20

    covered = sum((moves(dream).astype(float) for dream in dreams), np.zeros(real.shape[:2]))
    opacity = np.where(moves(real), 0, 1 - 0.55**covered)[..., None]
    return ((1 - opacity) * real + opacity * TINT).astype(np.uint8)


@matplotlib.rc_context(STYLE)
def curves(
    names: Sequence[str], real: np.ndarray, dreams: np.ndarray, step: str
) -> list[np.ndarray]:
    """Pictures (height, width, 3), one for each row of an episode, of curves that grow with time.

    names: of the D numbers; real: rows (T, D); dreams: (K, H, D) of the last H rows, NaN where they
    have ended; step: what a row is.
    """
    context = len(real) - dreams.shape[1]
    dreams = np.concatenate([np.repeat(real[None, [context - 1]], len(dreams), 0), dreams], 1)
    fig = Figure((8, max(3.2, len(names) + 1.2)), dpi=100, layout="constrained")
    canvas, axes = FigureCanvasAgg(fig), fig.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    above, below = {"color": REAL, "lw": 1.3, "ms": 4}, {"color": TINT / 255, "lw": 2.5, "ms": 6}
    lines = []  # with the row in which they begin, and their values
    for ax, name, truth, dreamed in zip(axes, names, real.T, dreams.T, strict=True):
        ends = [truth.min(), truth.max(), *np.nanpercentile(dreamed, [2, 98])]
        margin = 0.1 * np.ptp(ends) or 0.5
        ax.set(title=name, ylim=(min(ends) - margin, max(ends) + margin))
        ax.axvspan(0, context - 1, color=RANDOM, alpha=0.2, lw=0)
        shape = "steps-post" if (truth == truth.round()).all() else "default"
        for start, values in [*((context - 1, values) for values in dreamed.T), (0, truth)]:
            look = (above if values is truth else below) | {"drawstyle": shape}
            (line,) = ax.plot(start, values[0], "o-", markevery=[-1], **look)
            lines.append((line, start, values))
    axes[-1].set(xlabel=step, xlim=(-0.02 * len(real), 1.02 * len(real) - 1))
    pictures = []
    for t in range(len(real)):
        for line, start, values in lines:
            line.set_visible(t >= start)
            line.set_data(range(start, max(t, start) + 1), values[: max(t - start, 0) + 1])
        canvas.draw()
        fig.set_layout_engine("none")  # nothing moves from here on
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return pictures


def write_gif(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    path: Path | str,
    milliseconds: int = 60,
    cut: bool = True,
) -> None:
    """Pictures under a title and a caption of their own; the last one stays for a while. Rows of
    pixels far from all that changes are cut off (cut)."""
    font, head = ImageFont.load_default(size=16), 48
    changed = np.ptp(pictures, axis=0).any((1, 2)).nonzero()[0]
    rows = slice(max(0, changed[0] - 30), changed[-1] + 30) if cut and len(changed) else slice(None)
    frames = []
    for picture, caption in zip(pictures, captions, strict=True):
        content = Image.fromarray(picture[rows])
        frame = Image.new("RGB", (content.width, content.height + head), "white")
        frame.paste(content, (0, head))
        draw = ImageDraw.Draw(frame)
        draw.text((8, 2), title, fill=REAL, font=font)
        draw.text((8, 24), caption, fill=DREAM, font=font)
        frames.append(frame)
    some = Image.fromarray(np.concatenate([*map(np.asarray, frames[::-10])]))
    palette = some.quantize(64, dither=Image.Dither.NONE)  # the same for all: they differ less
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [milliseconds] * (len(frames) - 1) + [2500]
    look = {"append_images": frames[1:], "duration": durations, "loop": 0, "optimize": True}
    write_atomic(Path(path), lambda part: frames[0].save(part, "GIF", save_all=True, **look))
