"""What each idea buys: take it away, and see what becomes worse.

One idea at a time is removed from the agent (`VARIANTS`), on tasks on which it can matter
(`TASKS`), with the same seeds as the full agent. Every run is short: the mean of its greedy
evaluations tells fast learners from slow ones before both have learned all there is. After a
Pendulum run the world model also dreams on from 8 observed steps of episodes that it never saw,
far beyond the 15 steps that it was trained to act in. You will see, in runs/08_ablations, the
effect of each idea on each task with its 95% interval, and the numbers as tables.

    python 08_ablations.py --plot-only                              figures and tables, in seconds
    python 08_ablations.py --ideas memory --tasks cartpole-blind    what is missing of a part
    python 08_ablations.py --jobs 2                                 of all: many hours
    python 08_ablations.py --publish                                bring it to assets/

On rewards of all sizes PPO and SAC of Stable-Baselines3 run too, where that is installed. What is
complete, here or in assets/results, is skipped. Results are known by their settings: after a change
to the code of the algorithm, use --fresh.
"""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformObservation, TransformReward

import dreamer.cli
from dreamer import AgentEnv, Config, DreamerAgent, train
from dreamer.checkpoint import read_log, write_json
from dreamer.evaluation import open_loop, play, random_policy, random_returns
from dreamer.run import PREFILL_HOLD
from dreamer.utils import derive_seed
from lab import baselines, cli, effects, engine, figures, results, spaces
from lab.effects import FULL
from lab.results import significant
from lab.variants import IDEAS, VARIANTS, without

NAME = "08_ablations"
COMMITTED = results.RESULTS / "ablations.json"
HEAD = ("task", "variant", "seed")  # of each run
METHODS = ("ppo", "sac")  # of Stable-Baselines3, as 07_sample_efficiency.py has them for Pendulum


@dataclass(frozen=True)
class Task:
    """A numbered script's environment, perhaps changed, and the ideas that can matter there."""

    title: str
    script: Any  # its ENV, CONFIG and THRESHOLD hold here too
    ideas: tuple[str, ...] = IDEAS
    change: Callable[[gym.Env], gym.Env] = lambda env: env
    scale: float = 1.0  # of the rewards; returns are reported without it
    steps: int = 4_000
    methods: tuple[str, ...] = ()  # model-free ones to run beside

    def env(self) -> gym.Env:
        changed = self.change(gym.make(self.script.ENV))
        return TransformReward(changed, lambda reward: self.scale * float(reward))


def blind(env: gym.Env) -> gym.Env:
    """CartPole without velocities."""
    space = gym.spaces.Box(-np.inf, np.inf, (2,))
    return TransformObservation(env, lambda obs: obs[[0, 2]], space)


def glitching(env: gym.Env) -> gym.Env:
    """A bad sensor: one number in a hundred is 1,000 times too large."""
    space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape)

    def glitch(obs: np.ndarray) -> np.ndarray:
        return np.where(env.np_random.random(obs.shape) < 0.01, 1000 * obs, obs)

    return TransformObservation(env, glitch, space)


SCRIPTS = "02_dreamer_cartpole", "03_dreamer_pendulum", "05_dreamer_acrobot"
CARTPOLE, PENDULUM, ACROBOT = map(importlib.import_module, SCRIPTS)
ENV, THRESHOLD, CONFIG = spaces.TASKS["recall_8"]
RECALL = SimpleNamespace(ENV=ENV, THRESHOLD=THRESHOLD, CONFIG=CONFIG)
STATE = ("stochastic latent", "memory", "stored states")  # what is not seen must be remembered
REWARD = ("two-hot", "return scale")  # are to make rewards of every size alike
SPARSE = ("unimix", "replay value", "slow critic")  # find a rare reward and make it known
PLAIN = tuple(idea for idea in IDEAS if idea not in (*SPARSE, "return scale"))
TASKS = {
    "cartpole": Task("CartPole", CARTPOLE, PLAIN, steps=3_000),
    "pendulum": Task("Pendulum", PENDULUM, PLAIN),
    "acrobot": Task("Acrobot", ACROBOT, SPARSE, steps=5_000),
    "cartpole-blind": Task("CartPole without velocities", CARTPOLE, STATE, blind, steps=3_000),
    "recall": Task("Recall after 8 steps", RECALL, STATE, steps=7_000),
}
for x in (0.01, 10_000):
    title = f"Pendulum (rewards x {x:,g})"
    TASKS[f"pendulum-x{x:g}"] = Task(title, PENDULUM, REWARD, scale=x, methods=METHODS)
title = "CartPole (1% of readings x 1,000)"
TASKS["cartpole-glitches"] = Task(title, CARTPOLE, ("symlog",), glitching, steps=3_000)
SCALES = ("pendulum-x0.01", "pendulum", "pendulum-x10000")  # one table
PLANNED = [(t, v) for t, task in TASKS.items() for v in (FULL, *task.ideas, *task.methods)]
SMOKE = [("pendulum", FULL), ("pendulum", "memory")]
SMOKE += [("pendulum-x10000", FULL), ("pendulum-x10000", "sac")]
CHOICES = tuple(dict.fromkeys(variant for _, variant in PLANNED))


@dataclass(frozen=True)
class Flags(cli.JobFlags):
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tasks: tuple[Literal[tuple(TASKS)], ...] = tuple(TASKS)
    ideas: tuple[Literal[CHOICES], ...] = CHOICES  # removed ones; the full agent runs too
    plot_only: bool = False  # run nothing


DREAMS = "pendulum"  # where dreams are measured: its episodes last 200 steps, whatever one does
CONTEXT, HORIZON = 8, 100  # observed steps, then dreamed ones
WINDOWS = 256  # from as many episodes
HELD_OUT = 41  # their stream of random numbers: no other uses it
WEIGHT = 0.3  # of the critic's loss on real rewards: v2's, in the place of the default


def config_of(task: str, variant: str, seed: int, smoke: bool = False) -> Config:
    """The config of a run of ours: the task's own, and what the variant changes in it."""
    own = dict(steps=TASKS[task].steps, seed=seed, replay_value_weight=WEIGHT)
    own |= cli.SMOKE if smoke else {}
    return replace(TASKS[task].script.CONFIG, **own | VARIANTS[variant].fields)


def settings(task: str, variant: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on, as plain JSON values."""
    if variant in VARIANTS:
        config = asdict(config_of(task, variant, seed, smoke))
    else:
        config = baselines.settings(TASKS[task].script.ENV, variant, seed, smoke) | {"evals": 1}
    return {"task": task, "variant": variant, **config}


def make(task: str, variant: str, seed: int, smoke: bool, folder: str) -> None:
    """One run: minutes of wall clock and CPU, the learning curve in the task's own units of reward
    (of a model-free method the mean return at the end) and, on one task, the error of dreams."""
    config, error = settings(task, variant, seed, smoke), None
    if variant in VARIANTS:
        own = config_of(task, variant, seed, smoke)
        curve, minutes, error = run_variant(task, variant, own, Path(folder))
    else:
        run = baselines.run(config, TASKS[task].env)
        curve = {run["env_steps"]: np.mean(run["final_returns"])}
        minutes = run["minutes"], run["cpu_minutes"]
    returns = [significant(value / TASKS[task].scale) for value in curve.values()]
    found = {"cpu": results.cpu_name(), "return": returns[-1] if returns else None}
    found |= {"curve": {"env_steps": [*curve], "return": returns}, "dream_error": error}
    found |= zip(("minutes", "cpu_minutes"), map(significant, minutes), strict=True)
    write_json(Path(folder) / "result.json", {"config": config, **found})


def run_variant(task: str, variant: str, config: Config, folder: Path) -> tuple[dict, Any, Any]:
    """Train the agent without an idea, or go on. A run whose losses are no longer finite ends
    there, with a shorter curve: that is a result. Returns step -> return, minutes of wall clock and
    CPU, and the error of dreams, or None."""
    started, error = baselines.now(), None
    with without(variant):
        try:
            run = train(TASKS[task].env, config, folder, resume=True, device="cpu")
            minutes = run.minutes, run.cpu_minutes
            error = dream_error(run.agent) if task == DREAMS else None
        except FloatingPointError as broken:
            print(broken)
            minutes = (baselines.now() - started) / 60
    (folder / "checkpoint.pt").unlink(missing_ok=True)  # hundreds of runs fill a disk
    rows = read_log(folder / "log.jsonl", "eval")
    return {row["step"]: row["return"] for row in rows}, minutes, error


def dream_error(agent: DreamerAgent) -> list[float]:
    """Mean absolute error of dreams, for each of their HORIZON steps; each dimension in units of
    its standard deviation. In episodes of random actions, each held for 1 to PREFILL_HOLD steps:
    the same for all variants and seeds, and no run ever trains on them."""
    env, length = AgentEnv(TASKS[DREAMS].env), CONTEXT + HORIZON
    choose = random_policy(env, PREFILL_HOLD, derive_seed(HELD_OUT))
    episodes = [play(env, choose, derive_seed(HELD_OUT, i)) for i in range(WINDOWS)]
    obs, action = (np.stack([e[name][:length] for e in episodes]) for name in ("obs", "action"))
    dreamed = open_loop(agent, obs, action, CONTEXT, seed=0)["obs"]
    error = np.abs(dreamed - obs[:, CONTEXT:]) / obs.std((0, 1))
    return [significant(value) for value in error.mean((0, 2))]


def collect(before: effects.Results, runs: engine.Runs) -> effects.Results:
    """The content of the results file, made of these runs. before: what it was."""
    tasks = before["tasks"]
    for name, task in TASKS.items():
        if name not in tasks:
            chance = random_returns(task.env).mean() / task.scale
            tasks[name] = {"random_return": significant(chance)}
        tasks[name] |= {key: getattr(task, key) for key in ("title", "ideas", "methods", "scale")}
        tasks[name]["threshold"] = task.script.THRESHOLD
    order = sorted(runs, key=lambda key: (PLANNED.index(key[:2]), key[2]))
    return {
        "ideas": {name: VARIANTS[name].removed for name in IDEAS},
        "tasks": {name: tasks[name] for name in TASKS},
        "dreams": {"task": DREAMS},
        "scales": SCALES,
        "versions": results.versions(),
        "runs": [dict(zip(HEAD, key, strict=True)) | runs[key] for key in order],
    }


TEXT = """{} of {} runs. What removing an idea changes: the score (mean of the greedy evaluations
while learning, 0 at the random policy, 1 at the threshold), and the error of dreams, where + is
worse. Bold where the 95% interval over 5 paired seeds excludes 0; empty where not run.

{}

All rewards of Pendulum multiplied: return at the end in units of the plain task, mean (worst seed).

{}

Figures: {}/08_ablations.png"""


def show(data: effects.Results, folder: Path) -> None:
    """Draw the figures and print the tables, from the content of the results file."""
    titles = {name: task["title"] for name, task in data["tasks"].items()}
    found = {idea: effects.effects(data, idea) for idea in data["ideas"]}
    scores = {i: {titles[k]: e for k, e in row.items() if k in titles} for i, row in found.items()}
    figures.ablation_figure(scores, folder / "08_ablations.png")
    plain = {}
    for method in METHODS:  # the plain task's runs are those of 07_sample_efficiency.py
        file = results.load(results.RESULTS / "sample_efficiency" / f"{DREAMS}_{method}.json")
        plain[method] = [float(np.mean(run["final_returns"])) for run in file["runs"]]
    tables = effects.effects_table(data), effects.scales_table(data, plain)
    counts = len(data["runs"]), effects.SEEDS * len(PLANNED)
    print(TEXT.format(*counts, *map(results.markdown, tables), cli.short(folder)))


def main(flags: Flags) -> int:
    methods = METHODS if baselines.INSTALLED else ()
    variants = [FULL, *(name for name in flags.ideas if name in (*VARIANTS, *methods))]
    before = results.load(COMMITTED) or {"tasks": {}, "runs": []}
    committed = {tuple(run[name] for name in HEAD): run for run in before["runs"]}
    planned = SMOKE if flags.smoke else PLANNED
    known, new, good = engine.make_runs(NAME, flags, variants, settings, planned, committed)
    data, folder = collect(before, {**known, **new}), flags.base / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / COMMITTED.name).write_text(results.dump(data))
    show(data, folder)
    if flags.publish:
        results.publish(folder, COMMITTED.parent)
    return 0 if good else 1


if __name__ == "__main__":
    cli.run(main, dreamer.cli.parse(Flags, __doc__))
