"""Environments whose spaces are not vectors, or that ask for memory, learned from the start.

    python -m lab.spaces              trains three seeds of each, some two hours on one core
    python -m lab.spaces --plot-only  draws assets/spaces.png anew from assets/results/spaces

It also registers them with Gymnasium, so that `--env lab.spaces:TwoJoints-v0` works.
"""

import itertools
from dataclasses import replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamer import Config, evaluate, train
from dreamer.cli import parse
from lab import figures, results
from lab.cli import ASSETS, ROOT


class TwoJoints(gym.Env):
    """Two joints that must both point the way that a flag says, and stay there.

    Both are turned at once, each by -0.3, 0 or 0.3 rad. Observed are the cosine and sine of both
    angles, a matrix, and the flag, a category. Reward: the mean cosine of the angles left, -1 to 1.
    """

    TURN = 0.3
    action_space = spaces.MultiDiscrete([3, 3])
    observation_space = spaces.Dict(
        {"joints": spaces.Box(-1, 1, (2, 2)), "flag": spaces.Discrete(2)}
    )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.angles = self.np_random.uniform(-np.pi, np.pi, 2)
        self.flag = int(self.np_random.integers(2))
        return self.observe(), {}

    def step(self, action: np.ndarray) -> tuple:
        self.angles = self.angles + self.TURN * (np.asarray(action) - 1)
        reward = float(np.cos(self.angles - np.pi * self.flag).mean())
        return self.observe(), reward, False, False, {}

    def observe(self) -> dict[str, Any]:
        joints = np.stack([np.cos(self.angles), np.sin(self.angles)], 1, dtype=np.float32)
        return {"joints": joints, "flag": self.flag}


class Recall(gym.Env):
    """A cue of 1 or -1, seen once. A question `delay` steps later. The answer that fits earns 1.

    Observed are the cue, 0 except in the first row, and whether the question is asked.
    """

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(2)

    def __init__(self, delay: int) -> None:
        self.delay = delay

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.time, self.cue = 0, int(self.np_random.integers(2))
        return np.float32([2 * self.cue - 1, 0]), {}

    def step(self, action: int) -> tuple:
        asked = self.time == self.delay
        self.time += 1
        seen = np.float32([0, self.time == self.delay])
        return seen, float(asked and action == self.cue), asked, False, {}


class Dots(gym.Env):
    """Two dots on a black picture, the agent and a goal, a single pixel each, of their own channel.

    The goal stands still, and to reach it earns 1; or it `falls`, and the agent in the bottom row
    earns 1 for catching it and -1 for missing it. That ends the episode.
    """

    def __init__(self, side: int, falls: bool) -> None:
        moves = [(0, -1), (0, 0), (0, 1)] if falls else [(-1, 0), (1, 0), (0, -1), (0, 1)]
        self.moves, self.last, self.falls = np.array(moves), side - 1, falls
        self.action_space = spaces.Discrete(len(moves))
        self.observation_space = spaces.Box(0, 255, (side, side, 2 if falls else 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.me, self.goal = self.np_random.integers(self.last + 1, size=(2, 2))
        if self.falls:
            self.me[0], self.goal[0] = self.last, 0
        return self.draw(), {}

    def step(self, action: int) -> tuple:
        self.me = (self.me + self.moves[action]).clip(0, self.last)
        self.goal[0] += self.falls
        there = bool((self.me == self.goal).all())
        missed = self.falls and self.goal[0] == self.last and not there
        return self.draw(), float(there) - missed, there or bool(missed), False, {}

    def draw(self) -> np.ndarray:
        picture = np.zeros(self.observation_space.shape or (), np.uint8)
        picture[(*self.goal, 1)] = picture[(*self.me, 0)] = 255
        return picture


LAKE = "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv"
ENVS = {  # id -> class, longest episode, arguments
    "FrozenLakeNotSlippery-v1": (LAKE, 100, {"is_slippery": False}),
    "TwoJoints-v0": ("lab.spaces:TwoJoints", 20, {}),
    "Courier-v0": ("lab.spaces:Dots", 40, {"side": 11, "falls": False}),
    "Catch-v0": ("lab.spaces:Dots", 10, {"side": 10, "falls": True}),
    **{f"Recall{n}-v0": ("lab.spaces:Recall", n + 2, {"delay": n}) for n in (8, 16, 32)},
}
for name, (kind, limit, kwargs) in ENVS.items():
    if name not in gym.registry:  # `python -m lab.spaces` comes here twice
        gym.register(name, kind, max_episode_steps=limit, kwargs=kwargs)

PLAIN = Config(steps=10_000, train_ratio=64, evals=20, eval_episodes=20)
RECALL = replace(PLAIN, steps=13_000, categoricals=4)  # more latents are more noise in the memory
TASKS = {  # name -> id, return that counts as learned, config
    # The goal is reached in 6 steps or never.
    "frozen_lake": ("FrozenLakeNotSlippery-v1", 1.0, PLAIN),
    # Nine tenths of what the best of the nine actions at each step gets on average, 17.3.
    "two_joints": ("TwoJoints-v0", 15.5, PLAIN),
    # Right in 95 of 100 episodes, after 3,000 updates. A window must hold cue and question.
    "recall_8": ("Recall8-v0", 0.95, RECALL),
    "recall_16": ("Recall16-v0", 0.95, replace(RECALL, seq_len=24, train_ratio=96)),
    "recall_32": ("Recall32-v0", 0.95, replace(RECALL, seq_len=40, train_ratio=160)),
    # Nineteen of twenty arrive; all but one of forty are caught.
    "courier": ("Courier-v0", 0.95, PLAIN),
    "catch": ("Catch-v0", 0.95, PLAIN),
    # Two less than a taxi that knows the way earns on average.
    "taxi": ("Taxi-v4", 5.9, replace(PLAIN, steps=30_000)),
}
RESULTS = results.RESULTS / "spaces"


def main(
    tasks: tuple[Literal[tuple(TASKS)], ...] = tuple(TASKS),
    seeds: tuple[int, ...] = (0, 1, 2),
    plot_only: bool = False,
) -> None:
    """Train and draw.

    Args:
        tasks: what to train
        seeds: of each task
        plot_only: draw the figure from the results that are there
    """
    for task, seed in itertools.product(() if plot_only else tasks, seeds):
        (env, threshold, config), folder = TASKS[task], ROOT / "runs" / "spaces" / task
        run = train(env, replace(config, seed=seed), folder / f"seed{seed}", resume=True)
        returns = evaluate(run.agent, env, 100, seed=seed)
        results.merge(RESULTS / f"{task}.json", env, threshold, [results.run_entry(run, returns)])
        print(f"{task}, seed {seed}: {returns.mean():.2f} (threshold {threshold:g})")
    found = {task: results.load(RESULTS / f"{task}.json") for task in TASKS}
    figure = ASSETS / "spaces.png"
    figures.spaces_figure({task: data for task, data in found.items() if data}, figure)
    print(figure)


if __name__ == "__main__":
    parse(main, __doc__, prog="python -m lab.spaces")
