"""How fast one gradient update is, how fast environments are stepped, and how fast this machine is.

    python -m lab.benchmark                       on one thread and on two, some minutes
    python -m lab.benchmark --quick --json FILE   one thread, fewer rounds; the numbers go to FILE

Three shapes: `default`, our `Config`, on CartPole's four numbers; `image`, the same on pictures of
64 x 64 pixels; and `matched`, at which others are usually timed. In turns with the updates runs the
matched one's largest matrix product: compare machines by ms times its GFLOP/s.

Then the agent acts: in CartPole, and in a slow simulator of which one is stepped, eight in turn, or
eight at the same time, each in a process of its own.
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from dreamer import AgentEnv, Config, DreamerAgent, Layout
from dreamer.check import make_update
from dreamer.checkpoint import write_json
from dreamer.cli import parse
from dreamer.envs import make_envs
from dreamer.machine import tune_cpu
from lab.results import cpu_name, markdown, versions

MATCHED = dict(batch_size=16, seq_len=64, deter=256, hidden=256, layers=2)
MATCHED |= dict(categoricals=16, classes=16, imag_starts=1024, imag_horizon=15)
NUMBERS = Layout(numbers=4, action_categories=(2,))  # CartPole's
SHAPES = {
    "default": (NUMBERS, Config()),
    "image": (replace(NUMBERS, numbers=0, images=((64, 64, 3),)), Config()),
    "matched": (NUMBERS, Config(**MATCHED)),
}


def time_in_turns(jobs: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Median milliseconds of each job, [by the clock on the wall, of the processor], after a
    warm-up; in turns, so that a busy moment slows all alike."""
    times = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (1e3 * np.median(pairs[1:], axis=0)).tolist() for name, pairs in times.items()}


class Simulator(gym.Env):
    """An environment that takes 20 ms for each step."""

    observation_space = gym.spaces.Box(-1, 1, (4,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple:
        return np.zeros(4, np.float32), {}

    def step(self, action: int) -> tuple:
        time.sleep(0.02)
        return np.zeros(4, np.float32), 0.0, False, False, {}


def measure_acting(env: Any, config: Config, rows: int) -> float:
    """Steps a second of `config.envs` environments in all, the agent choosing every action."""
    with AgentEnv(env) as one:
        agent = DreamerAgent(one.layout, config)
    with contextlib.closing(make_envs(env, config.envs, config)) as envs:
        obs, _ = envs.reset(seed=list(range(config.envs)))
        done, state, started = np.ones(config.envs, bool), None, 0.0
        for row in range(-10, rows):  # after a warm-up
            started = time.perf_counter() if row == 0 else started
            action, state = agent.act(obs, done, state)
            obs, _, terminated, truncated, _ = envs.step(action)
            if (done := terminated | truncated).any():
                obs, _ = envs.reset(options={"reset_mask": done})
        return rows * config.envs / (time.perf_counter() - started)


def benchmark(quick: bool) -> dict[str, Any]:
    """Everything measured, as the JSON file holds it: updates by number of threads; acting on one
    thread."""
    gflops, shapes = {}, {shape: {"update_ms": {}, "cpu_ms": {}} for shape in SHAPES}
    x, weight = torch.randn(16_384, 512), torch.randn(512, 256)  # all dreamed states; a layer
    for threads in (1,) if quick else (2, 1):
        tune_cpu(threads)
        jobs = {name: make_update(*shape) for name, shape in SHAPES.items()}
        times = time_in_turns({**jobs, "product": lambda: x @ weight}, 3 if quick else 15)
        gflops[threads] = 2e-6 * x.numel() * weight.shape[1] / times["product"][0]
        for shape, values in shapes.items():
            values["update_ms"][threads], values["cpu_ms"][threads] = times[shape]
    acting = measure_acting("CartPole-v1", Config(), 500 if quick else 3_000)
    slow = {}
    for n, mode in (1, "sync"), (8, "sync"), (8, "async"):
        config = Config(envs=n, vectorization_mode=mode)
        slow[f"{n} {mode}"] = measure_acting(Simulator, config, 50 if quick else 200)
    result = {"gflops": gflops, "shapes": shapes, "acting_steps_per_s": acting}
    result |= {"simulator_steps_per_s": slow, "cpu": cpu_name(), "versions": versions()}
    return result


def tables(result: dict[str, Any]) -> str:
    """The numbers of `benchmark`, to be read."""
    updates = [["Shape", "Threads", "ms per update", "CPU ms", "GFLOP/s"]]
    for shape, values in result["shapes"].items():
        for threads, ms in values["update_ms"].items():
            numbers = ms, values["cpu_ms"][threads], result["gflops"][threads]
            updates.append([shape, str(threads), *(f"{number:.1f}" for number in numbers)])
    slow = [["Simulators of 20 ms a step", "Steps per second", "Gain"]]
    first, *_ = result["simulator_steps_per_s"].values()
    for name, speed in result["simulator_steps_per_s"].items():
        slow.append([name, f"{speed:.0f}", f"{speed / first:.1f} x"])
    acting = f"Acting in CartPole: {result['acting_steps_per_s']:.0f} environment steps per second"
    return "\n\n".join([markdown(updates), markdown(slow), acting, result["cpu"]])


def main(quick: bool = False, json: Path | None = None) -> None:
    """Measure, and print tables.

    Args:
        quick: one thread, about a minute
        json: write the numbers to this file
    """
    result = benchmark(quick)
    if json:
        write_json(json, result)
    print(tables(result))


if __name__ == "__main__":
    parse(main, __doc__, prog="python -m lab.benchmark")
