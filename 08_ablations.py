"""What each idea buys: take it away, and see what becomes worse.

One idea at a time is removed from the agent (`VARIANTS`), on tasks on which it can matter
(`TASKS`), with the same seeds as the full agent. Every run is short: the mean of its greedy
evaluations, the area under its learning curve, tells fast learners from slow ones before both
have learned all there is. After a Pendulum run the world model also dreams on from 8 observed steps
of episodes that it never saw, with the prior alone, far beyond the 15 steps that it was trained
to act in.

You will see 08_ablations.png, the effect of each idea on each task with its 95% interval,
08_dreams.png, the error of dreams against their length, and both as tables. They go to
runs/08_ablations, with all numbers in ablations.json.

    python 08_ablations.py --plot-only                              figures and tables, in seconds
    python 08_ablations.py --ideas memory --tasks cartpole-blind    what is missing of a part
    python 08_ablations.py --jobs 2                                 of all: many hours
    python 08_ablations.py --publish                                bring it to assets/

On rewards of all sizes PPO and SAC of Stable-Baselines3 run too, where that is installed, with the
hyperparameters that were found for the plain task.

Each run is a process of its own and takes minutes; what is complete, here or in assets/results, is
skipped. Results are known by their settings: who changes the code of the algorithm needs --fresh.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Container
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import TransformObservation, TransformReward

from lab import cli, effects, figures, results
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import read_log, write_atomic, write_json
from dreamer.config import Config
from dreamer.envs import AgentEnv, EnvSpec
from dreamer.evaluation import chance_chooses, open_loop, play, random_returns
from dreamer.run import PREFILL_HOLD
from dreamer.training import train
from dreamer.utils import derive_seed
from lab.effects import FULL
from lab.jobs import Job, result_of, run_jobs, summary
from lab.results import significant
from lab.variants import IDEAS, VARIANTS, without

try:
    from lab import baselines
except ModuleNotFoundError:  # all else goes on without Stable-Baselines3
    baselines = None

SCRIPT = Path(__file__).resolve()
COMMITTED = results.RESULTS / "ablations.json"
FIGURES = ("08_ablations.png", "08_dreams.png")
METHODS = ("ppo", "sac")  # of Stable-Baselines3, as 07_sample_efficiency.py has them for Pendulum

# ---------------------------------------------------------------- the tasks


@dataclass(frozen=True)
class Task:
    """An environment, how long to learn in it, and the ideas that can matter there."""

    title: str
    why: str  # these ideas, and not the others
    env: EnvSpec
    script: Any  # the numbered script of the plain task: its CONFIG and THRESHOLD hold here too
    ideas: tuple[str, ...] = IDEAS
    steps: int = 4_000
    scale: float = 1.0  # of the rewards; returns are reported without it
    methods: tuple[str, ...] = ()  # model-free ones to run beside


CARTPOLE = importlib.import_module("02_dreamer_cartpole")
PENDULUM = importlib.import_module("03_dreamer_pendulum")
ACROBOT = importlib.import_module("05_dreamer_acrobot")


def blind(title: str, script: Any, seen: list[int]) -> Task:
    """The task, of whose observation only these numbers are seen."""

    def make() -> gym.Env:
        space = gym.spaces.Box(-np.inf, np.inf, (len(seen),))
        return TransformObservation(gym.make(script.ENV), lambda obs: obs[seen], space)

    why = "what is not seen must be remembered: the ideas that make up the state"
    return Task(title, why, make, script, ideas=("stochastic latent", "memory"))


def scaled(scale: float) -> Task:
    """Pendulum with all rewards multiplied."""
    return Task(
        f"Pendulum (rewards x {scale:,g})",
        "the ideas that are to make rewards of every size alike",
        lambda: TransformReward(gym.make(PENDULUM.ENV), lambda reward: scale * float(reward)),
        PENDULUM,
        ideas=("two-hot", "return scale"),
        scale=scale,
        methods=METHODS,
    )


def glitching() -> gym.Env:
    """CartPole seen by a bad sensor: one number in a hundred is 1,000 times too large."""
    env = gym.make(CARTPOLE.ENV)
    space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape)

    def glitch(obs: np.ndarray) -> np.ndarray:
        return np.where(env.np_random.random(obs.shape) < 0.01, 1000 * obs, obs)

    return TransformObservation(env, glitch, space)


TASKS = {
    "cartpole": Task("CartPole", "all ideas are at work", CARTPOLE.ENV, CARTPOLE),
    "pendulum": Task("Pendulum", "all ideas are at work", PENDULUM.ENV, PENDULUM),
    "acrobot": Task(
        "Acrobot",
        "sparse, no signal before the first success: the ideas that keep a policy trying and "
        "bring a rare success to the values",
        ACROBOT.ENV,
        ACROBOT,
        ideas=("two-hot", "return scale", "unimix", "replay value", "slow critic"),
        steps=5_000,
    ),
    "cartpole-blind": blind("CartPole without velocities", CARTPOLE, [0, 2]),
    "pendulum-blind": blind("Pendulum without velocity", PENDULUM, [0, 1]),
    **{f"pendulum-x{scale:g}": scaled(scale) for scale in (0.01, 100, 10_000)},
    "cartpole-glitches": Task(
        "CartPole (1% of readings x 1,000)",
        "the idea that is to bear observations of every size",
        glitching,
        CARTPOLE,
        ideas=("symlog",),
    ),
}
SCALES = ("pendulum-x0.01", "pendulum", "pendulum-x100", "pendulum-x10000")  # one table
PLANNED = [
    (name, variant)
    for name, task in TASKS.items()
    for variant in (FULL, *task.ideas, *task.methods)
]


def config_of(task: str, variant: str, seed: int, smoke: bool = False) -> Config:
    """The config of a run of ours: the task's own, but that each step is a choice (CartPole's were,
    when these runs were made), and what the variant changes in it."""
    steps = TASKS[task].steps
    config = replace(TASKS[task].script.CONFIG, steps=steps, action_repeat=1, seed=seed)
    return VARIANTS[variant].config(replace(config, **cli.SMOKE) if smoke else config)


def settings(task: str, variant: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on, as plain JSON values."""
    if variant in VARIANTS:
        config = asdict(config_of(task, variant, seed, smoke))
    else:
        config = baselines.settings(TASKS[task].script.ENV, variant, seed, evals=1)
        if smoke:
            config["hyperparameters"] = {**config["hyperparameters"], "n_timesteps": 200}
            config["final_episodes"] = 2
    return {"task": task, "variant": variant, **config}


# ---------------------------------------------------------------- one run

DREAMS = "pendulum"  # where dreams are measured: its episodes last 200 steps, whatever one does
CONTEXT, HORIZON = 8, 100  # observed steps, then dreamed ones
WINDOWS = 256  # from as many episodes
HELD_OUT = 41  # their stream of random numbers: no other uses it


@functools.cache
def unseen_windows() -> tuple[np.ndarray, np.ndarray]:
    """obs (N, T, O) and action (N, T, A) of episodes of random actions, each held for 1 to
    PREFILL_HOLD steps. The same for all variants and seeds; no run ever trains on them."""
    env = AgentEnv(TASKS[DREAMS].env)
    choose = chance_chooses(env, PREFILL_HOLD, derive_seed(HELD_OUT))
    episodes = [play(env, choose, derive_seed(HELD_OUT, i)) for i in range(WINDOWS)]
    rows = slice(0, CONTEXT + HORIZON)
    obs, action = (np.stack([e[name][rows] for e in episodes]) for name in ("obs", "action"))
    return obs, action


def error_by_length(obs: np.ndarray, guess: np.ndarray) -> list[float]:
    """Mean absolute error of `guess` (N, H or 1, O) of the rows after the context of obs
    (N, T, O), for each of the H; each dimension in units of its standard deviation."""
    error = np.abs(guess - obs[:, CONTEXT:]) / obs.std((0, 1))
    return [significant(value) for value in error.mean((0, 2))]


def run_one(task: str, variant: str, config: Config) -> dict[str, Any]:
    """Train one variant: minutes of wall clock and CPU, the learning curve in the task's own units
    of reward and, on one task, the error of the dreams, one for each unseen window.

    A run whose losses are no longer finite ends there, with a shorter curve: that is a result.
    """
    wall, cpu = time.monotonic(), time.process_time()
    agent: DreamerAgent | None = None
    with without(variant), tempfile.TemporaryDirectory() as folder:
        try:
            agent = train(TASKS[task].env, config, folder, device="cpu").agent
        except FloatingPointError as error:
            print(error)
        evals = read_log(Path(folder) / "log.jsonl", "eval")
        minutes = significant((time.monotonic() - wall) / 60)
        cpu_minutes = significant((time.process_time() - cpu) / 60)
        errors = None
        if agent and task == DREAMS:
            obs, action = unseen_windows()
            errors = error_by_length(obs, open_loop(agent, obs, action, CONTEXT, seed=0)["obs"])
    steps, returns = [row["step"] for row in evals], [row["return"] for row in evals]
    times = {"minutes": minutes, "cpu_minutes": cpu_minutes}
    return entry(task, steps, returns, **times, dream_error=errors)


def run_method(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """Train a model-free method; its curve is one point, the mean return at the end."""
    run = baselines.run(config, TASKS[task].env)
    times = {name: run[name] for name in ("minutes", "cpu_minutes")}
    mean = float(np.mean(run["final_returns"]))
    return entry(task, [run["env_steps"]], [mean], **times, dream_error=None)


def entry(task: str, steps: list[int], returns: list[float], **rest: Any) -> dict[str, Any]:
    """What is kept of a run, returns without the scale of the rewards."""
    returns = [significant(value / TASKS[task].scale) for value in returns]
    end, curve = returns[-1] if returns else None, {"env_steps": steps, "return": returns}
    return {"cpu": results.cpu_name(), "return": end, "curve": curve, **rest}


# ---------------------------------------------------------------- all runs

Key = tuple[str, str, int]  # task, variant, seed


def make_jobs(
    flags: argparse.Namespace, tasks: Container[str], variants: Container[str]
) -> dict[Key, Job]:
    """The planned runs of these variants on these tasks: all of the first seed, then all of the
    second, so that an unfinished measurement shows a little of everything. Those of
    Stable-Baselines3 only where it is installed."""
    jobs = {}
    for seed, (task, variant) in itertools.product(flags.seeds, PLANNED):
        if task in tasks and variant in variants and (baselines or variant in VARIANTS):
            name = f"{task}/{variant.replace(' ', '-')}"
            words = ["--run", task, variant, str(seed), "--out", str(flags.out)]
            jobs[task, variant, seed] = Job(
                name=name,
                seed=seed,
                command=[str(SCRIPT), *words, *(["--smoke"] if flags.smoke else [])],
                folder=str(flags.folder / name / f"seed{seed}"),
                config=settings(task, variant, seed, flags.smoke),
                threads=1,
                fresh=flags.fresh,
            )
    return jobs


def committed_runs(flags: argparse.Namespace) -> dict[Key, dict[str, Any]]:
    """Of assets/results what was made with the settings that a run would have today. (Those of
    Stable-Baselines3 are not known where it is not installed: its runs stay.)"""
    runs = {}
    for run in (results.load(COMMITTED) or {"runs": []})["runs"]:
        key = task, variant, seed = run["task"], run["variant"], run["seed"]
        if (task, variant) in PLANNED:
            unknown = variant in METHODS and baselines is None and not flags.smoke
            if unknown or run["config"] == settings(task, variant, seed, flags.smoke):
                runs[key] = run
    return runs


def describe(name: str, flags: argparse.Namespace, measured: bool) -> dict[str, Any]:
    """What the results file says of a task; the random policy's return where there are runs."""
    task, config = TASKS[name], asdict(config_of(name, FULL, 0, flags.smoke))
    before = (results.load(COMMITTED) or {"tasks": {}})["tasks"].get(name)
    chance = None
    if before and before["config"] == config:
        chance = before["random_return"]
    elif measured:
        chance = significant(random_returns(task.env).mean() / task.scale)
    return {
        "title": task.title,
        "why": task.why,
        "ideas": list(task.ideas),
        "methods": list(task.methods),
        "scale": task.scale,
        "threshold": task.script.THRESHOLD,
        "random_return": chance,
        "config": config,
    }


def collect(flags: argparse.Namespace) -> effects.Results:
    """All complete runs, committed or of this folder, which gets them as `ablations.json`."""
    runs = committed_runs(flags)
    kept = ("config", "cpu", "minutes", "cpu_minutes", "curve", "dream_error")
    for key, job in make_jobs(flags, TASKS, (*VARIANTS, *METHODS)).items():
        if result := result_of(job):
            head = dict(zip(("task", "variant", "seed"), key, strict=True))
            runs[key] = {**head, **{name: result[name] for name in kept}}

    obs, _ = unseen_windows()
    guesses = {
        "last observation repeated": error_by_length(obs, obs[:, CONTEXT - 1 : CONTEXT]),
        "mean of the data": error_by_length(obs, obs.mean((0, 1), keepdims=True)),
    }
    data = {
        "ideas": {name: VARIANTS[name].removed for name in IDEAS},
        "tasks": {name: describe(name, flags, any(k[0] == name for k in runs)) for name in TASKS},
        "dreams": {"task": DREAMS, "guesses": guesses},
        "scales": list(SCALES),
        "versions": results.versions(),
        "runs": [runs[key] for key in sorted(runs, key=lambda k: (PLANNED.index(k[:2]), k[2]))],
    }
    text = results.dump(data)
    write_atomic(flags.folder / COMMITTED.name, lambda temporary: temporary.write_text(text))
    return data


# ---------------------------------------------------------------- what came of them

TEXT = """{runs} of {planned} runs. What removing an idea changes: the score (mean of the greedy
evaluations while learning, 0 at the random policy, 1 at the threshold), and the error of dreams,
where + is worse. Bold where the 95% interval over 5 paired seeds excludes 0; empty where not run.

{effects}

All rewards of Pendulum multiplied: return at the end in units of the plain task, mean (worst seed).

{scales}
"""


def show(data: effects.Results, folder: Path) -> None:
    """Draw the figures and print the tables, from the content of the results file."""
    titles = [task["title"] for task in data["tasks"].values()]
    figures.ablation_figure(list(data["ideas"]), titles, effects.grid(data), folder / FIGURES[0])
    errors = {
        variant: np.array([*effects.dream_errors(data, variant).values()]).reshape(-1, HORIZON)
        for variant in (FULL, *data["ideas"])
    }
    figures.ablation_dreams_figure(
        f"How dreams of Pendulum go wrong: {CONTEXT} observed steps, then the prior alone",
        errors.pop(FULL),
        errors,
        data["dreams"]["guesses"],
        folder / FIGURES[1],
    )
    plain = {}
    for method in METHODS:  # the plain task's runs are those of 07_sample_efficiency.py
        path = results.RESULTS / "sample_efficiency" / f"{DREAMS}_{method}.json"
        runs = (results.load(path) or {"runs": []})["runs"]
        plain[method] = [float(np.mean(run["final_returns"])) for run in runs]
    text = TEXT.format(
        runs=len(data["runs"]),
        planned=effects.SEEDS * len(PLANNED),
        effects=results.markdown(effects.effects_table(data)),
        scales=results.markdown(effects.scales_table(data, plain)),
    )
    print(f"{text}\nFigures: {', '.join(str(cli.short(folder / name)) for name in FIGURES)}")


# ---------------------------------------------------------------- the command line


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ideas, tasks = [*IDEAS, *METHODS], list(TASKS)
    parser.add_argument("--ideas", nargs="+", choices=ideas, default=ideas, help="to remove")
    parser.add_argument("--tasks", nargs="+", choices=tasks, default=tasks)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="K")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--fresh", action="store_true", help="skip nothing")
    parser.add_argument("--plot-only", action="store_true", help="run nothing")
    parser.add_argument("--publish", action="store_true", help="run nothing; write to assets/")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=Path, help="the folder to write to, instead of runs")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # a job's own process
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.publish and flags.smoke:
        parser.error("argument --publish: takes whole runs, not --smoke")
    if flags.smoke:
        flags.ideas, flags.tasks, flags.seeds = ["memory", "sac"], [DREAMS, "pendulum-x100"], [0]
    runs = SCRIPT.parent / "runs"
    flags.out = (flags.out or (runs / "smoke" if flags.smoke else runs)).resolve()
    flags.folder = flags.out / SCRIPT.stem
    return flags


def run_all(flags: argparse.Namespace) -> bool:
    """Make the runs that are not complete; whether all went well."""
    jobs = make_jobs(flags, flags.tasks, [FULL, *flags.ideas])
    known = {} if flags.fresh else committed_runs(flags)
    missing = [job for key, job in jobs.items() if key not in known]
    if len(missing) < len(jobs):
        done = len(jobs) - len(missing)
        print(f"{done} of {len(jobs)} runs are in {cli.short(COMMITTED)} already")
    outcomes = list(run_jobs(missing, flags.jobs))
    print("\n" + summary(missing, outcomes) + "\n")
    return all(outcome.good for outcome in outcomes)


def main() -> int:
    flags = parse_flags()
    if flags.run:
        task, variant, flags.seeds = flags.run[0], flags.run[1], [int(flags.run[2])]
        ((key, job),) = make_jobs(flags, [task], [variant]).items()
        if variant in METHODS:
            result = run_method(task, job.config)
        else:
            result = run_one(task, variant, config_of(*key, flags.smoke))
        write_json(Path(job.folder) / "result.json", {"config": job.config, **result})
        return 0
    try:
        good = flags.plot_only or flags.publish or run_all(flags)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command does what is left.")
        return 130
    data = collect(flags)
    show(data, flags.folder)
    if flags.publish:
        shutil.copyfile(flags.folder / COMMITTED.name, COMMITTED)
        for name in FIGURES:
            shutil.copyfile(flags.folder / name, cli.ASSETS / name)
        print(f"Published to {cli.short(COMMITTED)} and {cli.short(cli.ASSETS)}/08_*.png")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
