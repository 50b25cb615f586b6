"""README and docs: short enough to be read, with tables that agree with the committed results and
links that lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "assets" / "results"
TASKS = ("cartpole", "pendulum", "acrobot", "lunar_lander")
PIXELS = ("pixel_pendulum", "pixel_cartpole")
BASELINES = {"cartpole": "ppo dqn", "pendulum": "ppo sac"} | dict.fromkeys(TASKS[2:], "ppo dqn")
T_975 = 2.776  # Student's t, 97.5%, 4 degrees of freedom: five paired seeds


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(name: str, first: str) -> list[list[str]]:
    """The cells below the head of the table of a page whose first line begins with `first`."""
    (rows,) = re.findall(rf"^{re.escape(first)}.*\n\|[-| ]+\n((?:\|.*\n)+)", page(name), re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def name(data: dict) -> str:
    """The environment's, without the module that registers it."""
    return data["env_id"].rpartition(":")[2]


def means(data: dict) -> np.ndarray:
    """Mean final return of each seed."""
    return np.array([np.mean(run["final_returns"]) for run in data["runs"]])


def minutes(data: dict, clock: str = "minutes") -> str:
    return f"{np.mean([run[clock] for run in data['runs']]):.1f}"


def steps(data: dict) -> str:
    return f"{data['runs'][0]['env_steps']:,}"


def solved(data: dict) -> tuple[float, float, int, str]:
    """Step and minutes of the median seed at the first of two evaluations in a row that reach the
    threshold; how many seeds get there; "a of b": a of all b evaluations since then are below."""
    firsts, since = [], []
    for run in data["runs"]:
        evals = [row for row in run["diagnostics"] if row["kind"] == "eval"]
        good = [row["return"] >= data["threshold"] for row in evals]
        first = next((i for i in range(len(good) - 1) if good[i] and good[i + 1]), len(good))
        since += good[first:]
        ahead = evals[first : first + 1] or [{"step": np.inf, "minutes": np.inf}]
        firsts.append((ahead[0]["step"], ahead[0]["minutes"]))
    step, minute = sorted(firsts)[len(firsts) // 2]
    later = f"{since.count(False)} of {len(since)}" if since else "-"
    return step, minute, sum(np.isfinite(step) for step, _ in firsts), later


# ---------------------------------------------------------------- README


def test_the_readme_is_short_and_starts_quickly():
    lines = page("README.md").splitlines()
    assert len(lines) <= 200
    assert len(page("README.md").split()) <= 2_600
    assert lines.index("## Quick start") < 40


def test_the_readmes_table_agrees_with_the_committed_results():
    rows = table("README.md", "| Task | Steps | Return, mean of seeds |")
    expected = []
    for data in map(load, TASKS + PIXELS):
        returns = means(data)
        values = f"{returns.mean():.1f}", f"{returns.min():.1f}", f"{data['threshold']:g}"
        expected.append([name(data), steps(data), *values, minutes(data, "cpu_minutes")])
    assert rows == expected


def test_the_readme_claims_what_the_results_show():
    times = [float(minutes(load(task), "cpu_minutes")) for task in TASKS]
    lowest, highest = min(times), max(times)
    assert f"in {lowest:.0f} to {highest:.0f} minutes" in page("README.md").replace("\n", " ")
    solved_by = [int((means(data) >= data["threshold"]).sum()) for data in map(load, TASKS)]
    assert solved_by == [4, 5, 5, 5]  # CartPole, Pendulum, Acrobot, LunarLander
    claim = "Pendulum, Acrobot and LunarLander on 5 of 5 fresh seeds and CartPole on 4"
    assert claim in page("README.md").replace("\n", " ")
    core = "utils networks rssm replay_buffer config agent".split()
    lines = sum(len(page(f"dreamer/{name}.py").splitlines()) for name in core)
    assert f"about {round(lines, -2):,} lines" in page("README.md")


def test_the_map_from_equations_to_functions_names_what_exists():
    source = [page(f"dreamer/{name}.py") for name in ("agent", "networks", "rssm", "utils")]
    for row in table("README.md", "| Equation | Function |"):
        for name in re.findall(r"`([A-Za-z_.]+?)`(?!\])", "|".join(row)):
            for part in name.split("."):
                defined = re.compile(rf"^\s*(def|class) {part}\b", re.M)
                assert any(map(defined.search, source)), name


def test_the_tree_shows_every_module_and_script():
    tree = re.search(r"^```\n(dreamer/.*?)(lab/.*?)(01_.*?)^```", page("README.md"), re.M | re.S)
    shown = [set(re.findall(r"\w+\.py", part)) for part in tree.groups()]
    shown[1] = {f"{name}.py" for name in re.findall(r"\w+", tree[2].partition(":")[2])}
    folders = {"dreamer": "*.py", "lab": "*.py", ".": "[0t]*.py"}
    there = [{path.name for path in (ROOT / f).glob(g)} for f, g in folders.items()]
    assert shown == [names - {"__init__.py"} for names in there]


# ---------------------------------------------------------------- docs


def test_the_tables_of_results_agree_with_the_committed_runs():
    numbers = table("docs/results.md", "| Task | Steps | Mean of seeds |")
    seeds = table("docs/results.md", "| Task | Seed 20 |")
    seeds += table("docs/results.md", "| Task | Seed 0 |")
    made = table("docs/results.md", "| Task | `train_ratio` |")
    tasks = map(load, TASKS + PIXELS)
    for row, by_seed, how, data in zip(numbers, seeds, made, tasks, strict=True):
        returns, config = means(data), data["runs"][0]["config"]
        step, minute, _, later = solved(data)
        values = returns.mean(), returns.std(ddof=1), returns.min(), data["random_return"]
        mean, std, worst, chance = (f"{value:.1f}" for value in values)
        run = [name(data), steps(data), mean, std, worst, f"{data['threshold']:g}", chance]
        times = [minutes(data), minutes(data, "cpu_minutes")]
        assert row == [*run, *times, f"step {step:,}, {minute:.1f} minutes", later]
        assert by_seed == [name(data), *(f"{value:.1f}" for value in returns)]
        settings = f"{config['train_ratio']:g}", str(config["action_repeat"]), data["cpu"]
        assert how[:4] == [name(data), *settings]
        assert (ROOT / how[4].split()[1]).exists()


def test_what_the_probe_reads_is_what_was_found():
    lowest = []
    for data in map(load, PIXELS):
        lowest += np.min([run["probe"]["r2"] for run in data["runs"]], axis=0).tolist()
    shown = table("docs/results.md", "| Read from the model's state |")
    assert [row[1] for row in shown] == [f"{value:.3f}" for value in lowest]


def test_what_is_remembered_is_what_was_found():
    rows = []
    for delay in ("8", "16", "32"):
        data = load(f"spaces/recall_{delay}")
        config = data["runs"][0]["config"]
        right = ", ".join(f"{mean:.0%}" for mean in means(data))
        row = [delay, str(config["seq_len"]), f"{config['train_ratio']:g}", right]
        rows.append([*row, f"{solved(data)[0]:,}"])
        assert len(data["runs"]) == 3 and config["categoricals"] == 4
    assert table("docs/environments.md", "| Rows between |") == rows


def test_the_comparison_agrees_with_the_committed_runs():
    expected = []
    for task in TASKS:
        methods = {"Dreamer": load(task)}
        for name in BASELINES[task].split():
            methods[name.upper()] = load(f"sample_efficiency/{task}_{name}")
        for method, data in methods.items():
            step, minute, number, later = solved(data)
            reached = [f"{step:,}", f"{minute:.1f}"] if np.isfinite(step) else ["never", "never"]
            seeds, returns = len(data["runs"]), means(data)
            row = [data["env_id"], method, steps(data), reached[0], f"{number} of {seeds}", later]
            row += [reached[1], f"{returns.mean():.1f}", f"{returns.min():.1f}"]
            expected.append([*row, minutes(data), minutes(data, "cpu_minutes")])
    assert table("docs/comparison.md", "| Task | Method |") == expected


def test_the_ablations_agree_with_the_committed_runs():
    data = load("ablations")
    curves = {(r["task"], r["variant"], r["seed"]): r["curve"]["return"] for r in data["runs"]}

    def scores(task: str, variant: str) -> np.ndarray:
        low, high = data["tasks"][task]["random_return"], data["tasks"][task]["threshold"]
        seeds = [np.mean(curves[task, variant, seed]) for seed in range(5)]
        return (np.array(seeds) - low) / (high - low)

    def dreams(variant: str) -> np.ndarray:
        runs = [run for run in data["runs"] if run["variant"] == variant and run["dream_error"]]
        return np.array([r["dream_error"][14] for r in sorted(runs, key=lambda r: r["seed"])])

    def effect(difference: np.ndarray) -> str:
        mean, half = difference.mean(), T_975 * difference.std(ddof=1) / np.sqrt(5)
        return f"**{mean:+.2f}**" if abs(mean) > half else f"{mean:+.2f}"

    full = [f"{scores(task, 'full').mean():.2f}" for task in data["tasks"]]
    rows = [[*full, f"{dreams('full').mean():.2f}"]]
    for idea in data["ideas"]:
        cells = [
            effect(scores(task, idea) - scores(task, "full")) if idea in info["ideas"] else ""
            for task, info in data["tasks"].items()
        ]
        measured = idea in data["tasks"][data["dreams"]["task"]]["ideas"]
        rows.append([*cells, effect(dreams(idea) - dreams("full")) if measured else ""])
    shown = table("docs/ablations.md", "| Idea removed |")
    assert [row[1:] for row in shown] == rows
    assert [row[0] for row in shown[1:]] == list(data["ideas"])
    assert f"{len(data['runs'])} runs" in page("docs/ablations.md")

    # What the pages say of CartPole and Recall, seed by seed.
    bare, cold = scores("cartpole", "two-hot"), scores("cartpole", "stored states")
    assert (bare > scores("cartpole", "full")).all() and (cold > scores("cartpole", "full")).all()
    ends = {key: curve[-1] for key, curve in curves.items()}
    assert {ends["cartpole", "two-hot", seed] for seed in range(5)} == {500}
    assert max(ends["cartpole", "full", seed] for seed in range(5)) < 475
    learned = [sum(ends["recall", v, k] == 1 for k in range(5)) for v in ("full", "stored states")]
    assert learned == [4, 2]

    plain = {name: means(load(f"sample_efficiency/pendulum_{name}")) for name in ("ppo", "sac")}
    variants = ("full", "two-hot", "ppo", "sac")
    scaled = table("docs/ablations.md", "| Rewards |")
    for row, variant in zip(scaled, variants, strict=True):
        for cell, task in zip(row[1:], data["scales"], strict=True):
            ends = [curve[-1] for key, curve in curves.items() if key[:2] == (task, variant)]
            ends = ends or plain[variant]
            assert cell == f"{np.mean(ends):.0f} ({min(ends):.0f})"


def test_the_tuning_log_agrees_with_the_committed_runs():
    """Means of all evaluations and of the last four, with the seed in brackets."""
    runs = {
        (r["run"], r["task"], r["seed"]): r["curve"]["return"] for r in load("departures")["runs"]
    }
    checked = 0
    for run, _, *cells in table("docs/tuning.md", "| Run | What is different | CartPole |"):
        for task, cell in zip(("CartPole-v1", "Pendulum-v1", "LunarLander-v3"), cells, strict=True):
            for *shown, seed in re.findall(r"(-?\d+) / (-?\d+) \((\d+)\)", cell):
                curve = runs[run, task, int(seed)]
                assert shown == [f"{np.mean(part):.0f}" for part in (curve, curve[-4:])]
                checked += 1
    assert checked > 30


def test_speed_on_a_gpu_is_that_of_the_committed_file():
    shapes = [shape["updates_per_s"] for shape in load("gpu")["shapes"]]
    names = list(shapes[0])[:2] + ["one CUDA graph, bfloat16 convolutions", "compiled"]
    rows = table("docs/speed.md", "| Updates per second |")
    for label, row in zip(names, rows, strict=True):
        assert row[1:] == [str(shape.get(label, "")) for shape in shapes]
    pixels = table("docs/speed.md", "| Task | Solved at | Solved after |")
    for run, row in zip(load("gpu")["pixels"]["runs"], pixels, strict=True):
        data, curve = load(run["task"]), run["curve"]
        good = np.array(curve["return"]) >= data["threshold"]
        first = int((good[:-1] & good[1:]).argmax())
        known = [f"step {curve['env_steps'][first]:,}", f"{curve['minutes'][first]:.1f}"]
        assert row == [name(data), *known, f"{curve['minutes'][-1]:.1f}", minutes(data)]


def test_faults_and_dreams_are_those_of_the_committed_files():
    faults = [[fault["fault"], fault["found"]] for fault in load("faults").values()]
    assert table("docs/faults.md", "| Fault |") == faults
    errors = load("world_model_demo")["error_by_dream_length"].values()
    rows = table("docs/results.md", "| Dreamed steps |")
    for row, lengths in zip(rows, errors, strict=True):
        assert row[1:] == [f"{error:.2f}" for error in lengths.values()]


# ---------------------------------------------------------------- links


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings, code blocks left out."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)\s]+)\)", page(name)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_listed():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == set(re.findall(r"\]\((\w+\.md)\)", page("docs/README.md")))


def test_speed_is_that_of_the_committed_benchmark():
    data = load("benchmark")
    for shape, threads, *cells in table("docs/speed.md", "| Shape today |"):
        ms, cpu = (data["shapes"][shape][key][threads] for key in ("update_ms", "cpu_ms"))
        assert cells == [f"{number:.1f}" for number in (ms, cpu, data["gflops"][threads])]
    assert f"{data['acting_steps_per_s']:,.0f} environment steps" in page("docs/speed.md")
