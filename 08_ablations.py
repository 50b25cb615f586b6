"""What each idea buys: take it away, and see what becomes worse.

One idea at a time is removed from the agent (`VARIANTS`), on tasks on which it can matter
(`TASKS`), with the same seeds as the full agent. Every run is short: the mean of its greedy
evaluations tells fast learners from slow ones before both have learned all there is. After a
Pendulum run the world model also dreams on from 8 observed steps of episodes that it never saw,
with the prior alone, far beyond the 15 steps that it was trained to act in.

You will see, in runs/08_ablations, 08_ablations.png, the effect of each idea on each task with its
95% interval, and the numbers as tables.

    python 08_ablations.py --plot-only                              figures and tables, in seconds
    python 08_ablations.py --ideas memory --tasks cartpole-blind    what is missing of a part
    python 08_ablations.py --jobs 2                                 of all: many hours
    python 08_ablations.py --publish                                bring it to assets/

On rewards of all sizes PPO and SAC of Stable-Baselines3 run too, where that is installed. Each run
is a process of its own and takes minutes; what is complete, here or in assets/results, is skipped.
Results are known by their settings: who changes the code of the algorithm needs --fresh.
"""

import functools
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
from dreamer import AgentEnv, Config, train
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

# ---------------------------------------------------------------- the tasks


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


def seen(*numbers: int) -> Callable[[gym.Env], gym.Env]:
    """Of the observation only these numbers are seen."""
    space = gym.spaces.Box(-np.inf, np.inf, (len(numbers),))
    return lambda env: TransformObservation(env, lambda obs: obs[list(numbers)], space)


def glitching(env: gym.Env) -> gym.Env:
    """A bad sensor: one number in a hundred is 1,000 times too large."""
    space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape)

    def glitch(obs: np.ndarray) -> np.ndarray:
        return np.where(env.np_random.random(obs.shape) < 0.01, 1000 * obs, obs)

    return TransformObservation(env, glitch, space)


CARTPOLE = importlib.import_module("02_dreamer_cartpole")
PENDULUM = importlib.import_module("03_dreamer_pendulum")
ACROBOT = importlib.import_module("05_dreamer_acrobot")
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
    "cartpole-blind": Task("CartPole without velocities", CARTPOLE, STATE, seen(0, 2), steps=3_000),
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


# ---------------------------------------------------------------- one run

DREAMS = "pendulum"  # where dreams are measured: its episodes last 200 steps, whatever one does
CONTEXT, HORIZON = 8, 100  # observed steps, then dreamed ones
WINDOWS = 256  # from as many episodes
HELD_OUT = 41  # their stream of random numbers: no other uses it


def config_of(task: str, variant: str, seed: int, smoke: bool = False) -> Config:
    """The config of a run of ours: the task's own, and what the variant changes in it."""
    own = dict(steps=TASKS[task].steps, seed=seed)
    small = cli.SMOKE if smoke else {}
    return replace(TASKS[task].script.CONFIG, **own | small | VARIANTS[variant].fields)


def settings(task: str, variant: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on, as plain JSON values."""
    if variant in VARIANTS:
        config = asdict(config_of(task, variant, seed, smoke))
    else:
        config = baselines.settings(TASKS[task].script.ENV, variant, seed, smoke) | {"evals": 1}
    return {"task": task, "variant": variant, **config}


@functools.cache
def unseen_windows() -> tuple[np.ndarray, np.ndarray]:
    """obs (N, T, O) and action (N, T, A) of episodes of random actions, each held for 1 to
    PREFILL_HOLD steps. The same for all variants and seeds; no run ever trains on them."""
    env = AgentEnv(TASKS[DREAMS].env)
    choose = random_policy(env, PREFILL_HOLD, derive_seed(HELD_OUT))
    episodes = [play(env, choose, derive_seed(HELD_OUT, i)) for i in range(WINDOWS)]
    length = CONTEXT + HORIZON
    return tuple(np.stack([e[name][:length] for e in episodes]) for name in ("obs", "action"))


def error_by_length(obs: np.ndarray, guess: np.ndarray) -> list[float]:
    """Mean absolute error of `guess` (N, H or 1, O) of the rows after the context of obs
    (N, T, O), for each of the H; each dimension in units of its standard deviation."""
    error = np.abs(guess - obs[:, CONTEXT:]) / obs.std((0, 1))
    return [significant(value) for value in error.mean((0, 2))]


def make(task: str, variant: str, seed: int, smoke: bool, folder: str) -> None:
    """One run: minutes of wall clock and CPU, the learning curve in the task's own units of reward
    (of a model-free method the mean return at the end) and, on one task, the error of dreams."""
    config = settings(task, variant, seed, smoke)
    if variant in VARIANTS:
        found = run_variant(task, variant, config_of(task, variant, seed, smoke), Path(folder))
    else:
        run = baselines.run(config, TASKS[task].env)
        times = {name: run[name] for name in ("minutes", "cpu_minutes")}
        found = entry(task, {run["env_steps"]: np.mean(run["final_returns"])}, **times)
    write_json(Path(folder) / "result.json", {"config": config, **found})


def run_variant(task: str, variant: str, config: Config, folder: Path) -> dict[str, Any]:
    """Train the agent without an idea, or go on. A run whose losses are no longer finite ends
    there, with a shorter curve: that is a result."""
    started, run, errors = baselines.now(), None, None
    with without(variant):
        try:
            run = train(TASKS[task].env, config, folder, resume=True, device="cpu")
        except FloatingPointError as error:
            print(error)
        spent = (run.minutes, run.cpu_minutes) if run else (baselines.now() - started) / 60
        if run and task == DREAMS:
            obs, action = unseen_windows()
            dreamed = open_loop(run.agent, obs, action, CONTEXT, seed=0)
            errors = error_by_length(obs, dreamed["obs"])
    minutes, cpu_minutes = map(significant, spent)
    curve = {row["step"]: row["return"] for row in read_log(folder / "log.jsonl", "eval")}
    (folder / "checkpoint.pt").unlink(missing_ok=True)  # hundreds of runs fill a disk
    return entry(task, curve, minutes=minutes, cpu_minutes=cpu_minutes, dream_error=errors)


def entry(task: str, curve: dict[int, float], **rest: Any) -> dict[str, Any]:
    """What is kept of a run, returns without the scale of the rewards."""
    returns = [significant(value / TASKS[task].scale) for value in curve.values()]
    end = returns[-1] if returns else None
    curve = {"env_steps": [*curve], "return": returns}
    return {"cpu": results.cpu_name(), "return": end, "curve": curve, "dream_error": None, **rest}


# ---------------------------------------------------------------- what came of them


def collect(before: effects.Results, runs: engine.Runs) -> effects.Results:
    """The content of the results file, made of these runs. before: what it was."""
    tasks = {}
    for name, task in TASKS.items():
        chance = before["tasks"].get(name, {}).get("random_return")
        if chance is None:
            chance = significant(random_returns(task.env).mean() / task.scale)
        tasks[name] = {key: getattr(task, key) for key in ("title", "ideas", "methods", "scale")}
        tasks[name] |= {"threshold": task.script.THRESHOLD, "random_return": chance}
    order = sorted(runs, key=lambda key: (PLANNED.index(key[:2]), key[2]))
    return {
        "ideas": {name: VARIANTS[name].removed for name in IDEAS},
        "tasks": tasks,
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
    found = {idea: effects.effects(data, idea) for idea in data["ideas"]}
    titles = {name: task["title"] for name, task in data["tasks"].items()}
    scores = {i: {titles[k]: e for k, e in row.items() if k in titles} for i, row in found.items()}
    figures.ablation_figure(scores, folder / "08_ablations.png")
    plain = {}
    for method in METHODS:  # the plain task's runs are those of 07_sample_efficiency.py
        file = results.load(results.RESULTS / "sample_efficiency" / f"{DREAMS}_{method}.json")
        plain[method] = [float(np.mean(run["final_returns"])) for run in file["runs"]]
    counts = len(data["runs"]), effects.SEEDS * len(PLANNED)
    tables = effects.effects_table(data), effects.scales_table(data, plain)
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
