"""The benchmark: what it times, how, and the file that it writes."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lab import benchmark

EVEN = dict(deter=24, hidden=24, categoricals=6, classes=4, layers=2, imag_starts=14)


class Products(TorchDispatchMode):
    """Counts the matrix products that run within it: (rows, inner, columns)."""

    FIRST = {torch.ops.aten.mm.default: 0, torch.ops.aten.addmm.default: 1}  # of its matrices

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.FIRST:
            a, b = args[self.FIRST[func] :][:2]
            self.seen[a.shape[0], a.shape[1], b.shape[1]] += 1
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------- what is timed


def test_every_product_of_the_rate_is_in_an_update_as_often():
    config = tiny_config(**EVEN)
    update = benchmark.make_update(config)
    with Products() as products:
        update()
    claimed = benchmark.main_products(config)
    assert claimed == {
        (70, 48, 24): 4,  # 14 dreams of 5 states, which are 24 + 6 * 4 numbers
        (70, 24, 24): 4,
        (70, 24, 255): 3,
        (14, 48, 24): 4,  # 4 steps of them
        (14, 48, 72): 4,
        (14, 24, 24): 16,
    }
    for product, count in claimed.items():
        assert products.seen[product] >= count, product


def test_the_products_are_most_of_a_matched_update():
    matched = benchmark.SHAPES["matched"]
    for rows, inner, columns in benchmark.main_products(matched):
        assert min(rows, inner, columns) >= 255  # small ones run at a lower rate
    config = replace(matched, seq_len=8, imag_starts=128)  # an eighth of all rows
    gflop, multiply = benchmark.make_products(config)
    update = benchmark.make_update(config)
    with FlopCounterMode(display=False) as all_of_it:
        update()
    with FlopCounterMode(display=False) as timed:
        multiply()
    assert timed.get_total_flops() == pytest.approx(1e9 * gflop)
    assert 0.5 < timed.get_total_flops() / all_of_it.get_total_flops() < 0.8


def test_operations_of_the_products_by_hand():
    config = tiny_config(layers=1, deter=4, hidden=6, categoricals=2, classes=2, imag_starts=3)
    gflop, _ = benchmark.make_products(config)  # 3 dreams of 4 steps: 15 states of 4 + 2 * 2
    states = 15 * 8 * 6 * 4 + 15 * 6 * 255 * 3
    steps = 3 * (8 * 6 + 10 * 12 + 6 * 6 * 3) * 4
    assert gflop == pytest.approx(2e-9 * (states + steps))


def test_the_replay_has_realistic_flags():
    rows = benchmark.filled_replay(1000).rows
    assert rows["is_first"].sum() == rows["is_last"].sum() == 5
    assert rows["is_first"][0] and rows["is_first"][200] and rows["is_last"][199]
    assert rows["is_terminal"].sum() == 3 and not (rows["is_terminal"] & ~rows["is_last"]).any()
    assert (rows["reward"][rows["is_first"]] == 0).all()
    assert (rows["action"].sum(1) == ~rows["is_last"]).all()


# ---------------------------------------------------------------- timing


def test_times_are_medians_of_wall_and_cpu_in_turns():
    naps = iter([0.2, 0.01, 0.03, 0.2])  # the first is the warm-up
    order = []

    def nap():
        order.append("nap")
        time.sleep(next(naps))

    times = benchmark.time_in_turns({"nap": nap, "other": lambda: order.append("other")}, 3)
    assert order == ["nap", "other"] * 4
    wall, cpu = times["nap"]
    assert 30 <= wall < 150 and cpu < 15


def test_growth_varies_one_size_at_a_time(monkeypatch):
    made = []
    monkeypatch.setattr(benchmark, "make_update", lambda config: made.append(config) or int)
    config = tiny_config()
    growth = benchmark.measure_growth(config, rounds=1)
    sizes = {"batch": 3, "window": 6, "starts": 7, "horizon": 4, "width": 16}
    assert {name: list(line) for name, line in growth.items()} == {
        name: [size // 2, size, 2 * size] for name, size in sizes.items()
    }
    changed = [{k for k, v in vars(c).items() if v != vars(config)[k]} for c in made]
    assert changed[0] == changed[2] == {"batch_size"} and changed[1] == set()
    assert changed[-1] == {"hidden", "deter"}


# ---------------------------------------------------------------- all of it


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """`--quick` on tiny shapes: (the file's content, what was printed, numbers of threads).

    All of it runs on one thread: two, on tensors this small and beside other processes, would
    spend minutes in waiting for each other.
    """
    path = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    shapes = {"default": tiny_config(), "matched": tiny_config(hidden=20, imag_starts=18)}
    printed, threads = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "SHAPES", shapes)
        patch.setattr(benchmark, "REPLAY_ROWS", (100, 1000))
        patch.setattr(benchmark, "tune_cpu", lambda number=1: threads.append(number))
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(text)))
        benchmark.main(["--quick", "--json", str(path)])
    return json.loads(path.read_text()), "\n".join(printed), threads


def test_json_of_a_quick_run(quick_run):
    data, _, threads_used = quick_run
    assert threads_used == [1, 2, 1]
    assert set(data["gflops"]) == {"1", "2"} and set(data["shapes"]) == {"default", "matched"}
    numbers = [*data["gflops"].values(), data["acting_steps_per_s"]]
    for shape in data["shapes"].values():
        assert set(shape) == {"update_ms", "cpu_ms"}
        for by_threads in shape.values():
            assert set(by_threads) == {"1", "2"}
            numbers += by_threads.values()
    numbers += [ms for line in data["growth_ms"].values() for ms in line.values()]
    numbers += data["replay_sample_us"].values()
    assert all(isinstance(n, float) and math.isfinite(n) and n > 0 for n in numbers)
    assert set(data["replay_sample_us"]) == {"100", "1000"}
    assert data["quick"] is True and data["cpu"] and "torch" in data["versions"]


def test_tables_of_a_quick_run(quick_run):
    data, printed, _ = quick_run
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line[:1] == "|"]
    update = next(row for row in rows if row[:2] == ["matched", "2"])
    ms, cpu = (data["shapes"]["matched"][key]["2"] for key in ("update_ms", "cpu_ms"))
    assert update[2:4] == [f"{ms:.1f}", f"{cpu:.1f}"]
    assert float(update[4]) == pytest.approx(1000 / ms, abs=0.01)
    width = next(row for row in rows if row[0] == "width")
    assert width[1:] == [f"{ms:.1f} ({n})" for n, ms in data["growth_ms"]["width"].items()]
    assert f"{data['acting_steps_per_s']:.0f} environment steps per second" in printed
