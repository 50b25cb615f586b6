"""Inside a trained agent's head: where its states lie, and what it dreams.

For each task whose agent is found, in runs/<script>/seed<k>/checkpoint.pt of your own training or
else in assets/agents, three pictures are made:

- assets/04_<task>_latents.png: a map (t-SNE) of the model's states while it watches episodes of
  its own and of random actions, coloured by whose they are, by reward, by the critic's value and
  by a physical quantity that no loss ever names.
- assets/04_<task>_dreams.png: dreams against reality. After 5 observed steps the model dreams on
  with the prior alone, taking the actions that were really taken; the band shows many dreams.
- assets/04_<task>.gif: the real episode beside one such dream, both drawn by the environment's own
  renderer, its state set from the real and from the decoded dreamed observation.

The numbers go to assets/results/visualize.json.

    python 04_visualize.py
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.manifold import TSNE

from dreamer.agent import Config, DreamerAgent
from dreamer.checkpoint import CheckpointError, write_json
from dreamer.envs import AgentEnv
from dreamer.evaluation import (
    Episode,
    agent_chooses,
    chance_chooses,
    filter_episode,
    open_loop,
    play,
)
from dreamer.training import load_agent
from dreamer.utils import derive_seed, pick_device, tune_cpu
from lab import animations, cli, figures

CONFIG = Config()  # only its seed is used here: that of the agents and of what is drawn
CONTEXT = 5  # observed steps before a dream
HORIZON = 50  # steps of the dreams in the figure
GIF_STEPS = 100  # of the dream in the animation, at most
POINTS = 2_000  # states in the map
VISUALIZE = 40  # stream of random numbers


class Task(NamedTuple):
    name: str
    env_id: str
    script: str  # that trains it
    quantity: str  # what the third map is coloured by
    measure: Callable[[np.ndarray], np.ndarray]  # obs (T, O) -> that quantity (T,)
    cmap: str


TASKS = [
    Task(
        "cartpole",
        "CartPole-v1",
        "02_dreamer_cartpole",
        "pole angle (degrees)",
        lambda obs: np.degrees(obs[:, 2]),
        "coolwarm",
    ),
    Task(
        "pendulum",
        "Pendulum-v1",
        "03_dreamer_pendulum",
        "angle from upright (degrees)",
        lambda obs: np.degrees(np.arctan2(obs[:, 1], obs[:, 0])),
        "twilight",
    ),
    Task(
        "acrobot",
        "Acrobot-v1",
        "05_dreamer_acrobot",
        "height of the tip (links; goal: 1)",
        lambda obs: -obs[:, 0] - (obs[:, 0] * obs[:, 2] - obs[:, 1] * obs[:, 3]),
        "viridis",
    ),
    Task(
        "lunar_lander",
        "LunarLander-v3",
        "06_dreamer_lunar_lander",
        "altitude (1 = half the screen)",
        lambda obs: obs[:, 1],
        "viridis",
    ),
]


def find_agent(task: Task, args: cli.Args) -> DreamerAgent | None:
    """The run's own agent, else the one that comes with the repository; None with a message."""
    own = Path("runs") / task.script / f"seed{args.seed}" / "checkpoint.pt"
    given = Path("assets") / "agents" / f"{task.name}.pt"
    roots = [args.base] if args.smoke else [args.base, args.script.parent]
    places = [root / place for root in roots for place in (own, given)]
    for path in places:
        if path.exists():
            try:
                agent = load_agent(path, args.device)
            except CheckpointError as error:
                print(f"{task.env_id}: {error}")
                continue
            print(f"{task.env_id}: {path}")
            return agent
    if args.smoke:  # every stage is to run
        print(f"{task.env_id}: an untrained agent")
        env = AgentEnv(task.env_id)
        return DreamerAgent(env.obs_size, env.action_size, env.discrete, args.config)
    print(
        f"{task.env_id}: no usable agent in {places[0]} or {places[-1]}; "
        f"train one with: python {task.script}.py --seed {args.seed}"
    )
    return None


def episode_seed(seed: int, kind: int, number: int) -> int:
    """Of an episode that `watch` plays: of the agent (kind 0) or of random actions (1)."""
    return derive_seed(seed, VISUALIZE, kind, number)


def watch(
    agent: DreamerAgent, task: Task, seed: int, steps: int
) -> tuple[list[Episode], list[Episode]]:
    """Real episodes of at least `steps` actions in all: of the greedy agent, and of held random
    actions, which show it what it does not do itself."""
    env, groups = AgentEnv(task.env_id, agent.config.action_repeat), []
    for kind in range(2):
        episodes: list[Episode] = []
        while sum(len(episode["reward"]) - 1 for episode in episodes) < steps:
            stream = episode_seed(seed, kind, len(episodes))
            greedy = agent_chooses(agent, stream)
            choose = chance_chooses(env, 8, stream) if kind else greedy
            episodes.append(play(env, choose, stream))
        groups.append(episodes)
    env.close()
    return groups[0], groups[1]


def map_latents(
    agent: DreamerAgent,
    task: Task,
    groups: tuple[list[Episode], ...],
    points: int,
    path: Path,
) -> None:
    """t-SNE of `points` filtered states, as many of the agent's own episodes as of the others."""
    rng = np.random.default_rng(0)
    feats, owns, rewards, quantities = [], [], [], []
    for own, episodes in zip((1.0, 0.0), groups, strict=True):  # no first rows: they have no reward
        watched = [filter_episode(agent, e, seed=0)[1:].cpu().numpy() for e in episodes]
        feat = np.concatenate(watched)
        chosen = rng.permutation(len(feat))[: points // 2]
        feats.append(feat[chosen])
        owns.append(np.full(len(chosen), own))
        rewards.append(np.concatenate([e["reward"][1:] for e in episodes])[chosen])
        quantities.append(np.concatenate([task.measure(e["obs"][1:]) for e in episodes])[chosen])
    feat = np.concatenate(feats)
    with torch.inference_mode():
        value = agent.critic.predict(torch.from_numpy(feat).to(agent.device)).cpu().numpy()
    places = TSNE(perplexity=min(30, len(feat) // 4), init="pca", random_state=0).fit_transform(
        feat
    )
    figures.latents_figure(
        f"{task.env_id}: t-SNE of {len(feat):,} latent states, coloured by",
        places,
        [
            ("actions: own (1), random (0)", np.concatenate(owns), "cividis"),
            ("reward received", np.concatenate(rewards), "viridis"),
            ("critic's value", value, "viridis"),
            (task.quantity, np.concatenate(quantities), task.cmap),
        ],
        path,
    )


def short_dreams(agent: DreamerAgent, episodes: list[Episode]) -> tuple[Episode, Episode]:
    """Dreams of `imag_horizon` steps, as in training, or as long as the longest episode allows,
    all along the episodes that are that long: (real rows, dreams), leading shape
    (N, context + horizon) and (N, horizon)."""
    longest = max(len(episode["obs"]) for episode in episodes)
    length = min(CONTEXT + agent.config.imag_horizon, longest)
    windows = [
        {name: rows[start : start + length] for name, rows in episode.items()}
        for episode in episodes
        if (last := len(episode["obs"]) - length) >= 0
        for start in sorted({*range(0, last, length), last})  # the episode's end included
    ]
    real = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    return real, open_loop(agent, real["obs"], real["action"], CONTEXT, seed=0)


def to_draw(own: list[Episode], rows: int) -> int:
    """Which episode to draw: the first of so many rows, or the longest if none is as long."""
    lengths = [len(episode["obs"]) for episode in own]
    return next((i for i, length in enumerate(lengths) if length >= rows), int(np.argmax(lengths)))


def visualize(agent: DreamerAgent, task: Task, args: cli.Args) -> dict[str, float] | None:
    """All pictures of one task. Returns how good the dreams were; None, and no pictures, where the
    agent's episodes are over before a dream could begin."""
    seed, horizon = args.seed, 10 if args.smoke else HORIZON
    held = agent.config.action_repeat
    points = 100 if args.smoke else POINTS
    own, others = watch(agent, task, seed, points // 2)
    chosen = to_draw(own, CONTEXT + agent.config.imag_horizon)
    if len(own[chosen]["obs"]) <= CONTEXT:
        return None
    stem = f"04_{task.name}"
    map_latents(agent, task, (own, others), points, args.assets / f"{stem}_latents.png")

    # Dreams ahead of the start of one episode of the agent, and short ones of all episodes.
    real = {name: rows[: CONTEXT + horizon] for name, rows in own[chosen].items()}
    window = (np.repeat(real[name][None], 32, 0) for name in ("obs", "action"))
    dreams = open_loop(agent, *window, CONTEXT, seed)
    truth, dreamed = short_dreams(agent, own + others)
    reward = truth["reward"][:, CONTEXT:]
    figures.dream_figure(
        f"{task.env_id}: {CONTEXT} observed steps, then dreamed from the prior alone, "
        "same actions as in reality",
        figures.OBS_NAMES[task.env_id],
        CONTEXT,
        real,
        dreams,
        args.assets / f"{stem}_dreams.png",
        scatter=(reward.flatten(), dreamed["reward"].flatten()),
        step="environment step" if held == 1 else f"step (an action, held for {held})",
    )
    size = animate(agent, task, own[chosen], episode_seed(seed, 0, chosen), args)

    spread = truth["obs"].std((0, 1))
    moves = spread > 1e-3  # a dimension that never moved tells nothing
    scaled, dreamed_scaled = (x["obs"][..., moves] / spread[moves] for x in (truth, dreamed))
    ahead, last = scaled[:, CONTEXT:], scaled[:, CONTEXT - 1 : CONTEXT]
    error, naive_error = np.abs(dreamed_scaled - ahead), np.abs(last - ahead)
    return {
        "dreams": len(ahead),
        "dream_steps": ahead.shape[1],
        "obs_error": float(error.mean()),
        "naive_obs_error": float(naive_error.mean()),
        "first_obs_error": float(error[:, 0].mean()),
        "first_naive_obs_error": float(naive_error[:, 0].mean()),
        "reward_error": float(np.abs(dreamed["reward"] - reward).mean()),
        "reward_spread": float(reward.std()),
        "gif_bytes": size,
    }


def animate(
    agent: DreamerAgent, task: Task, episode: Episode, reset_seed: int, args: cli.Args
) -> int:
    """The episode beside one dream of it that takes the same actions. Returns the file's size."""
    steps, held = 20 if args.smoke else GIF_STEPS, agent.config.action_repeat
    obs, action = (episode[name][None, : CONTEXT + steps] for name in ("obs", "action"))
    dream = open_loop(agent, obs, action, CONTEXT, args.seed)
    dreamed = np.concatenate([obs[0, :CONTEXT], dream["obs"][0]])  # what it saw, then its dream

    captions = [
        (
            f"real, step {t * held}",
            "observing" if t < CONTEXT else "dreamed (prior alone, same actions)",
        )
        for t in range(len(dreamed))
    ]
    pictures = (
        animations.render_observations(task.env_id, x, reset_seed) for x in (obs[0], dreamed)
    )
    return animations.write_gif(*pictures, captions, args.assets / f"04_{task.name}.gif")


def main(args: cli.Args) -> None:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the environments draw without a window
    if pick_device(args.device).type == "cpu":
        tune_cpu()
    numbers = {}
    for task in TASKS:
        agent = find_agent(task, args)
        if agent is not None:
            row = visualize(agent, task, args)
            if row is None:
                print(f"    no pictures: its episodes end within {CONTEXT} choices")
                continue
            numbers[task.name] = row
            print(
                f"    error of {row['dream_steps']}-step dreams {row['obs_error']:.2f} of the "
                f"data's spread (nothing changes: {row['naive_obs_error']:.2f}); "
                f"GIF of {row['gif_bytes'] / 1e6:.1f} MB"
            )
    write_json(args.results / "visualize.json", numbers)
    print(f"Looked into {len(numbers)} of {len(TASKS)} agents; figures in {args.assets}")


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG))
