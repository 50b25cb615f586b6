"""README and docs: short enough to be read, with tables that agree with the committed results and
links that lead somewhere."""

import importlib
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from lab import effects, results
from lab.results import solved

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("cartpole", "pendulum", "acrobot", "lunar_lander")
PIXELS = ("pixel_pendulum", "pixel_cartpole")
DOCS = sorted(path.name for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{name}" for name in DOCS)]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def load(name: str) -> dict:
    return json.loads(page(f"assets/results/{name}.json"))


def table(name: str, first: str) -> list[list[str]]:
    """The cells below the head of the table of a page whose first line begins with `first`."""
    (rows,) = re.findall(rf"^{re.escape(first)}.*\n\|[-| ]+\n((?:\|.*\n)+)", page(name), re.M)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]


def one_digit(*values: float) -> list[str]:
    return [f"{value:.1f}" for value in values]


def task_and_steps(data: dict) -> list[str]:
    return [data["env_id"].rpartition(":")[2], f"{data['runs'][0]['env_steps']:,}"]


def means(data: dict) -> np.ndarray:
    """Mean final return of each seed."""
    return np.array([np.mean(run["final_returns"]) for run in data["runs"]])


def minutes(data: dict) -> list[str]:
    return one_digit(*(np.mean([r[c] for r in data["runs"]]) for c in ("minutes", "cpu_minutes")))


def test_readme_and_docs_are_short_and_start_quickly():
    lines = page("README.md").splitlines()
    assert len(lines) <= 200 and lines.index("## Quick start") < 40
    assert sum(len(page(name).split()) for name in PAGES) <= 12_500


def test_the_readme_claims_what_the_results_show():
    text, expected = page("README.md").replace("\n", " "), []
    for data in map(load, TASKS + PIXELS):
        returns = one_digit(means(data).mean(), means(data).min())
        threshold = f"{data['threshold']:g}"
        expected.append([*task_and_steps(data), *returns, threshold, minutes(data)[1]])
    assert table("README.md", "| Task | Steps | Return, mean of seeds |") == expected
    times = [float(row[-1]) for row in expected[: len(TASKS)]]
    runs = [run["minutes"] for run in load("cartpole")["runs"]]
    assert f"steps in {minutes(load('cartpole'))[0]} minutes; threshold 475 reached" in text
    assert f"This took {min(runs):.0f} to {max(runs):.0f} minutes in ten runs" in text
    assert f"in {min(times):.0f} to {max(times):.0f} minutes" in text
    assert [solved(load(task)) for task in TASKS] == [10, 5, 5, 5]
    assert "CartPole on 10 of 10 fresh seeds, Pendulum, Acrobot and LunarLander on 5 of 5" in text
    core = "utils networks rssm replay_buffer config agent".split()
    lines = sum(page(f"dreamer/{name}.py").count("\n") for name in core)
    assert f"about {round(lines, -2):,} lines" in text


def test_the_map_from_equations_to_functions_names_what_exists():
    source = "".join(page(f"dreamer/{x}.py") for x in ("agent", "networks", "rssm", "utils"))
    for row in table("README.md", "| Equation | Function |"):
        for name in re.findall(r"`([A-Za-z_.]+?)`(?!\])", "|".join(row)):
            for part in name.split("."):
                assert re.search(rf"^\s*(def|class) {part}\b", source, re.M), name


def test_the_tree_shows_every_module_and_script():
    tree = re.search(r"^```\n(dreamer/.*?)(lab/.*?)(01_.*?)^```", page("README.md"), re.M | re.S)
    shown = [set(re.findall(r"\w+\.py", part)) for part in tree.groups()]
    shown[1] = {f"{name}.py" for name in re.findall(r"\w+", tree[2].partition(":")[2])}
    folders = {"dreamer": "*.py", "lab": "*.py", ".": "[0t]*.py"}
    there = [{path.name for path in (ROOT / f).glob(g)} for f, g in folders.items()]
    assert shown == [names - {"__init__.py"} for names in there]


def test_the_tables_of_results_agree_with_the_committed_runs():
    numbers = table("docs/results.md", "| Task | Steps | Mean of seeds |")
    seeds = sum((table("docs/results.md", f"| Task | Seed {k} |") for k in (40, 20, 0)), [])
    made = table("docs/results.md", "| Task | `train_ratio` |")
    tasks = map(load, TASKS + PIXELS)
    for row, by_seed, how, data in zip(numbers, seeds, made, tasks, strict=True):
        returns, config = means(data), data["runs"][0]["config"]
        step, minute, _, below, later = results.first_reached(data)
        run = task_and_steps(data) + one_digit(returns.mean(), returns.std(ddof=1), returns.min())
        run += [f"{data['threshold']:g}", *one_digit(data["random_return"]), *minutes(data)]
        assert row == [*run, f"step {step:,}, {minute:.1f} minutes", f"{below} of {later}"]
        assert by_seed == [row[0], *one_digit(*returns)]
        settings = f"{config['train_ratio']:g}", str(config["action_repeat"]), data["cpu"]
        assert how[:4] == [row[0], *settings] and (ROOT / how[4].split()[1]).exists()
    probes = [[run["probe"]["r2"] for run in load(task)["runs"]] for task in PIXELS]
    shown = [row[1] for row in table("docs/results.md", "| Read from the model's state |")]
    assert shown == [f"{r2:.3f}" for runs in probes for r2 in np.min(runs, axis=0)]
    errors = load("world_model_demo")["error_by_dream_length"].values()
    rows = table("docs/results.md", "| Dreamed steps |")
    assert [r[1:] for r in rows] == [[f"{x:.2f}" for x in e.values()] for e in errors]


def test_the_page_of_the_agents_says_where_each_comes_from():
    assert page("assets/agents/README.md") == results.model_card()  # else: python -m lab.results
    rows = table("assets/agents/README.md", "| Name | Task | Seed |")
    assert sorted(row[0] for row in rows) == sorted(f"`{task}`" for task in TASKS + PIXELS)
    for name, _, seed, *_, ret, _ in rows:
        data = load(name.strip("`"))
        by_seed = dict(zip([str(run["seed"]) for run in data["runs"]], means(data), strict=True))
        assert ret == f"{by_seed[seed]:.1f}"


def test_what_is_remembered_is_what_was_found():
    for delay, *row in table("docs/environments.md", "| Rows between |"):
        data = load(f"spaces/recall_{delay}")
        config = data["runs"][0]["config"]
        right = ", ".join(f"{mean:.0%}" for mean in means(data))
        known = str(config["seq_len"]), f"{config['train_ratio']:g}", right
        assert row == [*known, f"{results.first_reached(data)[0]:,}"]
        assert config["categoricals"] == 4 and data["threshold"] == 0.95


def test_the_comparison_agrees_with_the_committed_runs():
    script = importlib.import_module("07_sample_efficiency")
    compared = {task: {"dreamer": data} for task, data in script.TASKS.items()}
    for task, method in script.PLANNED:
        compared[task][method] = load(f"sample_efficiency/{task}_{method}")
    columns = 0, 1, 2, 5, 6, 4, *range(7, 13)  # without seeds and hardware
    expected = [[row[i] for i in columns] for row in script.table(compared)[1:]]
    assert table("docs/comparison.md", "| Task | Method |") == expected


def test_the_ablations_agree_with_the_committed_runs():
    data = load("ablations")
    assert table("docs/ablations.md", "| Idea removed |") == effects.effects_table(data)[1:]
    plain = {m: means(load(f"sample_efficiency/pendulum_{m}")).tolist() for m in ("ppo", "sac")}
    assert table("docs/ablations.md", "| Rewards |") == effects.scales_table(data, plain)[1:]
    assert f"{len(data['runs'])} runs" in page("docs/ablations.md")

    # What the page says of CartPole and Recall, seed by seed.
    runs = {(r["task"], r["variant"], r["seed"]): r["curve"]["return"] for r in data["runs"]}
    for idea, k in itertools.product(("two-hot", "stored states"), range(5)):
        assert np.mean(runs["cartpole", idea, k]) > np.mean(runs["cartpole", "full", k])
    ends = {key: curve[-1] for key, curve in runs.items()}
    assert {ends["cartpole", "two-hot", seed] for seed in range(5)} == {500}
    assert max(ends["cartpole", "full", seed] for seed in range(5)) < 475
    for variant, learned in ("full", 4), ("stored states", 2):
        assert sum(ends["recall", variant, seed] == 1 for seed in range(5)) == learned


def test_the_tuning_log_agrees_with_the_committed_runs():
    runs = {(r["run"], r["task"], r["seed"]): r["curve"] for r in load("departures")["runs"]}
    tasks, checked = ("CartPole-v1", "Pendulum-v1", "LunarLander-v3"), 0
    for run, _, *cells in table("lab/log.md", "| Run | What is different | CartPole |"):
        for task, cell in zip(tasks, cells, strict=True):
            for *shown, seed in re.findall(r"(-?\d+) / (-?\d+) \((\d+)\)", cell):
                curve = runs[run, task, int(seed)]["return"]
                assert shown == [f"{np.mean(part):.0f}" for part in (curve, curve[-4:])]
                checked += 1
    assert checked > 30


def test_speed_and_faults_are_those_of_the_committed_files():
    data, shown = load("benchmark"), page("docs/speed.md")
    for shape, threads, *cells in table("docs/speed.md", "| Shape | Threads |"):
        times = [data["shapes"][shape][key][threads] for key in ("update_ms", "cpu_ms")]
        assert cells == one_digit(*times, data["gflops"][threads])
    assert f"{data['acting_steps_per_s']:,.0f} environment steps" in shown
    one, *_ = simulated = data["simulator_steps_per_s"].values()
    rows = table("docs/speed.md", "| Simulators | Steps per second |")
    assert [row[1:] for row in rows] == [[f"{n:.0f}", f"{n / one:.1f} x"] for n in simulated]
    pixels = table("docs/speed.md", "| Task | First reached |")
    for run, row in zip(load("gpu")["pixels"]["runs"], pixels, strict=True):
        task, curve = load(run["task"]), run["curve"]
        good = np.array(curve["return"]) >= task["threshold"]
        first = int((good[:-1] & good[1:]).argmax())
        times = one_digit(curve["minutes"][first], curve["minutes"][-1])
        found = [f"step {curve['env_steps'][first]:,}", *times, minutes(task)[0]]
        assert row == [task_and_steps(task)[0], *found]
    faults = [[fault["fault"], fault["found"]] for fault in load("faults").values()]
    assert table("docs/faults.md", "| Fault |") == faults


@pytest.mark.parametrize("name", [*PAGES, "lab/log.md"])
def test_links_lead_somewhere_and_every_page_is_listed(name):
    for path, anchor in re.findall(r"\]\((?!https://)([^)\s#]*)#?([^)\s]*)\)", page(name)):
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), path
        if anchor:  # as GitHub makes them of headings
            heads = re.findall(r"^#+ (.+)", target.read_text(encoding="utf-8").lower(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in heads}
    if name == "docs/README.md":
        assert sorted([*re.findall(r"\]\((\w+\.md)\)", page(name)), "README.md"]) == DOCS
