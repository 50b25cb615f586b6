"""Tools of the dream page's tests: its JavaScript in an engine, and agents to run there."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from py_mini_racer import MiniRacer

from dreamer import AgentEnv, Config, DreamerAgent, save_agent
from dreamer.evaluation import play, random_policy
from lab import dream_page

REPEATS = {"cartpole": 2, "pendulum": 1, "acrobot": 1, "lunar_lander": 4}
REPEATS |= {"pixel_pendulum": 2, "pixel_cartpole": 2}
EPISODE = 50  # steps that are compared


def engine(*names: str) -> MiniRacer:
    """A JavaScript engine that has read these files of the page; it has no browser around it."""
    js = MiniRacer()
    for name in names:
        js.eval((dream_page.PAGE / name).read_text(encoding="utf-8"))
    return js


def run(js: MiniRacer, code: str, **values: Any) -> Any:
    """What a function body returns, given these values by name."""
    given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
    return json.loads(js.eval(f"JSON.stringify((() => {{ {given} {code} }})())"))


@cache
def experience(task: str) -> dict[str, np.ndarray]:
    """The first rows of an episode of random actions that are held for a while; where episodes are
    short, several of them."""
    episodes: list[dict[str, np.ndarray]] = []
    with AgentEnv(dream_page.TASKS[task][0], REPEATS[task]) as env:
        policy = random_policy(env, 6, seed=3)
        while sum(len(episode["obs"]) for episode in episodes) < EPISODE:
            episode = play(env, policy, seed=len(episodes))
            episodes.append(episode | {"is_first": np.arange(len(episode["obs"])) == 0})
    return {k: np.concatenate([e[k] for e in episodes])[:EPISODE] for k in episodes[0]}


@cache
def stirred_agent(task: str) -> DreamerAgent:
    """A fresh agent of full size with weights moved at random, so that no head says zero; reward
    and value keep to a few units."""
    rows = experience(task)
    with AgentEnv(dream_page.TASKS[task][0]) as env:
        agent = DreamerAgent(env.layout, Config(action_repeat=REPEATS[task]))
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in agent.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=rng)
        for head in (agent.reward, agent.critic):
            head.mlp[-1].bias -= 2 * torch.linspace(-20, 20, 255).square()
    agent.encoder.norm.update(torch.from_numpy(rows["obs"][:, : agent.layout.numbers]))
    return agent


def save_agents(folder: Path) -> Path:
    """The stirred agents as files, as assets/agents holds trained ones."""
    for name in dream_page.TASKS:
        save_agent(stirred_agent(name), folder / f"{name}.pt")
    return folder


def build_page(folder: Path, agents: Path) -> Path:
    """A copy of the page, with these agents."""
    shutil.copytree(dream_page.PAGE, folder, dirs_exist_ok=True)
    dream_page.main(agents, folder)
    return folder
