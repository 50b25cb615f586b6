"""Animations: a real episode and dreams of it on one canvas, drawn by the environment itself."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.style import DREAM, REAL
import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamer.checkpoint import write_atomic

TINT = np.array([86, 180, 233])  # of what is dreamed: a blue that shows on black and on white


def set_state(env: gym.Env, obs: np.ndarray) -> None:
    """Put one of the four environments into the state that an observation (O,) describes.

    The observation may be a dreamed one: cosine and sine need not lie on the circle. The
    environment must have been reset. Raises ValueError for any other environment.
    """
    world = env.unwrapped
    obs = np.asarray(obs, np.float64)
    name = type(world).__name__
    if name == "CartPoleEnv":
        world.state = obs.copy()
    elif name == "PendulumEnv":
        world.state = np.array([math.atan2(obs[1], obs[0]), obs[2]])
    elif name == "AcrobotEnv":
        angles = math.atan2(obs[1], obs[0]), math.atan2(obs[3], obs[2])
        world.state = np.array([*angles, obs[4], obs[5]])
    elif name == "LunarLander":
        set_lander(world, obs)
    else:
        raise ValueError(f"{name}: no way is known to set its state from an observation")


def set_lander(world: Any, obs: np.ndarray) -> None:
    """The inverse of LunarLander's observation (its source: `LunarLander.step`). The legs, which
    it does not show, hang where their springs hold them in flight."""
    from gymnasium.envs.box2d import lunar_lander as ll

    half_w, half_h = ll.VIEWPORT_W / ll.SCALE / 2, ll.VIEWPORT_H / ll.SCALE / 2  # metres
    lander = world.lander
    x, y, vx, vy, angle, spin = map(float, obs[:6])
    lander.position = (
        x * half_w + half_w,
        y * half_h + world.helipad_y + ll.LEG_DOWN / ll.SCALE,
    )
    lander.angle = angle
    lander.linearVelocity = (vx * ll.FPS / half_w, vy * ll.FPS / half_h)
    lander.angularVelocity = spin * ll.FPS / 20
    for side, leg, touches in zip((-1, 1), world.legs, obs[6:], strict=True):
        leg.angle = angle - side * 0.4  # the joint's limit, against which its motor pushes
        cos, sin = math.cos(leg.angle), math.sin(leg.angle)
        ax, ay = side * ll.LEG_AWAY / ll.SCALE, ll.LEG_DOWN / ll.SCALE  # lander, seen from the leg
        leg.position = (
            lander.position[0] - (cos * ax - sin * ay),
            lander.position[1] - (sin * ax + cos * ay),
        )
        leg.ground_contact = bool(touches > 0.5)


def render_observations(env_id: str, obs: np.ndarray, seed: int) -> list[np.ndarray]:
    """Pictures (height, width, 3) of observations (T, O), drawn by the environment itself.

    seed: of the reset, which decides what no observation shows (LunarLander's mountains).
    """
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=seed)
    frames = []
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


def ghosts(real: np.ndarray, dreams: Sequence[np.ndarray], empty: np.ndarray) -> np.ndarray:
    """One picture of many: what moves in the dreams shows through, tinted, behind what is real.

    All (height, width, 3); empty: the world without what moves.
    """

    def moves(picture: np.ndarray) -> np.ndarray:
        return (np.maximum(picture, empty) - np.minimum(picture, empty)).max(-1) > 20

    covered = sum((moves(dream).astype(float) for dream in dreams), np.zeros(real.shape[:2]))
    opacity = np.where(moves(real), 0, 1 - 0.55**covered)[..., None]
    return ((1 - opacity) * real + opacity * TINT).astype(np.uint8)


def write_gif(
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    path: Path | str,
    milliseconds: int = 60,
) -> int:
    """Pictures under a title and a caption of their own; the last one stays for a while. Rows of
    pixels far from all that changes are cut off. Returns the file's size in bytes."""
    font, head = ImageFont.load_default(size=16), 48
    changed = np.ptp(pictures, axis=0).any((1, 2)).nonzero()[0]
    rows = slice(max(0, changed[0] - 30), changed[-1] + 30) if len(changed) else slice(None)
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
    look = {"save_all": True, "duration": durations, "loop": 0, "optimize": True}
    write_atomic(
        Path(path), lambda part: frames[0].save(part, "GIF", append_images=frames[1:], **look)
    )
    return Path(path).stat().st_size
