"""Animations: a real episode beside a dreamed one, both drawn by the environment's own renderer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamer.checkpoint import write_atomic
from lab.figures import DREAM, REAL


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


def render_observations(env_id: str, obs: np.ndarray, seed: int, width: int = 320) -> list:
    """Pictures (PIL images `width` pixels wide) of observations (T, O), drawn by the environment.

    seed: of the reset, which decides what no observation shows (LunarLander's mountains).
    """
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=seed)
    frames = []
    for row in obs:
        set_state(env, row)
        picture = Image.fromarray(env.unwrapped.render())
        height = round(picture.height * width / picture.width)
        frames.append(picture.resize((width, height), Image.Resampling.LANCZOS))
    env.close()
    return frames


def write_gif(
    real: list[Image.Image],
    dream: list[Image.Image],
    captions: Sequence[tuple[str, str]],
    path: Path | str,
    milliseconds: int = 50,
) -> int:
    """Two rows of pictures side by side, a caption above each; the last one stays for a while.

    captions: (left, right) for every frame. Returns the file's size in bytes.
    """
    font = ImageFont.load_default(size=14)
    width, height, head, gap = *real[0].size, 24, 6
    frames = []
    for left, right, texts in zip(real, dream, captions, strict=True):
        frame = Image.new("RGB", (2 * width + gap, height + head), "white")
        frame.paste(left, (0, head))
        frame.paste(right, (width + gap, head))
        draw = ImageDraw.Draw(frame)
        draw.text((6, 3), texts[0], fill=REAL, font=font)
        draw.text((width + gap + 6, 3), texts[1], fill=DREAM, font=font)
        frames.append(frame.quantize(64, dither=Image.Dither.NONE))
    durations = [milliseconds] * (len(frames) - 1) + [1500]
    write_atomic(
        Path(path),
        lambda temporary: frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=durations,
            loop=0,
            optimize=True,
        ),
    )
    return Path(path).stat().st_size
