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

--agent PATH draws the same of that agent alone, of whatever environment (--env, if its file does
not say which), below the environment's own name. What is known of four tasks alone is left to the
agent then: the numbers of the observation that vary most are drawn, and the animation shows curves.
Of an agent that sees images a filmstrip and a GIF show what it sees and dreams (lab/pixels.py).

    python 04_visualize.py --agent runs/Hopper-v5/seed0/agent.pt
"""

import dataclasses
import operator
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lab import animations, cli, figures, pixels, results, style
import gymnasium as gym
import numpy as np
import torch
from sklearn.manifold import TSNE

from dreamer import AgentEnv, Config, DreamerAgent, load_agent
from dreamer.checkpoint import write_json
from dreamer.envs import EnvFault
from dreamer.evaluation import (
    Episode,
    check_fit,
    filter_episode,
    greedy_policy,
    open_loop,
    play,
    random_policy,
    states_before,
)
from dreamer.resume import agent_env
from dreamer.rssm import State
from dreamer.run import pick_device, tune_cpu
from dreamer.utils import derive_seed

CONFIG = Config()  # only its seed is used here: that of the agents and of what is drawn
CONTEXT = 5  # observed steps before a dream, fewer where the episodes are short
HORIZON = 50  # steps of the dreams in the figure
GIF_STEPS = 100  # of the dreams in the animation, at most
GHOSTS = 8  # dreams in the animation
POINTS = 2_000  # states in the map, and steps of an episode, at most
PANELS, CURVES = 8, 4  # numbers of an observation in the figure and the animation, at most
VISUALIZE = 40  # stream of random numbers


class Task(NamedTuple):
    name: str
    env_id: str
    quantity: str  # what the last map is coloured by
    measure: Callable[[np.ndarray], np.ndarray] | None  # dimensions of the observation (O, T)
    cmap: str = "viridis"

    @property
    def title(self) -> str:
        return self.env_id.rpartition(":")[2]  # without the module that registers it


TASKS = [
    Task("cartpole", "CartPole-v1", "pole angle (°)", lambda x: np.degrees(x[2]), "coolwarm"),
    Task("pendulum", "Pendulum-v1", "angle (0: up)", lambda x: np.arctan2(x[1], x[0]), "twilight"),
    Task("acrobot", "Acrobot-v1", "height of tip", lambda x: -x[0] - x[0] * x[2] + x[1] * x[3]),
    Task("lunar_lander", "LunarLander-v3", "altitude (scaled)", lambda x: x[1]),
]


@dataclasses.dataclass(frozen=True)
class Args(cli.Args):
    shipped: bool = False  # draw the agents of assets/, not those of your own runs
    agent: Path | None = None  # draw this agent alone, of any environment
    env: str | None = None  # its environment's id, or module:id (default: as its file says)


def task_of(args: Args) -> Task:
    """That of the agent that the user names; one without a quantity, unless it is known."""
    env_id = args.env or agent_env(args.agent)
    slug = re.sub(r"[^\w.-]", "-", env_id.rpartition(":")[2])
    return next((t for t in TASKS if t.env_id == env_id), Task(slug, env_id, "", None))


def find_agent(task: Task, args: Args) -> DreamerAgent | None:
    """The agent that the user names; else that of the user's own run, else the one that comes with
    the repository. Raises what is wrong with a named one."""
    if args.agent:
        paths = [Path(args.agent)]
    else:
        own = args.base / results.SCRIPTS[task.name] / f"seed{args.seed}" / "agent.pt"
        shipped = cli.ASSETS / "agents" / f"{task.name}.pt"
        paths = [path for path in ([shipped] if args.shipped else [own, shipped]) if path.exists()]
    for path in paths:
        env = AgentEnv(task.env_id)
        try:
            agent = load_agent(path, args.device)
            check_fit(agent, env)
            print(f"{task.env_id}: {cli.short(path)}")
            return agent
        except (ValueError, OSError) as error:
            if args.agent:
                raise
            print(f"{task.env_id}: {cli.short(path)} is not drawn: {error}")
        finally:
            env.close()
    print(f"{task.env_id}: no agent; train one with: python {results.SCRIPTS[task.name]}.py")
    return None


def episode_seed(seed: int, kind: int, number: int) -> int:
    """Of an episode that `watch` plays: of the agent (kind 0) or of random actions (1)."""
    return derive_seed(seed, VISUALIZE, kind, number)


def watch(agent: DreamerAgent, task: Task, seed: int, steps: int) -> tuple[list[Episode], ...]:
    """Real episodes of at least `steps` actions in all: of the greedy agent, and of held random
    actions, which show it what it does not do itself."""
    longest = min(agent.config.max_episode_steps, POINTS)
    env, groups = AgentEnv(task.env_id, agent.config.action_repeat, longest), ([], [])
    warnings.filterwarnings("ignore", ".* was cut there")
    for kind, episodes in enumerate(groups):
        while sum(len(episode["reward"]) - 1 for episode in episodes) < steps:
            stream = episode_seed(seed, kind, len(episodes))
            choose = random_policy(env, 8, stream) if kind else greedy_policy(agent, stream)
            episodes.append(play(env, choose, stream))
    env.close()
    return groups


def to_draw(own: list[Episode], rows: int) -> int:
    """Which episode to draw: the first of so many rows, or the longest if none is as long."""
    lengths = [len(episode["obs"]) for episode in own]
    return next((i for i, length in enumerate(lengths) if length >= rows), int(np.argmax(lengths)))


def observed(rows: int) -> int:
    """How many of an episode's rows are observed before a dream."""
    return min(CONTEXT, rows // 2)


def short_dreams(agent: DreamerAgent, episodes: list[Episode]) -> tuple[Episode, Episode]:
    """Dreams as long as in training, or as the longest episode allows, all along the episodes that
    are that long: real rows (N, T, ...) and dreams of the last of them (N, H, ...)."""
    longest = max(len(episode["obs"]) for episode in episodes)
    length = min(CONTEXT + agent.config.imag_horizon, longest)
    windows, states = [], []
    for episode in episodes:
        if (last := len(episode["obs"]) - length) < 0:
            continue
        before = states_before(agent, episode, seed=0)
        for start in sorted({*range(0, last, length), last}):  # the episode's end included
            windows.append({k: rows[start : start + length] for k, rows in episode.items()})
            states.append([x[start] for x in before])
    real = {name: np.stack([w[name] for w in windows]) for name in windows[0]}
    before = State(*map(torch.stack, zip(*states, strict=True)))
    return real, open_loop(agent, real["obs"], real["action"], observed(length), 0, before)


def dream_errors(truth: Episode, dreamed: Episode) -> dict[str, float]:
    """How good dreams are: mean absolute errors, of observations in units of their spread."""
    spread = truth["obs"].std((0, 1)).clip(1e-12)
    moves = spread > min(1e-3, spread.max() / 1000)  # a dimension that never moved tells nothing
    context = truth["obs"].shape[1] - dreamed["obs"].shape[1]
    real, dream = (x["obs"][..., moves] / spread[moves] for x in (truth, dreamed))
    ahead, last = real[:, context:], real[:, context - 1 : context]
    error, naive_error = np.abs(dream - ahead), np.abs(last - ahead)
    reward = truth["reward"][:, context:]
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


# ---------------------------------------------------------------- what an observation says

Reading = tuple[str, Callable[[np.ndarray], np.ndarray]]  # its name; dimensions (O, ...) -> (...)


def readings(agent: DreamerAgent, obs: np.ndarray, most: int, whole: bool = True) -> list[Reading]:
    """The numbers that vary most in observations (N, O), in units of the encoder's norm, at most so
    many, in their order. whole: a one-hot vector is one number, its category, else K of them."""
    with torch.inference_mode():
        norm = agent.encoder.norm(torch.from_numpy(obs).to(agent.device))
    spread, found, start = norm.cpu().numpy().std(0), [], 0
    for size in agent.obs_parts:
        end = start + max(size, 1)
        if size > 1 and whole:
            part, name = slice(start, end), f"category (observations {start} to {end - 1})"
            share = float(np.linalg.norm(spread[part]))
            found.append((share, (name, lambda x, part=part: x[part].argmax(0))))
        else:
            for i in range(start, end):
                name = f"observation {i}" + ": flag" * (size == 1)
                if size > 1:
                    name = f"category {i - start}" + (f" (entry {i})" if start else "")
                found.append((float(spread[i]), (name, operator.itemgetter(i))))
        start = end
    ranked = sorted(range(len(found)), key=lambda k: -found[k][0])
    chosen = [k for k in ranked[:most] if found[k][0] > 1e-6] or ranked[:1]
    return [found[k][1] for k in sorted(chosen)]


def read(chosen: list[Reading], obs: np.ndarray) -> np.ndarray:
    """(..., O) -> (..., D), a number for each reading."""
    return np.stack([number(np.moveaxis(obs, -1, 0)) for _, number in chosen], -1)


# ---------------------------------------------------------------- pictures


def map_latents(agent: DreamerAgent, task: Task, groups: tuple, points: int, path: Path) -> None:
    """t-SNE of filtered states, half from the agent's own episodes, half from the others'."""
    rng, parts = np.random.default_rng(0), []
    for whose, episodes in zip(("own", "random"), groups, strict=True):
        watched = [filter_episode(agent, e, seed=0)[1:].cpu().numpy() for e in episodes]
        feat = np.concatenate(watched)  # no first rows: they have no reward
        obs = np.concatenate([e["obs"][1:] for e in episodes])
        rows = np.concatenate([feat, obs], 1)  # each once, where episodes are the same again
        once = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        chosen = once[rng.permutation(len(once))[: points // 2]]
        reward = np.concatenate([e["reward"][1:] for e in episodes])[chosen]
        quantity = task.measure(obs.T)[chosen]
        parts.append((feat[chosen], np.full(len(chosen), whose), reward, quantity))
    parts.sort(key=lambda part: -len(part[0]))  # the fewer ones are drawn last
    feat, whose, reward, quantity = (np.concatenate(part) for part in zip(*parts, strict=True))
    with torch.inference_mode():
        value = agent.critic.predict(torch.from_numpy(feat).to(agent.device)).cpu().numpy()
    tsne = TSNE(perplexity=max(1, min(30, len(feat) // 4)), init="pca", random_state=0)
    colourings = [
        ("whose actions", whose, ""),
        ("reward received", reward, "viridis"),
        ("critic's value", value, "viridis"),
        (task.quantity, quantity, task.cmap),
    ]
    title = f"{task.title}: a map (t-SNE) of {len(feat):,} states of the world model, coloured by"
    figures.latents_figure(title, tsne.fit_transform(feat), colourings, path)


def draw_dreams(agent: DreamerAgent, task: Task, episode: Episode, path: Path) -> None:
    """Many dreams ahead of the start of an episode, dimension by dimension."""
    context, dreams = observed(len(episode["obs"])), dream_on(agent, episode, 32)
    rows = len(episode["obs"])
    steps = f"{context} steps" if context == CONTEXT else f"only {context} of {rows} steps"
    known = style.OBS_NAMES.get(task.env_id, [])
    chosen = [(name, operator.itemgetter(i)) for i, name in enumerate(known)]
    chosen = chosen or readings(agent, episode["obs"], PANELS, whole=False)
    figures.dream_figure(
        f"{task.title}: {steps} observed, then dreamed, with the actions really taken",
        [name for name, _ in chosen],
        context,
        {**episode, "obs": read(chosen, episode["obs"])},
        {**dreams, "obs": read(chosen, dreams["obs"])},
        path,
        trained=agent.config.imag_horizon,
        step=row_name(agent),
    )


def row_name(agent: DreamerAgent) -> str:
    held = agent.config.action_repeat
    return "environment step" if held == 1 else f"choice of an action, held for {held} steps"


def animate(agent: DreamerAgent, task: Task, episode: Episode, reset_seed: int, path: Path) -> int:
    """An episode, and dreams of it that take the same actions. Returns the file's size."""
    dreams = dream_on(agent, episode, GHOSTS)
    over, context = figures.over(dreams["cont"]), observed(len(episode["obs"]))
    known = task.env_id in style.OBS_NAMES
    moves = np.abs(np.diff(episode["obs"], axis=0)).max(1) > (0.03 if known else 0)
    still, ended = moves.nonzero()[0].max(initial=0), context + (~over).sum(1).max()
    rows = min(len(moves) + 1, still + 15, ended + 10)  # what follows shows nothing

    captions = [f"watching, step {t + 1} of {context}" for t in range(context)]
    for gone in over.sum(0)[: rows - context]:
        count = f"; {gone} of {GHOSTS} dreams have ended" if gone else ""
        number = len(captions) - context + 1
        captions.append(
            f"dreaming, step {number} (in training: {agent.config.imag_horizon}){count}"
        )
    episode = {name: values[:rows] for name, values in episode.items()}
    draw = draw_ghosts if known else draw_curves
    pictures = draw(agent, task, episode, dreams["obs"][:, : rows - context], over, reset_seed)
    real = "Solid" if known else "Black"
    title = f"{real}: reality. Blue: {GHOSTS} dreams that take the same actions."
    pace = 60 if known else max(60, 4_000 // rows)
    return animations.write_gif(pictures, captions, title, path, pace, cut=known)


def draw_ghosts(
    agent: DreamerAgent, task: Task, episode: Episode, obs: np.ndarray, over: np.ndarray, seed: int
) -> list[np.ndarray]:
    """A picture of each row, with what the dreams that go on say of it: obs (K, H, O)."""
    draw = animations.render_observations
    pictures = draw(task.env_id, episode["obs"], seed)
    empty = animations.scenery(task.env_id, agent.obs_size, seed)
    for t in range(obs.shape[1]):
        alive, row = draw(task.env_id, obs[~over[:, t], t], seed), t - obs.shape[1]
        pictures[row] = animations.ghosts(pictures[row], alive, empty)
    return pictures


def draw_curves(
    agent: DreamerAgent, task: Task, episode: Episode, obs: np.ndarray, over: np.ndarray, seed: int
) -> list[np.ndarray]:
    """The same as curves, beside what the environment itself draws, if it does."""
    chosen = readings(agent, episode["obs"], CURVES)
    dreamed = np.where(over[:, : obs.shape[1], None], np.nan, read(chosen, obs))
    names, real = [name for name, _ in chosen], read(chosen, episode["obs"])
    try:
        beside = animations.seen_again(task.env_id, agent.config.action_repeat, episode, seed)
    except Exception as error:  # whatever drawing needs and this machine lacks
        print(f"    curves alone, as the environment does not draw itself: {error}")
        beside = []
    return animations.curves(names, real, dreamed, row_name(agent), beside)


def dream_on(agent: DreamerAgent, episode: Episode, count: int) -> Episode:
    """Dreams ahead of the episode's first rows, taking its actions: (count, H, ...)."""
    window = (np.repeat(episode[name][None], count, 0) for name in ("obs", "action"))
    return open_loop(agent, *window, observed(len(episode["obs"])), seed=0)


def visualize(agent: DreamerAgent, task: Task, args: Args) -> dict[str, float] | None:
    """All pictures of one task. Returns how good the dreams were; None, and no pictures, where the
    agent's episodes are over before a dream could begin."""
    points, horizon, gif_steps = (100, 10, 20) if args.smoke else (POINTS, HORIZON, GIF_STEPS)
    groups = watch(agent, task, args.seed, points // 2)
    number = to_draw(groups[0], CONTEXT + agent.config.imag_horizon)
    whole, stem = groups[0][number], f"04_{task.name}"
    if len(whole["obs"]) < 3:  # nothing would be left to dream
        print("    no pictures: its episodes end with the first choice")
        return None
    if agent.images:
        first, name = len(agent.encoder.norm.mean), "brightness of the image"
        task = task._replace(quantity=name, measure=lambda x: x[first:].mean(0))
    elif not task.measure:
        obs = np.concatenate([episode["obs"] for episode in groups[0] + groups[1]])
        ((quantity, measure),) = readings(agent, obs, 1)
        task = task._replace(quantity=quantity, measure=measure)
    map_latents(agent, task, groups, points, args.run_dir / f"{stem}_latents.png")
    size = draw_all(agent, task, whole, number, args, horizon, gif_steps)
    if agent.images:  # most pixels never change: the squared error in the log says more
        return {"gif_bytes": size}
    errors = dream_errors(*short_dreams(agent, groups[0] + groups[1]))
    print(
        f"    error of {errors['dream_steps']}-step dreams {errors['obs_error']:.2f} of the "
        f"data's spread (nothing changes: {errors['naive_obs_error']:.2f})"
    )
    return {**errors, "gif_bytes": size}


def draw_all(
    agent: DreamerAgent, task: Task, whole: Episode, number: int, args: Args, horizon: int, gif: int
) -> int:
    """Dreams of an episode as a figure and as a GIF. Returns the size of the latter."""
    stem = f"04_{task.name}"
    if agent.images:
        *_, path = pixels.draw_all(agent, task.env_id, args.seed, args.run_dir, stem)
        return path.stat().st_size
    episode = {name: rows[: CONTEXT + horizon] for name, rows in whole.items()}
    draw_dreams(agent, task, episode, args.run_dir / f"{stem}_dreams.png")
    episode = {name: rows[: CONTEXT + gif] for name, rows in whole.items()}
    reset_seed = episode_seed(args.seed, 0, number)
    return animate(agent, task, episode, reset_seed, args.run_dir / f"{stem}.gif")


def main(args: Args) -> int:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # the environments draw without a window
    if pick_device(args.device).type == "cpu":
        tune_cpu()
    tasks = [task_of(args)] if args.agent else TASKS
    if tasks[0] in TASKS:  # whose pictures it describes
        (args.run_dir / "result.json").unlink(missing_ok=True)  # the mark of a complete run
    started, numbers, failed = time.monotonic(), {}, False
    for task in tasks:
        try:
            agent = find_agent(task, args)
            if agent and (row := visualize(agent, task, args)):
                numbers[task.name] = row
        except (EnvFault, ImportError, gym.error.Error) as error:
            print(f"{task.env_id}: no pictures, as the environment fails: {error}")
            if args.agent:
                print("    --env takes another id, with its module if need be: module:Name-v0")
            failed = True
    minutes, config = (time.monotonic() - started) / 60, dataclasses.asdict(args.config)
    result = {"tasks": numbers, "minutes": minutes, "config": config}
    write_json(args.run_dir / (f"04_{tasks[0].name}.json" if args.agent else "result.json"), result)
    print(f"Looked into {len(numbers)} of {len(tasks)} agents: {cli.short(args.run_dir)}")
    return int(failed)


if __name__ == "__main__":
    args = cli.parse(__file__, __doc__, CONFIG, kind=Args)
    if args.env and not args.agent:
        cli.fail("--env goes with --agent", status=2)
    cli.run(main, args)
