"""Tasks seen as pictures alone, and what an agent that learned from them sees and dreams.

Registered with Gymnasium: `lab.pixels:PixelPendulum-v0` and `lab.pixels:PixelCartPole-v0`. Each
frame is the environment's own drawing, cut to where anything ever happens (the sky above the cart
and the ground under it, and the margin that the pendulum cannot reach, are empty), and made small.
The pendulum's curved arrow is the last torque.
"""

from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, root_mean_squared_error

from dreamer import AgentEnv, DreamerAgent
from dreamer.evaluation import Episode, filter_episode, greedy_policy, open_loop, play
from lab import animations
from lab.style import BEFORE, DREAM, HARM, REAL, STYLE, WIDTH, save

SIDE = 64  # pixels
CONTEXT, LENGTH = 5, 50  # frames that a dream has seen, and frames that it goes on for
SHOWN = (0, 2, 4, 5, 7, 9, 14, 19, 24, 34, 44, 54)  # columns of the filmstrip
CUT = {  # id -> rows and columns of the drawing that are kept
    "CartPole-v1": (slice(160, 320), slice(0, 600)),
    "Pendulum-v1": (slice(110, 390), slice(110, 390)),  # 114 long, from (250, 250)
}


class Picture(gym.utils.RecordConstructorArgs, gym.ObservationWrapper):
    """Observes what the environment draws, as side x side pixels, instead of what it says."""

    def __init__(self, env: gym.Env, cut: str, side: int):
        gym.utils.RecordConstructorArgs.__init__(self, cut=cut, side=side)
        gym.ObservationWrapper.__init__(self, env)
        self.cut, self.side = CUT[cut], side
        self.observation_space = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        size = self.side, self.side
        return cv2.resize(self.env.render()[self.cut], size, interpolation=cv2.INTER_AREA)


def make(env_id: str, side: int = SIDE, **_: Any) -> gym.Env:
    """The environment, observed as a picture of side x side pixels."""
    return Picture(gym.make(env_id, render_mode="rgb_array").unwrapped, env_id, side)


for name, limit in ("Pendulum", 200), ("CartPole", 500):
    kwargs = {"env_id": f"{name}-v1"}
    gym.register(f"Pixel{name}-v0", "lab.pixels:make", max_episode_steps=limit, kwargs=kwargs)


Pictures = dict[str, np.ndarray]  # `real`, `seen` and `dream`, each (T, H, W, 3)


def images_of(agent: DreamerAgent, obs: np.ndarray) -> np.ndarray:
    """The first image in observations (T, O), as a screen shows it: uint8 (T, H, W, 3)."""
    height, width, channels = agent.layout.images[0]
    flat = obs[:, agent.layout.vector_size :][:, : height * width * channels]
    images = np.rint(flat).astype(np.uint8).reshape(-1, height, width, channels)
    return images if channels == 3 else images[..., -1:].repeat(3, -1)


def watched(agent: DreamerAgent, env: Any, seed: int) -> tuple[Episode, Pictures]:
    """One greedy episode, and its pictures: real frames, what the agent's state says of each frame
    that it has just seen, and, from frame CONTEXT on (in a short episode its last frame), its dream
    without seeing one."""
    c = agent.config
    with AgentEnv(env, c.action_repeat, c.max_episode_steps) as world:
        episode = play(world, greedy_policy(agent, seed), seed)
    part = {name: rows[: CONTEXT + LENGTH] for name, rows in episode.items()}
    context = min(CONTEXT, len(part["obs"]) - 1)
    with torch.inference_mode():
        feat = agent.rssm.get_feat(filter_episode(agent, part, seed))
        seen = agent.decoder.predict(feat).cpu().numpy()
    dream = open_loop(agent, part["obs"][None], part["action"][None], context, seed)["obs"][0]
    found = {"real": part["obs"], "seen": seen, "dream": dream}
    return episode, {name: images_of(agent, obs) for name, obs in found.items()}


def draw_all(agent: DreamerAgent, env: Any, seed: int, folder: Path, stem: str) -> list[Path]:
    """Filmstrip and GIF of one greedy episode, below `folder`."""
    episode, pictures = watched(agent, env, seed)
    name = stem.partition("_")[2].replace("_", " ") or stem
    title = f"{name}: one greedy episode, return {episode['reward'].sum():z.0f}"
    paths = [folder / f"{stem}_filmstrip.png", folder / f"{stem}_dream.gif"]
    filmstrip(pictures, title, paths[0])
    real_beside_dreamed(pictures, title, paths[1])
    return paths


@matplotlib.rc_context(STYLE)
def filmstrip(pictures: Pictures, title: str, path: Path | str) -> None:
    """Four rows: real frames, the same as the agent's state has them, the dream, and by how much
    the dream is brighter than the real frame, or darker."""
    real, seen, dream = pictures.values()
    context, shown = len(real) - len(dream), [t for t in SHOWN if t < len(real)]
    fig = Figure(figsize=(WIDTH, 3.55), layout="constrained")
    axes = fig.subplots(4, len(shown), squeeze=False)
    away = 128 + dream.mean(-1) - real[context:].mean(-1)
    labels, colors = ("real", "seen", "dreamed", "differs"), (REAL, REAL, DREAM, HARM)
    for i, frames in enumerate((real, seen, dream, away)):
        axes[i, 0].set_ylabel(labels[i], color=colors[i])
        first = len(real) - len(frames)
        for ax, t in zip(axes[i], shown, strict=True):
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set(visible=t >= first, color=BEFORE)
            if t >= first:
                ax.imshow(frames[t - first], cmap="gray", vmin=0, vmax=255)
    for ax, t in zip(axes[0], shown, strict=True):
        ax.set_title(str(t))
    fig.suptitle(title)
    fig.supxlabel(
        f"frame; the dream has seen the first {context} and the actions, nothing else\n"
        "differs: grey where it does not, light where the dream is too light, dark where too dark"
    )
    save(fig, path)


def real_beside_dreamed(pictures: Pictures, title: str, path: Path | str) -> None:
    """A GIF: the real frame at the left, the agent's own beside it, both enlarged."""
    real, seen, dream = pictures.values()
    context = len(real) - len(dream)
    bar = np.full((*real.shape[:2], 1, 3), 128, np.uint8)
    ours = np.concatenate([seen[:context], dream])
    frames = np.concatenate([real, bar, ours], 2).repeat(4, 1).repeat(4, 2)
    captions = ["left: real, right: what it sees"] * context
    captions += [f"left: real, right: its dream, frame {t + 1}" for t in range(len(dream))]
    animations.write_gif(frames, captions, title, path, milliseconds=100, cut=False)


def linear_probe(
    agent: DreamerAgent, env: Any, episodes: int = 8, seed: int = 0, skip: int = 3
) -> dict[str, list[float]]:
    """How well a linear map reads the simulator's true state from the agent's state.

    Fitted (ridge) on three quarters of greedy episodes, judged on the rest; the first `skip` rows
    of each do not count, as no velocity can be seen in them. Returns `r2` and `rmse`, one for each
    number of the state; of the pendulum cosine and sine of the angle stand in place of the angle.
    """
    feats, states = [], []
    with AgentEnv(env, agent.config.action_repeat) as world:
        for i in range(seed, seed + episodes):
            policy, truth = greedy_policy(agent, i), []

            def look(obs: np.ndarray, is_first: bool, policy=policy, truth=truth) -> np.ndarray:
                truth.append(true_state(world))
                return policy(obs, is_first)

            episode = play(world, look, 10_000 + i)
            truth.append(true_state(world))
            feat = agent.rssm.get_feat(filter_episode(agent, episode, seed)).cpu().numpy()
            feats.append(feat[skip:])
            states.append(np.array(truth)[skip:])
    cut = max(1, episodes * 3 // 4)
    probe = Ridge().fit(np.concatenate(feats[:cut]), np.concatenate(states[:cut]))
    read, true = probe.predict(np.concatenate(feats[cut:])), np.concatenate(states[cut:])
    r2 = r2_score(true, read, multioutput="raw_values")
    rmse = root_mean_squared_error(true, read, multioutput="raw_values")
    return {"r2": r2.round(4).tolist(), "rmse": rmse.round(4).tolist()}


def true_state(world: AgentEnv) -> np.ndarray:
    """What the simulator knows."""
    state = np.array(world.unwrapped.state, float)
    return state if len(state) > 2 else np.array([np.cos(state[0]), np.sin(state[0]), state[1]])
