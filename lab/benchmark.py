"""How fast one gradient update is, and how near to what the machine can do.

    python -m lab.benchmark --json FILE --figures DIR      all of it, a few minutes
    python -m lab.benchmark --quick                        fewer repetitions, no compile

Two shapes: `default`, our `Config`, and `matched`, of the size that other implementations are
usually timed at. The yardstick is the *floor*: the floating-point operations of the update's
matrix products, divided by the rate at which this machine does just those products. Time above
the floor goes into everything else (norms, activations, sampling, the framework).

The operations are those of the dense algorithm, in which a one-hot latent is multiplied with its
whole weight matrix. Where the agent adds up 16 rows instead it can beat its floor.

The rate is measured beside the updates, in turns, so that a busy or throttled machine slows both
alike: quote ratios of one run, not times of two. The products run again and again on the same
operands, found in the cache, which an update's are not: the floor is never too high.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import multiprocessing
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dreamer import networks, rssm
from dreamer.agent import Config, DreamerAgent
from dreamer.checkpoint import write_json
from dreamer.envs import AgentEnv
from dreamer.replay_buffer import ReplayBuffer
from dreamer.utils import has_cpp_compiler, tune_cpu
from lab import figures
from lab.results import cpu_name, significant, speed_table, versions

SHAPES = {
    "default": Config(),
    "matched": Config(
        batch_size=16,
        seq_len=64,
        deter=256,
        hidden=256,
        layers=2,
        categoricals=16,
        classes=16,
        imag_starts=1024,
        imag_horizon=15,
    ),
}
OBS_SIZE, ACTION_SIZE = 4, 2  # CartPole's
EPISODE = 200  # rows of each synthetic episode; every other one ends by a time limit
THREADS = (1, 2)
COVER = 0.9  # share of an update's operations that the timed products stand for
GROWTH_FIELDS = {  # what is varied, as a multiple of the default: name -> fields of Config
    "batch": ("batch_size",),
    "window": ("seq_len",),
    "starts": ("imag_starts",),
    "horizon": ("imag_horizon",),
    "width": ("hidden", "deter"),
}
PROCESS_STATUS = Path("/proc/self/status")
REPLAY_ROWS = (1_000, 10_000, 100_000, 1_000_000)


# ---------------------------------------------------------------- what is timed


def synthetic_replay(rows: int) -> ReplayBuffer:
    """A full buffer of random observations and actions in episodes of `EPISODE` rows."""
    rng = np.random.default_rng(0)
    step, episode = np.arange(rows) % EPISODE, np.arange(rows) // EPISODE
    actions = np.eye(ACTION_SIZE, dtype=np.float32)[rng.integers(0, ACTION_SIZE, rows)]
    is_last = step == EPISODE - 1
    columns = {
        "obs": rng.standard_normal((rows, OBS_SIZE), np.float32),
        "action": actions * ~is_last[:, None],
        "reward": (step > 0).astype(np.float32),
        "is_first": step == 0,
        "is_last": is_last,
        "is_terminal": is_last & (episode % 2 == 0),
    }
    replay = ReplayBuffer(rows, OBS_SIZE, ACTION_SIZE)
    state = {name: torch.from_numpy(column) for name, column in columns.items()}
    replay.load_state_dict({**state, "capacity": rows, "head": 0})
    return replay


def make_update(config: Config) -> tuple[DreamerAgent, Callable[[], Any]]:
    """A fresh agent, and a function that makes one update of it."""
    agent = DreamerAgent(OBS_SIZE, ACTION_SIZE, True, config)
    replay = synthetic_replay(max(10 * EPISODE, config.seq_len))
    batch = replay.sample(config.batch_size, config.seq_len, np.random.default_rng(1))
    return agent, lambda: agent.update(batch)


# ---------------------------------------------------------------- counting operations


def dense_sum_rows(rows: Tensor, index: Tensor) -> Tensor:
    """`networks.sum_rows` as the product that it replaces: rows (S*K, out), index (..., S)."""
    classes = rows.shape[0] // index.shape[-1]
    return F.one_hot(index, classes).flatten(-2).to(rows.dtype) @ rows


@contextlib.contextmanager
def dense_latents() -> Iterator[None]:
    """Within this block every latent is multiplied as a one-hot vector, so that it is counted."""
    with (
        mock.patch.object(networks, "sum_rows", dense_sum_rows),
        mock.patch.object(rssm, "sum_rows", dense_sum_rows),
    ):
        yield


class Product(NamedTuple):
    """A matrix product's operands: their shapes (two or three dimensions) and strides."""

    shape_a: tuple[int, ...]
    stride_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    stride_b: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * math.prod(self.shape_a) * self.shape_b[-1]


class ProductRecorder(TorchDispatchMode):
    """Counts every matrix product that runs within it, by operands."""

    OPERANDS = {  # operator -> position of its first matrix
        torch.ops.aten.mm.default: 0,
        torch.ops.aten.bmm.default: 0,
        torch.ops.aten.addmm.default: 1,
        torch.ops.aten.baddbmm.default: 1,
    }

    def __init__(self):
        super().__init__()
        self.products: Counter[Product] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.OPERANDS:
            a, b = args[self.OPERANDS[func] :][:2]
            self.products[Product(tuple(a.shape), a.stride(), tuple(b.shape), b.stride())] += 1
        return func(*args, **(kwargs or {}))


def count_update(config: Config) -> tuple[int, Counter[Product]]:
    """Floating-point operations of one update of the dense algorithm, and its matrix products."""
    _, update = make_update(dataclasses.replace(config, compile=False))
    with dense_latents(), ProductRecorder() as recorder, FlopCounterMode(display=False) as counter:
        update()
    return counter.get_total_flops(), recorder.products


def main_products(products: Counter[Product]) -> Counter[Product]:
    """The few products, with their counts, that carry `COVER` of all operations."""
    by_weight = sorted(products, key=lambda p: p.flops * products[p], reverse=True)
    total, chosen = sum(p.flops * n for p, n in products.items()), Counter()
    for product in by_weight:
        if sum(p.flops * n for p, n in chosen.items()) >= COVER * total:
            break
        chosen[product] = products[product]
    return chosen


# ---------------------------------------------------------------- timing


class Time(NamedTuple):
    """Milliseconds: the median by the wall clock, and that of the processor's time, all threads
    together."""

    wall: float
    cpu: float


def time_in_turns(jobs: dict[Hashable, Callable[[], Any]], rounds: int) -> dict[Hashable, Time]:
    """Run every job once in each round, and once before as a warm-up."""
    taken: dict[Hashable, list[tuple[float, float]]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    for _ in range(rounds):
        for name, job in jobs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Time(*(1e3 * median(column) for column in zip(*times, strict=True)))
        for name, times in taken.items()
    }


def make_product(product: Product) -> tuple[int, Callable[[], None]]:
    """A job that makes the product several times in a row, and how many times."""
    a, b = (
        torch.empty_strided(shape, stride).normal_() for shape, stride in (product[:2], product[2:])
    )
    repeats = min(50, math.ceil(2e8 / product.flops))  # some milliseconds each

    def job() -> None:
        for _ in range(repeats):
            torch.matmul(a, b)

    return repeats, job


def measure_updates(
    shapes: dict[str, Config],
    products: dict[str, Counter[Product]],
    threads: int,
    rounds: int,
    compiled: bool,
) -> dict[str, Any]:
    """Time updates and their main products in turns, with a number of threads.

    Returns, by shape: `update_ms` and `cpu_ms` by mode; `compile_s`, the time of the first
    compiled update; `gflops`, the rate of all its main products together, and `cpu_gflops`, the
    same by the processor's time; and each of these products with its share of the operations.
    """
    tune_cpu(threads)
    jobs: dict[Hashable, Callable[[], Any]] = {}
    repeats: dict[Product, int] = {}
    result: dict[str, Any] = {shape: {"compile_s": None} for shape in shapes}
    for shape, config in shapes.items():
        _, jobs[shape, "eager"] = make_update(dataclasses.replace(config, compile=False))
        for product in main_products(products[shape]):
            repeats[product], jobs[product] = make_product(product)
    with fresh_compiler() if compiled else contextlib.nullcontext():
        for shape, config in shapes.items() if compiled else ():
            _, update = make_update(dataclasses.replace(config, compile=True))
            started = time.perf_counter()
            update()
            result[shape]["compile_s"] = time.perf_counter() - started
            jobs[shape, "compiled"] = update
        times = time_in_turns(jobs, rounds)

    for shape, values in result.items():
        for key, clock in (("update_ms", "wall"), ("cpu_ms", "cpu")):
            values[key] = {
                mode: getattr(times[shape, mode], clock) if (shape, mode) in times else None
                for mode in ("eager", "compiled")
            }
        main = main_products(products[shape])
        flops = sum(p.flops * n for p, n in main.items())
        for key, clock in (("gflops", "wall"), ("cpu_gflops", "cpu")):
            ms = sum(n * getattr(times[p], clock) / repeats[p] for p, n in main.items())
            values[key] = flops / 1e6 / ms
        everything = sum(p.flops * n for p, n in products[shape].items())
        values["products"] = [
            {
                **p._asdict(),
                "share": p.flops * n / everything,
                "gflops": p.flops * repeats[p] / times[p].wall / 1e6,
            }
            for p, n in main.items()
        ]
    return result


@contextlib.contextmanager
def fresh_compiler() -> Iterator[None]:
    """Within this block `torch.compile` starts from nothing, as on its first use on a machine."""
    torch.compiler.reset()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        mock.patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield
    torch.compiler.reset()


# ---------------------------------------------------------------- where the time goes


class Stages:
    """Adds up the seconds spent in each stage of an update.

    A stage's calls are replaced by timed ones; what a stage calls belongs to it.
    """

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.running = False

    def timed(self, stage: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            if self.running:
                return function(*args, **kwargs)
            self.running, started = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[stage] += time.perf_counter() - started
                self.running = False

        return call


def stage_calls(agent: DreamerAgent) -> list[tuple[str, Any, str]]:
    """(stage, object, name of its method) of every call that is timed."""
    return [
        ("world model", agent, "learn_world"),
        ("rollout", agent, "imagine"),
        *(("heads", agent.reward, name) for name in ("forward", "mean", "predict")),
        *(("heads", agent.cont, name) for name in ("forward", "predict")),
        ("actor", agent.actor, "forward"),
        *(("critic", agent.critic, name) for name in ("forward", "mean", "predict", "loss")),
        *(("critic", agent.slow_critic, name) for name in ("forward", "mean", "predict")),
        ("critic", agent, "replay_value_loss"),
        ("backward", Tensor, "backward"),
        ("optimiser", nn.utils, "clip_grad_norm_"),
        ("optimiser", agent.optimizer, "step"),
        ("optimiser", agent, "update_slow_critic"),
    ]


def measure_stages(config: Config, rounds: int) -> dict[str, float]:
    """Milliseconds of each stage of an eager update, the medians; `other` is the rest: returns,
    weights, and what lies between the stages."""
    agent, update = make_update(dataclasses.replace(config, compile=False))
    calls = stage_calls(agent)
    names = list(dict.fromkeys(stage for stage, _, _ in calls))
    taken: dict[str, list[float]] = {name: [] for name in (*names, "other")}
    update()
    for _ in range(rounds):
        stages = Stages()
        with contextlib.ExitStack() as stack:
            for stage, owner, name in calls:
                timed = stages.timed(stage, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, timed))
            started = time.perf_counter()
            update()
            total = time.perf_counter() - started
        for name in names:
            taken[name].append(1e3 * stages.seconds[name])
        taken["other"].append(1e3 * (total - sum(stages.seconds.values())))
    return {name: median(times) for name, times in taken.items()}


# ---------------------------------------------------------------- growth, memory, acting, replay


def measure_growth(config: Config, quick: bool) -> dict[str, dict[str, Any]]:
    """Milliseconds of an eager update when one size is varied: `base`, `values` and `ms` by
    name."""
    factors = (0.5, 1, 2) if quick else (0.25, 0.5, 1, 2, 4)
    growth: dict[str, dict[str, Any]] = {}
    jobs = {}
    for name, fields in GROWTH_FIELDS.items():
        base, most = getattr(config, fields[0]), math.inf
        if name == "starts":  # there are no more than the replayed states
            base, most = config.num_starts, config.batch_size * config.seq_len
        sizes = {max(2, round(base * factor)) for factor in factors}
        values = sorted(size for size in sizes if size <= most)
        growth[name] = {"base": base, "values": values}
        for value in values:
            changes = {field: value for field in fields}
            varied = dataclasses.replace(config, compile=False, **changes)
            _, jobs[name, value] = make_update(varied)
    times = time_in_turns(jobs, 2 if quick else 7)
    for name, line in growth.items():
        line["ms"] = [times[name, value].wall for value in line["values"]]
    return growth


def peak_memory(config: Config) -> tuple[float, float]:
    """Largest memory of this process before and after some updates, MB (Linux)."""

    def peak() -> float:
        return int(re.search(r"VmHWM:\s*(\d+) kB", PROCESS_STATUS.read_text())[1]) / 1024

    tune_cpu()
    _, update = make_update(dataclasses.replace(config, compile=False))
    before = peak()
    for _ in range(2):
        update()
    return before, peak()


def measure_memory(shapes: dict[str, Config]) -> dict[str, dict[str, float]] | None:
    """By shape, in MB: `process`, the peak of a process that makes updates, libraries included,
    and `update`, what of it the updates added. None where the system does not tell."""
    if not PROCESS_STATUS.exists():
        return None
    memory = {}
    for shape, config in shapes.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a peak never goes down again
            before, after = pool.apply(peak_memory, (config,))
        memory[shape] = {"process": after, "update": after - before}
    return memory


def measure_acting(config: Config, steps: int) -> float:
    """Environment steps a second in CartPole, the agent choosing every action."""
    env = AgentEnv("CartPole-v1")
    agent = DreamerAgent(env.obs_size, env.action_size, env.discrete, config)
    obs, done, state = env.reset(0), True, None
    for step in range(-20, steps):  # the first few are a warm-up
        if step == 0:
            started = time.perf_counter()
        action, state = agent.act(obs[None], np.array([done]), state)
        obs, _, terminated, truncated = env.step(action[0])
        done = terminated or truncated
        if done:
            obs = env.reset(step + 20)
    seconds = time.perf_counter() - started
    env.close()
    return steps / seconds


def measure_replay(config: Config, rounds: int) -> dict[str, float]:
    """Microseconds to sample one batch, by rows held."""
    rng, draws = np.random.default_rng(0), 20

    def sampler(rows: int) -> Callable[[], None]:
        replay = synthetic_replay(rows)

        def job() -> None:
            for _ in range(draws):
                replay.sample(config.batch_size, config.seq_len, rng)

        return job

    times = time_in_turns({str(rows): sampler(rows) for rows in REPLAY_ROWS}, rounds)
    return {rows: 1e3 * t.wall / draws for rows, t in times.items()}


# ---------------------------------------------------------------- all of it


def benchmark(shapes: dict[str, Config], quick: bool) -> dict[str, Any]:
    """Everything measured, as the JSON file holds it.

    shapes: a `default`, which growth, acting and replay are measured with, and a `matched`, whose
    main products, of a thousand rows and more, give the machine's rate: small ones run at a lower
    one, and would raise the floor.
    """

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    compiled = not quick and has_cpp_compiler()
    if not quick and not compiled:
        say("no C++ compiler found: compiled updates are left out")
    tune_cpu()
    say("counting operations")
    counts = {shape: count_update(config) for shape, config in shapes.items()}
    products = {shape: products for shape, (_, products) in counts.items()}

    rounds = 3 if quick else 15
    by_threads = {}
    for threads in THREADS:
        say(f"timing updates and matrix products, {threads} thread{'s' * (threads > 1)}")
        by_threads[str(threads)] = measure_updates(shapes, products, threads, rounds, compiled)
    tune_cpu()
    gflops, cpu_gflops = (
        {t: values["matched"][key] for t, values in by_threads.items()}
        for key in ("gflops", "cpu_gflops")
    )

    measured = {}
    for shape, (flops, _) in counts.items():
        values = {t: result[shape] for t, result in by_threads.items()}
        measured[shape] = {
            "gflop": flops / 1e9,
            "floor_ms": {t: flops / 1e6 / gflops[t] for t in values},
            "cpu_floor_ms": {t: flops / 1e6 / cpu_gflops[t] for t in values},
            **{key: {t: v[key] for t, v in values.items()} for key in values["1"]},
        }
    say("timing the stages of an update")
    stages = {shape: measure_stages(c, 3 if quick else 15) for shape, c in shapes.items()}
    say("timing growth, acting and replay")
    result = {
        "gflops": gflops,
        "cpu_gflops": cpu_gflops,
        "shapes": measured,
        "stages_ms": stages,
        "growth": measure_growth(shapes["default"], quick),
        "acting_steps_per_s": measure_acting(shapes["default"], 300 if quick else 2_000),
        "replay_sample_us": measure_replay(shapes["default"], 5 if quick else 25),
        "memory_mb": measure_memory(shapes),
        "quick": quick,
        "cpu": cpu_name(),
        "versions": versions(),
    }
    return rounded(result)


def rounded(value: Any) -> Any:
    """Every float within, to a few significant digits."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return significant(value) if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time one update against the machine's limit.")
    parser.add_argument("--quick", action="store_true", help="under a minute; no compiled updates")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--figures", type=Path, help="write the two figures to this folder")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    result = benchmark(SHAPES, args.quick)
    if args.json:
        write_json(args.json, result)
    if args.figures:
        figures.benchmark_figures(result, args.figures)
    print(speed_table(result))
    print(f"\nMeasured in {time.perf_counter() - started:.0f} seconds.")


if __name__ == "__main__":
    main()
