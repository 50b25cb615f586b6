"""What each idea buys: take it away, and see what becomes worse.

One idea at a time is removed from the agent (`VARIANTS`), on tasks on which it can matter
(`TASKS`), with the same seeds as the full agent. Every run is short: the mean of its greedy
evaluations, the area under its learning curve, tells fast learners from slow ones before both
have learned all there is. After a Pendulum run the world model also dreams on from 8 observed steps
of episodes that it never saw, with the prior alone, far beyond the 15 steps that it was trained
to act in.

You will see assets/08_ablations.png, the effect of each idea on each task with its 95% interval,
and assets/08_dreams.png, the error of each variant's dreams against their length. The numbers go
to assets/results/ablations.json, and from there into the README's table.

    python 08_ablations.py --jobs 2                                 all of it: many hours
    python 08_ablations.py --ideas memory --tasks cartpole-blind    a part
    python 08_ablations.py --plot-only                              figures anew

On rewards of all sizes PPO and SAC of Stable-Baselines3 run too, with the hyperparameters that
were found for the plain task, as in 07_sample_efficiency.py; not where that is not installed.

Each run is a process of its own, and what is complete, here or in assets/results, is skipped: the
same command again finishes what a crash, Ctrl-C or another machine left. A run takes minutes; one
that was cut short begins anew. Results are known by their settings: who changes the code of the
algorithm needs --fresh.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TransformObservation, TransformReward
from torch import Tensor

from dreamer.agent import Config, DreamerAgent, Metrics, model_loss
from dreamer.checkpoint import read_log, write_atomic, write_json
from dreamer.envs import AgentEnv, EnvSpec
from dreamer.evaluation import chance_chooses, open_loop, play, random_returns
from dreamer.networks import MLP, OneHotFeat, TwoHotHead
from dreamer.rssm import RSSM, Dream, Posterior, State, get_feat
from dreamer.training import PREFILL_HOLD, train
from dreamer.utils import PercentileScale, derive_seed, mode_onehot, sample_onehot
from lab import cli, effects, figures, results
from lab.effects import FULL
from lab.jobs import Job, result_of, run_jobs, summary
from lab.results import significant

try:
    from lab import baselines
except ModuleNotFoundError:  # all else goes on without Stable-Baselines3
    baselines = None

# ---------------------------------------------------------------- what stands in an idea's place


def as_it_is(x: Tensor) -> Tensor:
    """In the place of symlog and of symexp: observations are standardised, and no more."""
    return x


class SquaredErrorHead(TwoHotHead):
    """One number, zero at first, in the place of a distribution over bins."""

    def __init__(self, feat_size: int, hidden: int, layers: int):
        super().__init__(feat_size, hidden, layers)
        self.mlp = MLP(feat_size, hidden, layers, 1, out_scale=0.0)

    def mean(self, logits: Tensor) -> Tensor:
        """(..., 1) -> (...)."""
        return logits[..., 0]

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """logits (..., 1); target (...), or (..., M) for M losses of each prediction."""
        guess = logits if target.ndim == logits.ndim else self.mean(logits)
        return (guess - target).square()


def loss_of_posteriors(
    parts: dict[str, Tensor], beta_obs: float, beta_dyn: float, beta_rep: float
) -> tuple[Tensor, Metrics]:
    """The world model's loss without what the heads make of the prior's guesses."""
    nothing = torch.zeros_like(parts["reward_loss"])
    parts = {**parts, "prior_reward_loss": nothing, "prior_cont_loss": nothing}
    return model_loss(parts, beta_obs, beta_dyn, beta_rep)


class NoScale(PercentileScale):
    """Advantages stay in units of the return."""

    def update(self, returns: Tensor) -> Tensor:
        return returns.new_ones(())


def sample_without_gradient(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """The same samples; backwards they are constants."""
    return sample_onehot(log_probs.detach(), uniform)


def likeliest_onehot(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """No draw: always the likeliest class, with straight-through gradients."""
    probs = log_probs.exp()
    return mode_onehot(log_probs) + (probs - probs.detach())


def likeliest_index(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """`likeliest_onehot` as class numbers."""
    return log_probs.argmax(-1)


class MemorylessRSSM(RSSM):
    """A posterior of the present observation alone, q(z | x). The GRU's state is still computed,
    from the last latent and action, but only for the prior: that is how a dream goes on."""

    def sequence_step(self, deter: Tensor, stoch: Tensor, action_part: Tensor) -> Tensor:
        return super().sequence_step(torch.zeros_like(deter), stoch, action_part)

    def posterior(self, deter: Tensor, embed_part: Tensor) -> Tensor:
        return super().posterior(torch.zeros_like(deter), embed_part)


def feat_without_memory(state: State | Posterior | Dream) -> Tensor | OneHotFeat:
    """What the heads read of a `MemorylessRSSM`: the latent, and zeros for the GRU's state."""
    return get_feat(state._replace(deter=torch.zeros_like(state.deter)))


# ---------------------------------------------------------------- the variants


@dataclass(frozen=True)
class Variant:
    """The agent without one idea: with another `Config`, or with names of the package replaced."""

    removed: str  # what is different, as half a sentence
    config: Callable[[Config], Config] = lambda config: config
    replaced: dict[str, Any] = field(default_factory=dict)  # dotted name -> what stands there


def equal_weights(config: Config) -> Config:
    weight = (config.beta_dyn + config.beta_rep) / 2
    return replace(config, beta_dyn=weight, beta_rep=weight)


VARIANTS = {
    FULL: Variant("nothing: the agent as it is"),
    "symlog": Variant(
        "observations are standardised without symlog",
        replaced={"dreamer.networks.symlog": as_it_is, "dreamer.networks.symexp": as_it_is},
    ),
    "two-hot": Variant(
        "rewards and values are single numbers in raw units, fitted by squared error",
        replaced={
            "dreamer.agent.RewardHead": SquaredErrorHead,
            "dreamer.agent.Critic": SquaredErrorHead,
        },
    ),
    "free bits": Variant(
        "the KL is pressed down to 0 instead of to 1 nat", lambda c: replace(c, free_nats=0.0)
    ),
    "return scale": Variant(
        "advantages are not divided by the range of the returns",
        replaced={"dreamer.agent.PercentileScale": NoScale},
    ),
    "unimix": Variant(
        "no uniform share in latents and discrete policy", lambda c: replace(c, unimix=0.0)
    ),
    "straight-through": Variant(
        "no gradient through the sampled latents",
        replaced={"dreamer.rssm.sample_onehot": sample_without_gradient},
    ),
    "stochastic latent": Variant(
        "the latent is its likeliest class, never drawn",
        replaced={
            "dreamer.rssm.sample_onehot": likeliest_onehot,
            "dreamer.rssm.sample_index": likeliest_index,
        },
    ),
    "memory": Variant(
        "the state is made from the present observation alone",
        replaced={
            "dreamer.agent.RSSM": MemorylessRSSM,
            "dreamer.agent.get_feat": feat_without_memory,
            "dreamer.evaluation.get_feat": feat_without_memory,
            "dreamer.rssm.get_feat": feat_without_memory,
        },
    ),
    "guesses": Variant(
        "reward and continue heads learn from posterior states alone, as in the paper",
        replaced={"dreamer.agent.model_loss": loss_of_posteriors},
    ),
    "KL balance": Variant("β_dyn and β_rep are equal, their sum as before", equal_weights),
    "replay value": Variant(
        "the critic learns from dreams alone", lambda c: replace(c, replay_value_weight=0.0)
    ),
    "slow critic": Variant(
        "nothing holds the critic near its slow copy", lambda c: replace(c, slow_weight=0.0)
    ),
}


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Within this block the package works without an idea, as far as names are replaced."""
    with contextlib.ExitStack() as stack:
        for dotted, replacement in VARIANTS[name].replaced.items():
            stack.enter_context(mock.patch(dotted, replacement))
        yield


# ---------------------------------------------------------------- the tasks


@dataclass(frozen=True)
class Task:
    """An environment, how long to learn in it, and the ideas that can matter there."""

    title: str
    why: str  # these ideas, and not the others
    env: EnvSpec
    script: Any  # the numbered script of the plain task: its CONFIG and THRESHOLD hold here too
    steps: int
    ideas: tuple[str, ...] = tuple(VARIANTS)[1:]
    scale: float = 1.0  # of the rewards; returns are reported without it
    methods: tuple[str, ...] = ()  # model-free ones to run beside


CARTPOLE = importlib.import_module("02_dreamer_cartpole")
PENDULUM = importlib.import_module("03_dreamer_pendulum")
ACROBOT = importlib.import_module("05_dreamer_acrobot")


def only_seen(env_id: str, seen: list[int]) -> Callable[[], gym.Env]:
    """The environment, of whose observation only these numbers are seen."""

    def make() -> gym.Env:
        space = gym.spaces.Box(-np.inf, np.inf, (len(seen),))
        return TransformObservation(gym.make(env_id), lambda obs: obs[seen], space)

    return make


def scaled(env_id: str, scale: float) -> Callable[[], gym.Env]:
    """The environment with all rewards multiplied."""
    return lambda: TransformReward(gym.make(env_id), lambda reward: scale * float(reward))


def glitching(env_id: str) -> Callable[[], gym.Env]:
    """The environment, seen by a bad sensor: one number in a hundred is 1,000 times too large."""

    def make() -> gym.Env:
        env = gym.make(env_id)
        space = gym.spaces.Box(-np.inf, np.inf, env.observation_space.shape)

        def glitch(obs: np.ndarray) -> np.ndarray:
            return np.where(env.np_random.random(obs.shape) < 0.01, 1000 * obs, obs)

        return TransformObservation(env, glitch, space)

    return make


METHODS = ("ppo", "sac")  # of Stable-Baselines3, as 07_sample_efficiency.py has them for Pendulum
TASKS = {
    "cartpole": Task("CartPole", "all ideas are at work", CARTPOLE.ENV, CARTPOLE, steps=4_000),
    "pendulum": Task("Pendulum", "all ideas are at work", PENDULUM.ENV, PENDULUM, steps=4_000),
    "acrobot": Task(
        "Acrobot",
        "sparse, no signal before the first success: the ideas that keep a policy trying and "
        "bring a rare success to the values",
        ACROBOT.ENV,
        ACROBOT,
        steps=5_000,
        ideas=("two-hot", "return scale", "unimix", "replay value", "slow critic"),
    ),
    **{
        name: Task(
            title,
            "what is not seen must be remembered: the ideas that make up the state",
            only_seen(script.ENV, seen),
            script,
            steps=4_000,
            ideas=("stochastic latent", "memory"),
        )
        for name, title, script, seen in (
            ("cartpole-blind", "CartPole without velocities", CARTPOLE, [0, 2]),
            ("pendulum-blind", "Pendulum without velocity", PENDULUM, [0, 1]),
        )
    },
    **{
        f"pendulum-x{scale:g}": Task(
            f"Pendulum (rewards x {scale:,g})",
            "the ideas that are to make rewards of every size alike",
            scaled(PENDULUM.ENV, scale),
            PENDULUM,
            steps=4_000,
            ideas=("two-hot", "return scale"),
            scale=scale,
            methods=METHODS,
        )
        for scale in (0.01, 100, 10_000)
    },
    "cartpole-glitches": Task(
        "CartPole (1% of readings x 1,000)",
        "the idea that is to bear observations of every size",
        glitching(CARTPOLE.ENV),
        CARTPOLE,
        steps=4_000,
        ideas=("symlog",),
    ),
}
SCALES = ("pendulum-x0.01", "pendulum", "pendulum-x100", "pendulum-x10000")  # one table


def config_of(task: str, variant: str, seed: int, smoke: bool = False) -> Config:
    """The config of a run of ours: the task's own, but that each step is a choice (CartPole's were,
    when these runs were made), and what the variant changes in it."""
    chosen = TASKS[task]
    config = replace(chosen.script.CONFIG, steps=chosen.steps, action_repeat=1, seed=seed)
    if smoke:
        config = replace(config, **cli.SMOKE)
    return VARIANTS[variant].config(config)


def settings(task: str, variant: str, seed: int, smoke: bool) -> dict[str, Any]:
    """All that the result of a run depends on, as plain JSON values."""
    if variant in VARIANTS:
        found = dataclasses.asdict(config_of(task, variant, seed, smoke))
    else:
        found = baselines.settings(TASKS[task].script.ENV, variant, seed, evals=1)
        if smoke:
            found["hyperparameters"] = {**found["hyperparameters"], "n_timesteps": 200}
            found["final_episodes"] = 2
    return {"task": task, "variant": variant, **found}


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
    return tuple(np.stack([e[name][rows] for e in episodes]) for name in ("obs", "action"))


def error_by_length(obs: np.ndarray, guess: np.ndarray) -> list[float]:
    """Mean absolute error of `guess` (N, H or 1, O) of the rows after the context of obs
    (N, T, O), for each of the H; each dimension in units of its standard deviation."""
    error = np.abs(guess - obs[:, CONTEXT:]) / obs.std((0, 1))
    return [significant(value) for value in error.mean((0, 2))]


def dream_error(agent: DreamerAgent) -> list[float]:
    """Error of dreams, one for each window, against the number of dreamed steps (H,)."""
    obs, action = unseen_windows()
    return error_by_length(obs, open_loop(agent, obs, action, CONTEXT, seed=0)["obs"])


def run_one(task: str, variant: str, config: Config) -> dict[str, Any]:
    """Train one variant: minutes of wall clock and CPU, the learning curve in the task's own units
    of reward and, on one task, the error of the dreams.

    A run whose losses are no longer finite ends there, with a shorter curve: that is a result.
    """
    wall, cpu = time.monotonic(), time.process_time()
    agent = None
    with without(variant), tempfile.TemporaryDirectory() as folder:
        try:
            agent = train(TASKS[task].env, config, folder, device="cpu").agent
        except FloatingPointError as error:
            print(error)
        evals = read_log(Path(folder) / "log.jsonl", "eval")
        minutes = (time.monotonic() - wall) / 60, (time.process_time() - cpu) / 60
        dreams = dream_error(agent) if agent and task == DREAMS else None
    steps, returns = [row["step"] for row in evals], [row["return"] for row in evals]
    return entry(task, minutes, steps, returns, dreams)


def run_method(task: str, config: dict[str, Any]) -> dict[str, Any]:
    """Train a model-free method; its curve is one point, the mean return at the end."""
    run = baselines.run(config, TASKS[task].env)
    minutes = run["minutes"], run["cpu_minutes"]
    return entry(task, minutes, [run["env_steps"]], [np.mean(run["final_returns"])])


def entry(
    task: str,
    minutes: tuple[float, float],
    steps: list[int],
    returns: list[float],
    dream_error: list[float] | None = None,
) -> dict[str, Any]:
    """What is kept of a run, returns without the scale of the rewards."""
    returns = [significant(value / TASKS[task].scale) for value in returns]
    return {
        "cpu": results.cpu_name(),
        "return": returns[-1] if returns else None,
        "minutes": significant(minutes[0]),
        "cpu_minutes": significant(minutes[1]),
        "curve": {"env_steps": steps, "return": returns},
        "dream_error": dream_error,
    }


# ---------------------------------------------------------------- all runs


@dataclass(frozen=True, kw_only=True)
class Cell(Job):
    """One run of one variant on one task."""

    task: str
    variant: str


def make_cells(flags: argparse.Namespace, tasks: list[str], variants: list[str]) -> list[Cell]:
    """The runs of these variants on these tasks, as far as a task has them: all of the first seed,
    then all of the second, so that an unfinished measurement shows a little of everything. Those
    of Stable-Baselines3 only where it is installed."""
    script = Path(__file__).resolve()
    cells = []
    for seed, task, variant in itertools.product(flags.seeds, tasks, variants):
        methods = TASKS[task].methods if baselines else ()
        if variant not in (FULL, *TASKS[task].ideas, *methods):
            continue
        name = f"{task}/{variant.replace(' ', '-')}"
        words = ["--run", task, variant, str(seed), "--out", str(flags.base)]
        cells.append(
            Cell(
                name=name,
                seed=seed,
                command=[str(script), *words, *(["--smoke"] if flags.smoke else [])],
                folder=str(flags.base / "runs" / script.stem / name / f"seed{seed}"),
                config=settings(task, variant, seed, flags.smoke),
                threads=1,
                fresh=flags.fresh,
                task=task,
                variant=variant,
            )
        )
    return cells


def collect(flags: argparse.Namespace) -> effects.Results:
    """Bring all complete runs into the results file. What it holds stays, as far as it was made
    with the settings that a run would have today."""
    path = flags.base / "assets" / "results" / "ablations.json"
    with results.locked(path.parent):
        old = json.loads(path.read_text()) if path.exists() else {"tasks": {}, "runs": []}
        runs = {}
        for run in old["runs"]:
            task, variant, seed = key = run["task"], run["variant"], run["seed"]
            if task in TASKS and variant in (FULL, *TASKS[task].ideas, *TASKS[task].methods):
                unknown = variant in METHODS and baselines is None
                if unknown or run["config"] == settings(task, variant, seed, flags.smoke):
                    runs[key] = run
        for cell in make_cells(flags, list(TASKS), [*VARIANTS, *METHODS]):
            if result := result_of(cell):
                key = {"task": cell.task, "variant": cell.variant, "seed": cell.seed}
                kept = ("config", "cpu", "minutes", "cpu_minutes", "curve", "dream_error")
                runs[tuple(key.values())] = {**key, **{name: result[name] for name in kept}}

        tasks = {}
        for name, task in TASKS.items():
            config = dataclasses.asdict(config_of(name, FULL, 0, flags.smoke))
            before = old["tasks"].get(name, {})
            random_return = None
            if before.get("config") == config:
                random_return = before["random_return"]
            if random_return is None and any(key[0] == name for key in runs):
                random_return = significant(random_returns(task.env).mean() / task.scale)
            tasks[name] = {
                "title": task.title,
                "why": task.why,
                "ideas": list(task.ideas),
                "methods": list(task.methods),
                "scale": task.scale,
                "threshold": task.script.THRESHOLD,
                "random_return": random_return,
                "config": config,
            }

        order = [*itertools.product(TASKS, [*VARIANTS, *METHODS])]
        obs, _ = unseen_windows()
        guesses = {
            "last observation repeated": error_by_length(obs, obs[:, CONTEXT - 1 : CONTEXT]),
            "mean of the data": error_by_length(obs, obs.mean((0, 1), keepdims=True)),
        }
        data = {
            "ideas": {name: VARIANTS[name].removed for name in [*VARIANTS][1:]},
            "tasks": tasks,
            "dreams": {"task": DREAMS, "guesses": guesses},
            "scales": list(SCALES),
            "versions": results.versions(),
            "runs": sorted(
                runs.values(),
                key=lambda run: (order.index((run["task"], run["variant"])), run["seed"]),
            ),
        }
        text = results.dump(data)
        write_atomic(path, lambda temporary: temporary.write_text(text))
    return data


def draw(data: effects.Results, assets: Path) -> None:
    """Both figures, from the content of the results file."""
    titles = [told["title"] for told in data["tasks"].values()]
    grid = effects.grid(data)
    figures.ablation_figure(list(data["ideas"]), titles, grid, assets / "08_ablations.png")
    errors = {
        variant: np.array(list(effects.dream_errors(data, variant).values()))
        for variant in (FULL, *data["ideas"])
    }
    figures.ablation_dreams_figure(
        f"How dreams of {data['tasks'][DREAMS]['title']} go wrong: {CONTEXT} observed steps, "
        "then the prior alone",
        errors.pop(FULL),
        errors,
        data["dreams"]["guesses"],
        assets / "08_dreams.png",
    )
    print(f"Figures: {assets / '08_ablations.png'}, {assets / '08_dreams.png'}")


# ---------------------------------------------------------------- the command line


def parse_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ideas = [*VARIANTS][1:]
    help_text = f"to remove, of: {', '.join(ideas)}; or {' or '.join(METHODS)}"
    choices = {"choices": [*ideas, *METHODS], "default": [*ideas, *METHODS]}
    parser.add_argument("--ideas", nargs="+", **choices, metavar="IDEA", help=help_text)
    choices, help_text = {"choices": TASKS, "default": list(TASKS)}, f"of: {', '.join(TASKS)}"
    parser.add_argument("--tasks", nargs="+", **choices, metavar="TASK", help=help_text)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], metavar="K")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--fresh", action="store_true", help="skip nothing")
    parser.add_argument("--smoke", action="store_true", help="every stage in seconds")
    parser.add_argument("--out", type=Path, help="all output goes below this folder")
    parser.add_argument("--plot-only", action="store_true", help="from the numbers that are there")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # a job's own process
    flags = parser.parse_args()
    if flags.jobs < 1:
        parser.error(f"argument --jobs: must be at least 1, got {flags.jobs}")
    if flags.smoke:
        flags.ideas, flags.seeds = ["memory", "sac"], [0]
        flags.tasks = [DREAMS, "pendulum-x100"]
    here = Path(__file__).resolve().parent
    flags.base = (flags.out or (here / "runs" / "smoke" if flags.smoke else here)).resolve()
    return flags


def main() -> int:
    flags = parse_flags()
    if flags.run:
        task, variant, seed = flags.run
        flags.seeds = [int(seed)]
        (cell,) = make_cells(flags, [task], [variant])
        if variant in METHODS:
            found = run_method(task, cell.config)
        else:
            found = run_one(task, variant, config_of(task, variant, cell.seed, flags.smoke))
        write_json(Path(cell.folder) / "result.json", {"config": cell.config, **found})
        return 0

    path = flags.base / "assets" / "results" / "ablations.json"
    outcomes = []
    if not flags.plot_only:
        cells = make_cells(flags, flags.tasks, [FULL, *flags.ideas])
        if path.exists() and not flags.fresh:
            planned = len(cells)
            known = {(run["task"], run["variant"], run["seed"]) for run in collect(flags)["runs"]}
            cells = [cell for cell in cells if (cell.task, cell.variant, cell.seed) not in known]
            if len(cells) < planned:
                print(f"{planned - len(cells)} of {planned} runs are in {path} already")
        try:
            for outcome in run_jobs(cells, flags.jobs):
                outcomes.append(outcome)
                if outcome.status == "done":
                    collect(flags)
        except KeyboardInterrupt:
            print("\nInterrupted. The same command does what is left.")
            return 130
        print("\n" + summary(cells, outcomes))
        collect(flags)
    if not path.exists():
        print("Nothing has been measured yet.")
        return 0
    draw(json.loads(path.read_text()), flags.base / "assets")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
