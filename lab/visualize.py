"""What an agent's world model knows: a map of its states, and its dreams beside reality.

    python -m lab.visualize AGENT            in the environment in which it learned
    python -m lab.visualize AGENT --env ID   in another one, or module:ID

Beside the agent's file, and named after it, it writes (here for agent.pt)

- agent_latents.png: a map of its states in episodes of its own and of random actions;
- agent_dreams.png: dreams against reality. After 5 observed steps it dreams on with the prior
  alone, taking the actions that were really taken (eight numbers at most);
- agent.gif: such dreams and the real episode, as curves, or drawn by one of the four tasks;
- agent.json: how good the dreams are.

Of an agent that sees images agent_filmstrip.png and agent_dream.gif show what it sees and dreams.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from sklearn.manifold import TSNE

from dreamer import AgentEnv, DreamerAgent, evaluation, load_agent
from dreamer.checkpoint import write_json
from dreamer.cli import parse
from dreamer.envs import names_of
from dreamer.evaluation import Episode
from dreamer.machine import pick_device, tune_cpu
from dreamer.replay_buffer import Layout
from dreamer.rssm import State
from dreamer.utils import derive_seed
from lab import animations, cli, figures, pixels, style

CONTEXT = 5  # observed steps before a dream, fewer where the episodes are short
HORIZON, FRAMES = 50, 100  # steps of the dreams in the figure and in the animation, at most
GHOSTS = 8  # dreams in the animation
POINTS = 2_000  # states in the map, and steps of an episode, at most
PANELS, CURVES = 8, 4  # entries of an observation in the figure and in the animation, at most
VISUALIZE = 40  # stream of random numbers

Quantity = tuple[str, Callable[[np.ndarray], np.ndarray], str]  # name, obs (N, O) -> (N,), colours


def observed(rows: int) -> int:
    """How many of an episode's rows are observed before a dream."""
    return min(CONTEXT, rows // 2)


def first(episode: Episode, rows: int) -> Episode:
    return {name: values[:rows] for name, values in episode.items()}


def dream_errors(
    agent: DreamerAgent, episodes: list[Episode], context: int, horizon: int
) -> dict[str, np.ndarray]:
    """Absolute errors (N, H, O) of dreams all along the episodes, and of the `naive` guess that
    nothing changes, by the length of the dream; NaN after an episode's end. In units of each
    dimension's spread; those that never move are left out."""
    rows, windows, states = context + horizon, [], []
    for episode in episodes:
        states_of = evaluation.filter_episode(agent, episode, seed=0)
        before = [torch.cat([0 * x[:1], x[:-1]]) for x in states_of]  # in the row before each
        for start in range(0, len(episode["obs"]) - context, rows):
            obs, action = (episode[name][start : start + rows] for name in ("obs", "action"))
            end = ((0, rows - len(obs)), (0, 0))
            windows.append((np.pad(obs, end, constant_values=np.nan), np.pad(action, end)))
            states.append([x[start] for x in before])
    obs, action = map(np.stack, zip(*windows, strict=True))
    before = State(*map(torch.stack, zip(*states, strict=True)))
    dream = evaluation.open_loop(agent, obs, action, context, 0, before)["obs"]
    spread = np.concatenate([episode["obs"] for episode in episodes]).std(0)
    moves = spread > 1e-6
    truth, guesses = obs[:, context:], {"dream": dream, "naive": obs[:, context - 1 : context]}
    return {k: np.abs(x - truth)[..., moves] / spread[moves] for k, x in guesses.items()}


def entries(layout: Layout, obs: np.ndarray) -> np.ndarray:
    """Observations (..., O) as numbers, flags and the classes of one-hot vectors: (..., D)."""
    starts = layout.vector_size - np.cumsum(layout.categories[::-1], dtype=int)[::-1]
    plain, *onehot = np.split(obs[..., : layout.vector_size], starts, -1)
    return np.concatenate([plain, *(part.argmax(-1)[..., None] for part in onehot)], -1)


@dataclass
class Visualizer:
    """Draws an agent in an environment."""

    agent: DreamerAgent
    env: Any  # as for `AgentEnv`; one of the four tasks, given by its id, draws the dreams itself
    stem: Path  # with which the paths of all pictures begin
    seed: int = 0
    quantity: Quantity | None = None  # what colours the last map; None takes the first that varies
    points: int = POINTS  # states in the map; with few of them dreams are short too

    def __post_init__(self) -> None:
        self.layout = self.agent.layout
        with AgentEnv(self.env) as world:
            evaluation.check_fit(self.agent, world.layout)
            self.title, self.names = world.name, names_of(world.env.observation_space)
        self.known = isinstance(self.env, str) and self.env in style.OBS_NAMES
        if self.known:
            self.names = style.OBS_NAMES[self.env]
        held = self.agent.config.action_repeat
        self.step = (
            f"choice of an action, held for {held} steps" if held > 1 else "environment step"
        )

    def draw(self) -> dict[str, float]:
        """Draw everything. Returns how good the dreams are."""
        print("    episodes, a map of their states, dreams: a minute ...", flush=True)
        own, others = self.watch(random=False), self.watch(random=True)
        self.map_latents(own, others)
        if self.layout.images:  # most pixels never change: the squared error in the log says more
            pixels.draw_all(self.agent, self.env, self.seed, self.stem.parent, self.stem.name)
            return {}
        horizon, lengths = self.agent.config.imag_horizon, [len(episode["obs"]) for episode in own]
        long = (i for i, rows in enumerate(lengths) if rows >= CONTEXT + horizon)
        number = next(long, int(np.argmax(lengths)))  # the first that is long, else the longest
        self.draw_dreams(first(own[number], CONTEXT + min(HORIZON, self.points // 10)))
        shown = first(own[number], CONTEXT + min(FRAMES, self.points // 5))
        self.animate(shown, derive_seed(self.seed, VISUALIZE, 0, number))
        longest = max(len(episode["obs"]) for episode in own + others)
        errors = dream_errors(self.agent, own + others, observed(longest), horizon)
        found = {"dreams": len(errors["dream"]), "dream_steps": horizon}
        for prefix, name in ("", "dream"), ("naive_", "naive"):
            found[f"{prefix}obs_error"] = float(np.nanmean(errors[name]))
            found[f"first_{prefix}obs_error"] = float(np.nanmean(errors[name][:, 0]))
        print(
            f"    error of {horizon}-step dreams {found['obs_error']:.2f} of the data's spread "
            f"(nothing changes: {found['naive_obs_error']:.2f})"
        )
        return found

    def watch(self, random: bool) -> list[Episode]:
        """Real episodes, with half as many actions as there are points, or more: of the greedy
        agent, or of held random actions, which show it what it does not do itself."""
        c, episodes = self.agent.config, []
        with AgentEnv(self.env, c.action_repeat, min(c.max_episode_steps, self.points)) as world:
            while 2 * sum(len(episode["reward"]) - 1 for episode in episodes) < self.points:
                seed = derive_seed(self.seed, VISUALIZE, int(random), len(episodes))
                greedy = evaluation.greedy_policy(self.agent, seed)
                policy = evaluation.random_policy(world, 8, seed) if random else greedy
                episodes.append(evaluation.play(world, policy, seed))
        return episodes

    def dreams_of(self, episode: Episode, count: int) -> Episode:
        """Dreams ahead of the episode's first rows, taking its actions: (count, H, ...)."""
        window = (np.repeat(episode[name][None], count, 0) for name in ("obs", "action"))
        return evaluation.open_loop(self.agent, *window, observed(len(episode["obs"])), seed=0)

    def varying(self, obs: np.ndarray, most: int) -> list[int]:
        """The first entries that vary in observations (N, O), at most so many."""
        spread = np.ptp(entries(self.layout, obs), axis=0)
        return np.flatnonzero(spread > 1e-6)[:most].tolist() or [0]

    def map_latents(self, *groups: list[Episode]) -> None:
        """t-SNE of filtered states, half from the agent's own episodes, half from the others'."""
        agent, rng, parts = self.agent, np.random.default_rng(0), []
        for whose, episodes in zip(("own", "random"), groups, strict=True):
            # Without the first rows, which have no reward; a state that comes again is one point.
            states = [evaluation.filter_episode(agent, e, 0) for e in episodes]
            feat = torch.cat([agent.rssm.get_feat(state)[1:] for state in states]).cpu().numpy()
            obs = np.concatenate([e["obs"][1:] for e in episodes])
            reward = np.concatenate([e["reward"][1:] for e in episodes])
            once = np.unique(np.hstack([feat, obs]), axis=0, return_index=True)[1]
            kept = np.sort(once)[rng.permutation(len(once))[: self.points // 2]]
            parts.append((feat[kept], obs[kept], reward[kept], np.full(len(kept), whose)))
        parts.sort(key=lambda part: -len(part[0]))  # the fewer ones are drawn last
        feat, obs, reward, whose = (np.concatenate(part) for part in zip(*parts, strict=True))
        with torch.inference_mode():
            value = agent.critic.predict(torch.from_numpy(feat).to(agent.device)).cpu().numpy()
        maps = [("whose actions", whose, ""), ("reward received", reward, "viridis")]
        maps.append(("critic's value", value, "viridis"))
        if self.quantity:
            name, measure, colours = self.quantity
            maps.append((name, measure(obs), colours))
        elif self.layout.vector_size:
            (i,) = self.varying(obs, 1)
            maps.append((self.names[i], entries(self.layout, obs)[:, i], "viridis"))
        tsne = TSNE(perplexity=max(1, min(30, len(feat) // 4)), init="pca", random_state=0)
        title = f"a map (t-SNE) of {len(feat):,} states of the world model, coloured by"
        path = f"{self.stem}_latents.png"
        figures.latents_figure(f"{self.title}: {title}", tsne.fit_transform(feat), maps, path)

    def draw_dreams(self, episode: Episode) -> None:
        """Many dreams ahead of the start of an episode, entry by entry."""
        rows, parts = len(episode["obs"]), (episode, self.dreams_of(episode, 32))
        context, chosen = observed(rows), self.varying(episode["obs"], PANELS)
        steps = f"{context} steps" if context == CONTEXT else f"only {context} of {rows} steps"
        title = f"{self.title}: {steps} observed, then dreamed, with the actions really taken"
        real, dreamed = (
            part | {"obs": entries(self.layout, part["obs"])[..., chosen]} for part in parts
        )
        names, trained = [self.names[i] for i in chosen], self.agent.config.imag_horizon
        path = f"{self.stem}_dreams.png"
        figures.dream_figure(title, names, context, real, dreamed, path, trained, self.step)

    def animate(self, episode: Episode, seed: int) -> None:
        """An episode that began with this seed, and dreams of it that take the same actions."""
        dreams = self.dreams_of(episode, GHOSTS)
        over, context = figures.over(dreams["cont"]), observed(len(episode["obs"]))
        moves = np.abs(np.diff(episode["obs"], axis=0)).max(1) > (0.03 if self.known else 0)
        still, ended = moves.nonzero()[0].max(initial=0), context + (~over).sum(1).max()
        rows = min(len(moves) + 1, still + 15, ended + 10)  # what follows shows nothing
        captions = [f"watching, step {t + 1} of {context}" for t in range(context)]
        for t, gone in enumerate(over.sum(0)[: rows - context]):
            words = f"dreaming, step {t + 1} (in training: {self.agent.config.imag_horizon})"
            captions.append(words + (f"; {gone} of {GHOSTS} dreams have ended" if gone else ""))
        real, dreamed = episode["obs"][:rows], dreams["obs"][:, : rows - context]
        over = over[:, : rows - context]
        if self.known:
            pictures = animations.ghosts(self.env, real, dreamed, over, seed)
        else:
            chosen = self.varying(real, CURVES)
            real, dreamed = (entries(self.layout, obs)[..., chosen] for obs in (real, dreamed))
            dreamed[over] = np.nan
            names = [self.names[i] for i in chosen]
            pictures = animations.curves(names, real, dreamed, self.step)
        reality, pace = ("Solid", 60) if self.known else ("Black", max(60, 4_000 // rows))
        title = f"{reality}: reality. Blue: {GHOSTS} dreams that take the same actions."
        animations.write_gif(pictures, captions, title, f"{self.stem}.gif", pace, self.known)


@dataclass(frozen=True)
class Args:
    agent: tyro.conf.Positional[Path]  # an agent.pt, or a checkpoint.pt
    env: str | None = None  # id or module:id, if not the environment in which it learned
    seed: int = 0  # of the episodes
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one


def main(args: Args) -> None:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # environments draw without a window
    if pick_device(args.device).type == "cpu":
        tune_cpu()
    agent, stem = load_agent(args.agent, args.device), args.agent.with_suffix("")
    env = args.env or evaluation.env_of(agent)
    if not isinstance(env, str) and env.id in style.OBS_NAMES and not env.additional_wrappers:
        env = env.id
    print(f"{cli.short(args.agent)}: pictures go to {cli.short(stem)}*", flush=True)
    found = Visualizer(agent, env, stem, args.seed).draw()
    write_json(stem.with_suffix(".json"), found | {"config": dataclasses.asdict(agent.config)})


if __name__ == "__main__":
    cli.run(main, parse(Args, __doc__, prog="python -m lab.visualize"))
