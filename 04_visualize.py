"""Inside a trained agent's head: where its states lie, and what it dreams.

For each task it looks into the agent of your own run, runs/<script>/seed<k>/agent.pt, or else into
the one that comes with the repository (--shipped: into that one in any case), and draws

- 04_<task>_latents.png: a map of the world model's states in episodes of its own and of random
  actions, coloured by reward, by value and by a quantity that no loss ever names;
- 04_<task>_dreams.png: dreams against reality. After 5 observed steps the model dreams on with the
  prior alone, taking the actions that were really taken, far beyond the 15 steps of its training;
- 04_<task>.gif: such dreams and the real episode on one canvas, drawn by the environment itself.

Pictures and numbers go to runs/04_visualize/seed<k>.

    python 04_visualize.py
"""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lab import animations, cli, figures, results, style
import numpy as np
import torch
from sklearn.manifold import TSNE

from dreamer import AgentEnv, Config, DreamerAgent, load_agent
from dreamer.checkpoint import CheckpointError, write_json
from dreamer.evaluation import (
    Episode,
    agent_chooses,
    chance_chooses,
    filter_episode,
    open_loop,
    play,
)
from dreamer.run import pick_device, tune_cpu
from dreamer.utils import derive_seed

CONFIG = Config()  # only its seed is used here: that of the agents and of what is drawn
CONTEXT = 5  # observed steps before a dream
HORIZON = 50  # steps of the dreams in the figure
GIF_STEPS = 100  # of the dreams in the animation, at most
GHOSTS = 8  # dreams in the animation
POINTS = 2_000  # states in the map
VISUALIZE = 40  # stream of random numbers


class Task(NamedTuple):
    name: str
    env_id: str
    quantity: str  # what the last map is coloured by
    measure: Callable[[np.ndarray], np.ndarray]  # dimensions of the observation (O, T) -> (T,)
    cmap: str = "viridis"


TASKS = [
    Task("cartpole", "CartPole-v1", "pole angle (°)", lambda x: np.degrees(x[2]), "coolwarm"),
    Task("pendulum", "Pendulum-v1", "angle (0: up)", lambda x: np.arctan2(x[1], x[0]), "twilight"),
    Task("acrobot", "Acrobot-v1", "height of tip", lambda x: -x[0] - x[0] * x[2] + x[1] * x[3]),
    Task("lunar_lander", "LunarLander-v3", "altitude (scaled)", lambda x: x[1]),
]


@dataclasses.dataclass(frozen=True)
class Args(cli.Args):
    shipped: bool = False  # draw the agents of assets/, not those of your own runs


def find_agent(task: Task, args: Args) -> DreamerAgent | None:
    """The agent of the user's own run, else the one that comes with the repository."""
    own = args.base / results.SCRIPTS[task.name] / f"seed{args.seed}" / "agent.pt"
    shipped = cli.ASSETS / "agents" / f"{task.name}.pt"
    for path in [shipped] if args.shipped else [own, shipped]:
        if path.exists():
            try:
                agent = load_agent(path, args.device)
                print(f"{task.env_id}: {cli.short(path)}")
                return agent
            except CheckpointError as error:
                print(f"{task.env_id}: {error}")
    print(f"{task.env_id}: no agent; train one with: python {results.SCRIPTS[task.name]}.py")
    return None


def episode_seed(seed: int, kind: int, number: int) -> int:
    """Of an episode that `watch` plays: of the agent (kind 0) or of random actions (1)."""
    return derive_seed(seed, VISUALIZE, kind, number)


def watch(agent: DreamerAgent, task: Task, seed: int, steps: int) -> tuple[list[Episode], ...]:
    """Real episodes of at least `steps` actions in all: of the greedy agent, and of held random
    actions, which show it what it does not do itself."""
    env, groups = AgentEnv(task.env_id, agent.config.action_repeat), ([], [])
    for kind, episodes in enumerate(groups):
        while sum(len(episode["reward"]) - 1 for episode in episodes) < steps:
            stream = episode_seed(seed, kind, len(episodes))
            choose = chance_chooses(env, 8, stream) if kind else agent_chooses(agent, stream)
            episodes.append(play(env, choose, stream))
    env.close()
    return groups


def to_draw(own: list[Episode], rows: int) -> int:
    """Which episode to draw: the first of so many rows, or the longest if none is as long."""
    lengths = [len(episode["obs"]) for episode in own]
    return next((i for i, length in enumerate(lengths) if length >= rows), int(np.argmax(lengths)))


def short_dreams(agent: DreamerAgent, episodes: list[Episode]) -> tuple[Episode, Episode]:
    """Dreams as long as in training, or as the longest episode allows, all along the episodes that
    are that long: real rows (N, CONTEXT + H, ...) and dreams (N, H, ...)."""
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


def dream_errors(truth: Episode, dreamed: Episode) -> dict[str, float]:
    """How good dreams are: mean absolute errors, of observations in units of their spread."""
    spread = truth["obs"].std((0, 1))
    moves = spread > 1e-3  # a dimension that never moved tells nothing
    real, dream = (x["obs"][..., moves] / spread[moves] for x in (truth, dreamed))
    ahead, last = real[:, CONTEXT:], real[:, CONTEXT - 1 : CONTEXT]
    error, naive_error = np.abs(dream - ahead), np.abs(last - ahead)
    reward = truth["reward"][:, CONTEXT:]
    return {
        "dreams": len(error),
        "dream_steps": error.shape[1],
        "obs_error": float(error.mean()),
        "naive_obs_error": float(naive_error.mean()),
        "first_obs_error": float(error[:, 0].mean()),
        "first_naive_obs_error": float(naive_error[:, 0].mean()),
        "reward_error": float(np.abs(dreamed["reward"] - reward).mean()),
        "reward_spread": float(reward.std()),
    }


def map_latents(agent: DreamerAgent, task: Task, groups: tuple, points: int, path: Path) -> None:
    """t-SNE of filtered states, half from the agent's own episodes, half from the others'."""
    rng, parts = np.random.default_rng(0), []
    for whose, episodes in zip(("own", "random"), groups, strict=True):
        watched = [filter_episode(agent, e, seed=0)[1:].cpu().numpy() for e in episodes]
        feat = np.concatenate(watched)  # no first rows: they have no reward
        chosen = rng.permutation(len(feat))[: points // 2]
        reward = np.concatenate([e["reward"][1:] for e in episodes])[chosen]
        quantity = np.concatenate([task.measure(e["obs"][1:].T) for e in episodes])[chosen]
        parts.append((feat[chosen], np.full(len(chosen), whose), reward, quantity))
    feat, whose, reward, quantity = (np.concatenate(part) for part in zip(*parts, strict=True))
    with torch.inference_mode():
        value = agent.critic.predict(torch.from_numpy(feat).to(agent.device)).cpu().numpy()
    tsne = TSNE(perplexity=min(30, len(feat) // 4), init="pca", random_state=0)
    colourings = [
        ("whose actions", whose, ""),
        ("reward received", reward, "viridis"),
        ("critic's value", value, "viridis"),
        (task.quantity, quantity, task.cmap),
    ]
    title = f"{task.env_id}: a map (t-SNE) of {len(feat):,} states of the world model, coloured by"
    figures.latents_figure(title, tsne.fit_transform(feat), colourings, path)


def draw_dreams(agent: DreamerAgent, task: Task, episode: Episode, path: Path) -> None:
    """Many dreams ahead of the start of an episode, dimension by dimension."""
    held = agent.config.action_repeat
    figures.dream_figure(
        f"{task.env_id}: {CONTEXT} steps observed, then dreamed, with the actions really taken",
        style.OBS_NAMES[task.env_id],
        CONTEXT,
        episode,
        dream_on(agent, episode, 32),
        path,
        trained=agent.config.imag_horizon,
        step="environment step" if held == 1 else f"choice of an action, held for {held} steps",
    )


def animate(agent: DreamerAgent, task: Task, episode: Episode, reset_seed: int, path: Path) -> int:
    """An episode, and dreams of it that take the same actions. Returns the file's size."""
    dreams = dream_on(agent, episode, GHOSTS)
    over = figures.over(dreams["cont"])
    moves = np.abs(np.diff(episode["obs"], axis=0)).max(1) > 0.03
    still, ended = moves.nonzero()[0].max(initial=0), CONTEXT + (~over).sum(1).max()
    rows = min(len(moves) + 1, still + 15, ended + 10)  # what follows shows nothing

    draw = animations.render_observations
    pictures = draw(task.env_id, episode["obs"][:rows], reset_seed)
    empty = animations.scenery(task.env_id, agent.obs_size, reset_seed)
    captions = [f"watching, step {t + 1} of {CONTEXT}" for t in range(CONTEXT)]
    for t in range(rows - CONTEXT):
        alive = draw(task.env_id, dreams["obs"][~over[:, t], t], reset_seed)
        pictures[CONTEXT + t] = animations.ghosts(pictures[CONTEXT + t], alive, empty)
        count = f"; {over[:, t].sum()} of {GHOSTS} dreams have ended" if over[:, t].any() else ""
        captions.append(f"dreaming, step {t + 1} (in training: {agent.config.imag_horizon}){count}")
    title = f"Solid: reality. Blue: {GHOSTS} dreams that take the same actions."
    return animations.write_gif(pictures, captions, title, path)


def dream_on(agent: DreamerAgent, episode: Episode, count: int) -> Episode:
    """Dreams ahead of the episode's first rows, taking its actions: (count, T - CONTEXT, ...)."""
    window = (np.repeat(episode[name][None], count, 0) for name in ("obs", "action"))
    return open_loop(agent, *window, CONTEXT, seed=0)


def visualize(agent: DreamerAgent, task: Task, args: Args) -> dict[str, float] | None:
    """All pictures of one task. Returns how good the dreams were; None, and no pictures, where the
    agent's episodes are over before a dream could begin."""
    points, horizon, gif_steps = (100, 10, 20) if args.smoke else (POINTS, HORIZON, GIF_STEPS)
    groups = watch(agent, task, args.seed, points // 2)
    number = to_draw(groups[0], CONTEXT + agent.config.imag_horizon)
    if len(groups[0][number]["obs"]) <= CONTEXT:
        print(f"    no pictures: its episodes end within {CONTEXT} choices")
        return None
    whole, stem = groups[0][number], f"04_{task.name}"
    map_latents(agent, task, groups, points, args.run_dir / f"{stem}_latents.png")
    episode = {name: rows[: CONTEXT + horizon] for name, rows in whole.items()}
    draw_dreams(agent, task, episode, args.run_dir / f"{stem}_dreams.png")
    episode = {name: rows[: CONTEXT + gif_steps] for name, rows in whole.items()}
    reset_seed = episode_seed(args.seed, 0, number)
    size = animate(agent, task, episode, reset_seed, args.run_dir / f"{stem}.gif")
    errors = dream_errors(*short_dreams(agent, groups[0] + groups[1]))
    print(
        f"    error of {errors['dream_steps']}-step dreams {errors['obs_error']:.2f} of the "
        f"data's spread (nothing changes: {errors['naive_obs_error']:.2f})"
    )
    return {**errors, "gif_bytes": size}


def main(args: Args) -> None:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the environments draw without a window
    if pick_device(args.device).type == "cpu":
        tune_cpu()
    (args.run_dir / "result.json").unlink(missing_ok=True)  # the mark of a complete run
    started, numbers = time.monotonic(), {}
    for task in TASKS:
        agent = find_agent(task, args)
        if agent and (row := visualize(agent, task, args)):
            numbers[task.name] = row
    minutes, config = (time.monotonic() - started) / 60, dataclasses.asdict(args.config)
    result = {"tasks": numbers, "minutes": minutes, "config": config}
    write_json(args.run_dir / "result.json", result)
    print(f"Looked into {len(numbers)} of {len(TASKS)} agents: {cli.short(args.run_dir)}")


if __name__ == "__main__":
    cli.run(main, cli.parse(__file__, __doc__, CONFIG, kind=Args))
