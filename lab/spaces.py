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
        return self.observe(), self.agreement(self.angles), False, False, {}

    def observe(self) -> dict[str, Any]:
        joints = np.stack([np.cos(self.angles), np.sin(self.angles)], 1, dtype=np.float32)
        return {"joints": joints, "flag": self.flag}

    def agreement(self, angles: np.ndarray) -> float:
        return float(np.cos(angles - np.pi * self.flag).mean())


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
    """Two dots on a black picture, each a single pixel of its own channel."""

    side: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.me, self.other = self.np_random.integers(self.side, size=(2, 2))
        return self.draw(), {}

    def draw(self) -> np.ndarray:
        space: Any = self.observation_space
        picture = np.zeros(space.shape, space.dtype)
        picture[(*self.other, 1)] = space.high.max()
        picture[(*self.me, 0)] = space.high.max()
        return picture


class Courier(Dots):
    """Walk to the other dot, up, down, left or right: 1 on arrival, and the end."""

    side = 11
    observation_space = spaces.Box(0, 255, (11, 11, 3), np.uint8)
    action_space = spaces.Discrete(4)
    MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])

    def step(self, action: int) -> tuple:
        self.me = (self.me + self.MOVES[action]).clip(0, self.side - 1)
        there = bool((self.me == self.other).all())
        return self.draw(), float(there), there, False, {}


class Catch(Dots):
    """Stand in the bottom row where the other dot falls: 1 if it is caught, -1 if not."""

    side = 10
    observation_space = spaces.Box(0, 1, (10, 10, 2), np.int8)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        super().reset(seed=seed)
        self.me[0], self.other[0] = self.side - 1, 0
        return self.draw(), {}

    def step(self, action: int) -> tuple:
        self.me[1] = np.clip(self.me[1] + action - 1, 0, self.side - 1)
        self.other[0] += 1
        down = bool(self.other[0] == self.me[0])
        reward = down * (1.0 if self.me[1] == self.other[1] else -1.0)
        return self.draw(), reward, down, False, {}


LAKE = "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv"
ENVS = {  # id -> class, longest episode, arguments
    "FrozenLakeNotSlippery-v1": (LAKE, 100, {"is_slippery": False}),
    "TwoJoints-v0": ("lab.spaces:TwoJoints", 20, {}),
    "Courier-v0": ("lab.spaces:Courier", 40, {}),
    "Catch-v0": ("lab.spaces:Catch", 10, {}),
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
