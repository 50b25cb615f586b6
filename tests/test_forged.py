"""Checkpoints with a right checksum and mad contents: refused in a sentence, before anything large
is built, and with nothing on the disk touched."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Odd, quiet_train, tiny_config
from faults import refusal, same
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer import load_agent, save_agent
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import CheckpointError, check, load_checkpoint, save_checkpoint, seal
from dreamer.envs import EnvFault
from dreamer.resume import Blueprint, agent_env


def gone(*values):
    raise ZeroDivisionError("gone")


def world(since: int = 10**9):
    """A walk that breaks at that step of its life."""
    return lambda: Odd(gone, since)


CONFIG = tiny_config(evals=2)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The folder of a run that a fault stopped at step 45: in mid-episode, its action chosen."""
    run_dir = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(EnvFault):
        patch.setattr("dreamer.run.REPORTS", 1)  # at the end: metrics are still being summed up
        quiet_train(world(46), CONFIG, run_dir)
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    assert saved["obs"] is not None and saved["chosen"] and len(saved["episode_actions"])
    assert saved["metrics"] and saved["optimizer"] and saved["state"]
    return run_dir


@pytest.fixture
def forged(broken, tmp_path) -> Path:
    shutil.copytree(broken, tmp_path / "run")
    return tmp_path / "run"


def contents(run_dir: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run_dir.iterdir()}


def refused_resume(run_dir: Path) -> str:
    """The sentence with which a checkpoint is refused; not a byte in its folder changes."""
    before = contents(run_dir)
    path = run_dir / "checkpoint.pt"
    text = refusal(path, lambda: quiet_train(world(), CONFIG, run_dir, resume=True))
    assert contents(run_dir) == before
    return text


def put(saved: dict[str, Any], where: str, value: Any) -> None:
    """Set `saved[a][b]` for the place "a/b"; a function changes what is there."""
    *path, last = (int(k) if k.isdigit() else k for k in where.split("/"))
    for key in path:
        saved = saved[key]
    saved[last] = value(saved[last]) if callable(value) else value


def forge(path: Path, where: str, value: Any) -> None:
    saved = load_checkpoint(path)
    put(saved, where, value)
    save_checkpoint(path, saved)


# ---------------------------------------------------------------- the agent

WEIGHT = "agent/actor.mlp.0.weight"


def with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x.view(-1)[0] = value
        return x

    return change


AGENT = {
    "sizes of 60 GB": ("sizes", [2**33, 3, [3]]),
    "networks of 60 GB": ("config", lambda c: {**c, "hidden": 10_000, "layers": 20}),
    "nested sizes": ("sizes", [[2], 3, [3]]),
    "sizes of words": ("sizes", ["2", 3, [3]]),
    "negative sizes": ("sizes", [2, -3, [3]]),
    "sizes of no size": ("sizes", [2, 0, []]),
    "fractional sizes": ("sizes", [2.0, 3, [3]]),
    "sizes that do not add up": ("sizes", [2, 3, [2]]),
    "nested segments": ("sizes", [2, 3, [[3]]]),
    "too few sizes": ("sizes", [2, 3]),
    "no sizes": ("sizes", None),
    "parts that do not add up": ("obs_parts", [0, 0, 0]),
    "parts of words": ("obs_parts", ["0", "0"]),
    "a mask without room": ("masked", True),
    "a mask that is a word": ("masked", "yes"),
    "no config": ("config", None),
    "a config out of range": ("config/lam", 2.0),
    "a config of lists": ("config/lam", [0.95]),
    "a config that is not finite": ("config/lam", math.nan),
    "no agent": ("agent", None),
    "an agent that is a list": ("agent", lambda a: list(a.items())),
    "NaN weights": (WEIGHT, with_first(math.nan)),
    "infinite weights": (WEIGHT, with_first(-math.inf)),
    "whole weights": (WEIGHT, lambda x: x.long()),
    "float64 weights": (WEIGHT, lambda x: x.double()),
    "weights that are lists": (WEIGHT, lambda x: x.tolist()),
    "sparse weights": (WEIGHT, lambda x: x.to_sparse()),
    "weights that are nowhere": (WEIGHT, lambda x: x.to("meta")),
    "one number for all": (WEIGHT, lambda x: torch.zeros(1, 1).expand(x.shape)),
    "transposed weights": (WEIGHT, lambda x: x.T),
    "a missing weight": ("agent", lambda a: {k: v for k, v in a.items() if k != WEIGHT[6:]}),
    "a weight too many": ("agent", lambda a: {**a, "mind": torch.zeros(1)}),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(("where", "value"), AGENT.values(), ids=AGENT)
def test_a_mad_agent_is_refused_to_act_and_to_train(forged, where, value):
    path = forged / "checkpoint.pt"
    forge(path, where, value)
    assert "does not hold an agent" in refusal(path, lambda: load_agent(path, "cpu"))
    refused_resume(forged)


@pytest.mark.parametrize("env", [None, "", 3, ["Walk"]])
def test_an_environment_without_a_name_is_none(forged, env):
    path = forged / "checkpoint.pt"
    forge(path, "env", env)
    with pytest.raises(ValueError, match="does not say what environment it is for"):
        agent_env(path)
    if env != "":
        refused_resume(forged)


# ---------------------------------------------------------------- the run

RUN = {
    "a negative counter": ("counters/2", -1),
    "a counter that is a word": ("counters/0", "45"),
    "a fractional counter": ("counters/1", 3.0),
    "too many updates": ("counters/1", 10**6),
    "an evaluation in the future": ("counters/3", 46),
    "too few counters": ("counters", [45, 1]),
    "no counters": ("counters", None),
    "negative minutes": ("minutes/0", -1.0),
    "a random action held for ever": ("held/1", 10**9),
    "held of a wrong shape": ("held/0", torch.zeros(4)),
    "nothing held": ("held", None),
    "a replay without a field": ("replay", lambda r: {k: r[k] for k in r if k != "is_last"}),
    "a replay of other rows": ("replay/obs", lambda x: torch.zeros(len(x), 3)),
    "a replay that lacks a row": ("replay/is_first", lambda x: x[1:]),
    "a replay of NaN": ("replay/reward", with_first(math.nan)),
    "a replay of float64": ("replay/obs", lambda x: x.double()),
    "a replay of unknown classes": ("replay/action", lambda x: x + 3),
    "a replay without states": ("replay", lambda r: {k: r[k] for k in r if k != "deter"}),
    "a replay of unknown latents": ("replay/stoch", lambda x: x + 9),
    "one row for all": ("replay/obs", lambda x: torch.zeros(1, 2).expand(x.shape)),
    "chosen of a wrong shape": ("chosen/0", torch.zeros(1, 3)),
    "a choice without a state": ("chosen", lambda c: c[:1]),
    "a state of a wrong shape": ("state/0", torch.zeros(2, 12)),
    "a state of words": ("state", ["a", "b", "c"]),
    "no state": ("state", None),
    "actions without an observation": ("obs", None),
    "an observation of a wrong shape": ("obs", torch.zeros(3)),
    "an episode longer than the run": ("episode_actions", torch.zeros(48, 1, dtype=torch.int32)),
    "an episode of other actions": ("episode_actions", lambda x: x.float()),
    "an episode of unknown classes": ("episode_actions", lambda x: x.new_full((1, 1), 9)),
    "metrics that are numbers": ("metrics/loss", 1.0),
    "metrics that are vectors": ("metrics/loss", torch.zeros(2)),
    "a list of metrics": ("metrics", lambda m: list(m)),
    "no metrics": ("metrics", {}),
    "sums of too many updates": ("summed", 10**6),
    "no moments": ("optimizer", {}),
    "a moment of a wrong shape": ("optimizer/0/exp_avg", lambda x: x[:1]),
    "a moment that is not finite": ("optimizer/0/exp_avg", with_first(math.inf)),
    "a negative square": ("optimizer/0/exp_avg_sq", with_first(-1.0)),
    "a negative step": ("optimizer/0/step", torch.tensor(-1.0)),
    "half a generator": ("agent_rng", lambda x: x[:99]),
    "a generator of zeros": ("agent_rng", lambda x: 0 * x),
    "another generator": ("replay_rng/bit_generator", "dice"),
    "a generator without state": ("explore_rng/state", None),
    "a reward that is not finite": ("last/0", math.nan),
    "a flag that is a number": ("last/2", 0),
    "a log of negative size": ("log_size", -1),
    "a log of another content": ("log_sha256", "0" * 64),
    "another environment": ("env", 3),
    "another device": ("device", "abacus"),
}


@pytest.mark.parametrize(("where", "value"), RUN.values(), ids=RUN)
def test_a_mad_run_is_refused(forged, where, value):
    forge(forged / "checkpoint.pt", where, value)
    if where.startswith("log"):
        path = forged / "checkpoint.pt"
        path = path if where == "log_size" else forged / "log.jsonl"
        before = contents(forged)
        refusal(path, lambda: quiet_train(world(), CONFIG, forged, resume=True))
        assert contents(forged) == before
    else:
        refused_resume(forged)


@pytest.mark.parametrize("name", ["log_sha256", "optimizer", "state", "counters", "env"])
def test_a_run_that_lacks_something_is_refused_by_name(forged, name):
    path = forged / "checkpoint.pt"
    saved = load_checkpoint(path)
    del saved[name]
    save_checkpoint(path, saved)
    assert name in refused_resume(forged)


# ---------------------------------------------------------------- any leaf


def leaves(value: Any, where: str = "") -> list[str]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, part in items for leaf in leaves(part, f"{where}/{key}")]
    return [where.lstrip("/")]


def wrong(value: Any) -> list[Any]:
    """Values that cannot stand where this one does."""
    common = [None, [value], {"a": value}, (value,), "nonsense", b"nonsense", 1 + 2j]
    if isinstance(value, torch.Tensor):
        other = torch.float64 if value.dtype != torch.float64 else torch.float32
        shapes = [value[None], value.flatten()[:0], torch.cat([value.flatten(), value.flatten()])]
        spoilers = (math.nan, math.inf, -math.inf) if value.is_floating_point() else ()
        spoilt = [with_first(x)(value) for x in spoilers]
        return [*common, 3, 0.5, value.to(other), *shapes, *spoilt]
    numbers = [-1, 2**200, math.nan, math.inf, -math.inf, torch.tensor(1), torch.zeros(2)]
    return [*common, *numbers, *([str(value), float(value)] if isinstance(value, int) else [])]


@pytest.fixture(scope="module")
def continued(broken, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("continued")
    shutil.copytree(broken, run_dir, dirs_exist_ok=True)
    quiet_train(world(), CONFIG, run_dir, resume=True)
    return run_dir


def timeless(run_dir: Path) -> dict[str, Any]:
    timed = {"minutes", "log_size", "log_sha256"}
    saved = load_checkpoint(run_dir / "checkpoint.pt")
    return {name: value for name, value in saved.items() if name not in timed}


@settings(max_examples=60)
@given(data=st.data())
def test_a_wrong_leaf_is_refused_or_changes_nothing(broken, continued, tmp_path_factory, data):
    saved = load_checkpoint(broken / "checkpoint.pt")
    name = data.draw(st.sampled_from(sorted(saved)))
    where = data.draw(st.sampled_from(leaves(saved[name], name)))
    held: list[Any] = []
    put(saved, where, lambda old: held.append(old) or old)
    value = data.draw(st.sampled_from(wrong(held[0])))
    put(saved, where, lambda _: value)
    run_dir = tmp_path_factory.mktemp("leaf")
    shutil.copytree(broken, run_dir, dirs_exist_ok=True)
    save_checkpoint(run_dir / "checkpoint.pt", saved)
    before = contents(run_dir)
    try:
        quiet_train(world(), CONFIG, run_dir, resume=True)
    except CheckpointError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        assert contents(run_dir) == before
        if (
            name in ("sizes", "config", "agent", "obs_parts", "masked", "images")
            and where != "config/steps"
        ):
            with pytest.raises(CheckpointError):
                load_agent(run_dir / "checkpoint.pt", "cpu")
    else:
        assert same(timeless(run_dir), timeless(continued)), (where, value)
    shutil.rmtree(run_dir)


def test_the_form_of_a_value():
    """Examples of what `check` lets through, and of what not, beside those above."""
    like = {"a": [0, 0.0, True, ""], "b": (None, torch.zeros(2)), "rows": torch.zeros(0, 2)}
    good = {"a": [3, -0.5, False, "x"], "b": None, "rows": torch.ones(5, 2)}
    check(good, like, "it")
    check({**good, "b": torch.ones(2), "more": gone}, like, "it")
    for where, value, message in [
        ("a/0", True, "it.a.0 is no whole number"),
        ("a/1", 3, "it.a.1 is no float"),
        ("a/2", 1, "it.a.2 is no bool"),
        ("b", torch.ones(3), r"it.b is no tensor of finite torch.float32 and shape \(2,\)"),
        ("rows", torch.ones(5, 3), "it.rows is no tensor"),
        ("rows", torch.ones(2), "it.rows is no tensor"),
        ("a", [1], "it.a is no list of 4"),
    ]:
        bad = {**good, "a": list(good["a"])}
        put(bad, where, lambda _, value=value: value)
        with pytest.raises(ValueError, match=message):
            check(bad, like, "it")
    with pytest.raises(ValueError, match="it is no dictionary with b"):
        check({"a": good["a"], "rows": good["rows"]}, like, "it")


# ---------------------------------------------------------------- memory

PEAK = """
import json, resource, sys
from dreamer import load_agent

resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))  # this machine is to survive
good, *mad = sys.argv[1:]
load_agent(good, "cpu")
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = []
for path in mad:
    before = peak()
    try:
        load_agent(path, "cpu")
        text = "nothing is wrong"
    except ValueError as error:
        text = str(error)
    found.append([text, peak() - before])
print(json.dumps(found))
"""


def weights(**changes: Any) -> dict[str, torch.Tensor]:
    """Of an agent like that of `finished`; they take no memory."""
    with torch.device("meta"):
        return Blueprint(2, 3, [3], tiny_config(**changes)).state_dict()


def bombs(good: Path, folder: Path) -> dict[str, Path]:
    """Small files that ask for a lot."""
    paths = {}

    def bomb(name: str, **changes: Any) -> None:
        paths[name] = folder / f"{len(paths)}.pt"
        save_checkpoint(paths[name], {**load_checkpoint(good), **changes})

    saved = load_checkpoint(good)
    large = dict(hidden=10_000, deter=10_000, layers=20)
    one = {n: torch.zeros(1).as_strided(x.shape, [0] * x.ndim) for n, x in weights(**large).items()}
    bomb("networks", config={**saved["config"], **large})
    bomb("one number for all", config={**saved["config"], **large}, agent=one)

    smaller = dict(hidden=1_000, layers=20)  # still 0.5 GB, of which the file holds the largest
    numbers = torch.zeros(max(x.numel() for x in weights(**smaller).values()))
    shared = {n: numbers[: x.numel()].view(x.shape) for n, x in weights(**smaller).items()}
    bomb("the same numbers for all", config={**saved["config"], **smaller}, agent=shared)

    laughs: Any = [1]
    for _ in range(40):
        laughs = [laughs] * 10
    bomb("observations", sizes=[2**33, 3, [3]])
    bomb("actions", sizes=[2, 2**33, [2**33]])
    bomb("parts", obs_parts=[2**33])
    bomb("laughs in sizes", sizes=laughs)
    bomb("laughs in config", config={**saved["config"], "lam": laughs})
    bomb("laughs in agent", agent=laughs)
    bomb("laughs in weights", agent={**saved["agent"], "cont.mlp.0.weight": laughs})

    plain = folder / "plain"  # the same content, with a quarter of a gigabyte of zeros, compressed
    torch.save({**saved, "zeros": torch.zeros(2**26)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(folder / "zip", "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    data = (folder / "zip").read_bytes()
    paths["compressed"] = folder / "compressed.pt"
    paths["compressed"].write_bytes(seal(data) + data)
    assert len(data) < 5e6
    plain.unlink()
    return paths


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limits of this kind")
def test_small_files_that_ask_for_a_lot_take_no_memory(finished, tmp_path):
    good = finished / "agent.pt"
    paths = bombs(good, tmp_path)
    command = [sys.executable, "-c", PEAK, str(good), *map(str, paths.values())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name, (text, megabytes) in zip(paths, json.loads(done.stdout), strict=True):
        path = str(paths[name])
        assert text.startswith(path) and "\n" not in text and len(text) < 500, (name, text[:500])
        assert megabytes < 60, (name, megabytes)


def test_good_agents_still_load(tmp_path):
    """Those of older files too, whose sizes said no more than whether actions are one-hot."""
    for path in sorted((ROOT / "assets" / "agents").glob("*.pt")):
        agent = load_agent(path, "cpu")
        save_agent(agent, tmp_path / "again.pt")
        again = load_agent(tmp_path / "again.pt", "cpu")
        assert same(dict(agent.state_dict()), dict(again.state_dict()))
        assert agent.segments == again.segments


def test_an_agent_for_large_observations_of_flags_loads(tmp_path):
    """Its normaliser's numbers, in the file once for encoder and decoder, are most of it."""
    agent = DreamerAgent(50_000, 2, [], tiny_config(hidden=1), "cpu", [1] * 50_000)
    save_agent(agent, tmp_path / "agent.pt")
    again = load_agent(tmp_path / "agent.pt", "cpu")
    assert same(dict(agent.state_dict()), dict(again.state_dict()))
