"""`python -m dreamer`: what its commands print, and one sentence about what is wrong."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import os
import re
import shlex
import signal
import subprocess
import sys

import gymnasium as gym
import pytest
from conftest import ROOT, tiny_config

from dreamer import Config, DreamerAgent, evaluate, load_agent, save_agent
from dreamer import __main__ as command
from dreamer.checkpoint import load_checkpoint
from dreamer.evaluation import film, random_returns

TINY = [f"--{k.replace('_', '-')}={v}" for k, v in dataclasses.asdict(tiny_config()).items()]
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER", "XDG_RUNTIME_DIR")


@pytest.fixture
def main(monkeypatch):
    """`python -m dreamer` with these words."""

    def main(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["dreamer", *map(str, words)])
        command.main()

    return main


@pytest.fixture
def watch(main, monkeypatch):
    """`python -m dreamer watch` with these words, where there is a display."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return lambda *words: main("watch", *words)


@pytest.fixture
def blind(main, monkeypatch):
    """`python -m dreamer watch` with these words, where there is none."""
    for name in SCREENS:
        monkeypatch.setenv(name, "")  # and put back afterwards
        monkeypatch.delenv(name)
    return lambda *words: main("watch", *words)


def refused(words, *call) -> str:
    """The sentence with which `words(*call)` ends."""
    with pytest.raises(SystemExit) as error:
        words(*call)
    text = str(error.value)
    assert text.startswith("error: ") and "\n" not in text
    return text


class Pole(gym.Wrapper):
    """CartPole; `closed` of them were."""

    closed = 0

    def __init__(self, **options):
        super().__init__(gym.make("CartPole-v1", **options))

    def close(self):
        Pole.closed += 1
        super().close()


class NoOption(Pole):
    def __init__(self):
        super().__init__()


class NoMode(Pole):
    metadata: dict = {"render_modes": []}

    def __init__(self, render_mode=None):
        assert render_mode is None or render_mode in self.metadata["render_modes"]
        super().__init__()


class NoRender(Pole):
    def render(self):
        raise NotImplementedError


class NoFrames(Pole):
    def render(self):
        return None


for kind in (NoOption, NoMode, NoRender, NoFrames):
    if f"{kind.__name__}-v0" not in gym.registry:
        gym.register(f"{kind.__name__}-v0", kind)


@pytest.fixture
def windows(monkeypatch) -> list[dict]:
    """What `gymnasium.make` was asked for; nothing is drawn."""
    asked: list[dict] = []
    make = gym.make

    def without_window(name, **options):
        asked.append(options)
        return make(name)

    monkeypatch.setattr(gym, "make", without_window)
    return asked


@pytest.fixture
def agent(tmp_path):
    """The file of an agent for CartPole, not trained."""
    save_agent(DreamerAgent(4, 2, True, tiny_config()), tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


def test_it_shows_each_episode_and_prints_its_return(watch, windows, agent, capsys):
    watch(agent, "--env", "CartPole-v1", "--episodes", 2, "--seed", 7)
    shown = [options for options in windows if options]
    assert shown == [{"render_mode": "human"}] * 3  # once to see whether it can be drawn
    trained = load_agent(agent, "cpu")
    returns = [evaluate(trained, "CartPole-v1", 1, seed)[0] for seed in (7, 8)]
    expected = [f"episode {7 + i}: return {ret:.1f}" for i, ret in enumerate(returns)]
    assert capsys.readouterr().out.splitlines() == expected


def test_what_opens_no_window_is_filmed(watch, agent, monkeypatch, capsys):
    """Such as an environment that draws the pictures that it shows to the agent."""
    make = functools.partial(gym.make, render_mode="rgb_array")
    monkeypatch.setattr(gym, "make", lambda name, **_: make(name))
    watch(agent, "--env", "CartPole-v1", "--episodes", 1)
    assert capsys.readouterr().out.startswith("no window here: the episodes are filmed into")
    assert agent.with_suffix(".gif").exists()


@pytest.mark.parametrize(
    ("name", "env", "sentence"),
    [
        ("missing.pt", "CartPole-v1", r"No such file or directory: '.*missing\.pt'"),
        ("damaged.pt", "CartPole-v1", r"damaged\.pt is damaged or is no checkpoint"),
        ("agent.pt", "Pendulum-v1", r"Pendulum-v1 has .* but the agent was made for"),
        ("agent.pt", "Nowhere-v1", "Environment `Nowhere` doesn't exist"),
    ],
)
def test_what_is_wrong_is_one_sentence(watch, windows, agent, capsys, name, env, sentence):
    (agent.parent / "damaged.pt").write_bytes(agent.read_bytes()[:-1])
    with pytest.raises(SystemExit) as error:
        watch(agent.parent / name, "--env", env)
    text = str(error.value)
    assert text.startswith("error: ") and re.search(sentence, text) and "\n" not in text
    assert capsys.readouterr().out == ""


def test_the_environment_is_that_of_training_and_else_must_be_named(watch, windows, agent, capsys):
    with pytest.raises(SystemExit, match="^error: .*agent.pt does not say .*: name it with --env$"):
        watch(agent)
    assert capsys.readouterr().out == "" and windows == []
    save_agent(load_agent(agent, "cpu"), agent, "CartPole-v1")
    watch(agent, "--episodes", 1, "--seed", 7)
    (ret,) = evaluate(load_agent(agent, "cpu"), "CartPole-v1", 1, 7)
    assert capsys.readouterr().out == f"episode 7: return {ret:.1f}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "watch: error: the following arguments are required: AGENT"),
        (["--env", "CartPole-v1"], "watch: error: the following arguments are required: AGENT"),
        (["agent.pt", "--env"], "--env: expected one argument"),
    ],
)
def test_words_that_are_missing_are_named(watch, capsys, words, sentence):
    with pytest.raises(SystemExit) as error:
        watch(*words)
    assert error.value.code == 2 and sentence in capsys.readouterr().err


# ---------------------------------------------------------------- without a display


def test_all_episodes_are_filmed_into_one_gif(blind, agent, capsys):
    from PIL import Image

    blind(agent, "--env", "CartPole-v1", "--episodes", 2, "--seed", 7)
    first, *rest = capsys.readouterr().out.splitlines()
    gif = agent.with_suffix(".gif")
    assert first == f"no window here: the episodes are filmed into {gif}"
    trained = load_agent(agent, "cpu")
    returns = [evaluate(trained, "CartPole-v1", 1, seed)[0] for seed in (7, 8)]
    assert rest == [f"episode {7 + i}: return {ret:.1f}" for i, ret in enumerate(returns)]
    with Image.open(gif) as picture:
        milliseconds = 0
        for i in range(picture.n_frames):  # pictures that are the same are joined
            picture.seek(i)
            milliseconds += picture.info["duration"]
    assert milliseconds == 40 * sum(returns)  # a picture for each action, with its reward of 1
    assert os.environ["SDL_VIDEODRIVER"] == "dummy" and os.environ["XDG_RUNTIME_DIR"]


def test_without_pillow_nothing_is_played(blind, windows, agent, monkeypatch, capsys):
    load = builtins.__import__

    def without_pillow(name, *args, **options):
        if name.startswith("PIL"):
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_pillow)
    assert "pip install pillow" in refused(blind, agent, "--env", "CartPole-v1")
    assert windows == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", [NoOption, NoMode, NoRender, NoFrames])
def test_what_cannot_draw_itself_is_said(blind, watch, agent, kind, monkeypatch, capsys):
    screens = [False] if kind in (NoRender, NoFrames) else [False, True]
    for screen in screens:
        monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
        if screen:
            monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        text = refused(watch if screen else blind, agent, "--env", f"{kind.__name__}-v0")
        assert text.startswith(f"error: {kind.__name__}-v0 cannot draw itself: its constructor mu")
        assert "must take render_mode, and metadata['render_modes'] must list 'rgb_array'" in text
    assert capsys.readouterr().out == ""


def test_environments_are_closed_on_every_way_out(agent, monkeypatch):
    monkeypatch.setattr(Pole, "closed", 0)
    trained = load_agent(agent, "cpu")
    with pytest.raises(ValueError, match="render at step 0 raised NotImplementedError"):
        film(trained, NoRender, 0)
    assert Pole.closed == 1

    def broken(self, action):
        raise RuntimeError("a cable is loose")

    monkeypatch.setattr(Pole, "step", broken)
    with pytest.raises(ValueError, match="a cable is loose"):
        random_returns(Pole, 1)
    assert Pole.closed == 2


# ---------------------------------------------------------------- words


def test_help_says_what_each_field_means_on_any_terminal(main, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    for word in ("check", "train"):
        with pytest.raises(SystemExit):
            main(word, "--help")
        out = capsys.readouterr().out
        assert out.startswith(f"usage: python -m dreamer {word} --env ID [options]\n")
        assert (
            "  --deter N             D, size of the GRU state: larger is slower (default 128)"
            in out
        )
        assert out.count("(default ") == len(dataclasses.fields(Config))
    assert "--device" in out and "--tensorboard   " in out
    monkeypatch.setenv("COLUMNS", "5")
    for words in (["--help"], *([word, "-h"] for word in ("check", "train", "evaluate", "watch"))):
        with pytest.raises(SystemExit) as end:
            main(*words)
        assert end.value.code == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--env", "CartPole-v1", "--run-dir", ""], "--run-dir: a path is empty"),
        (["train", "--env", "CartPole-v1", "--actor-grad", "x"], "invalid choice: 'x'"),
        (["evaluate", ""], "AGENT: a path is empty"),
        (["evaluate", "a", "--episodes", "0"], "--episodes: a whole number from 1 on, not '0'"),
        (["watch", "a", "--episodes", "1.5"], "--episodes: a whole number from 1 on, not '1.5'"),
        (["watch", "a", "--episodes", "1e99"], "--episodes: a whole number from 1 on, not"),
        (["watch", "a", "--seed", "-1"], "--seed: a whole number from 0 on, not '-1'"),
    ],
)
def test_what_is_out_of_range_is_refused(main, words, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(*words)
    usage, text = capsys.readouterr().err.split("\n", 1)
    assert end.value.code == 2 and usage.startswith("usage: ") and len(usage) < 80
    assert sentence in text


def test_an_unknown_id_says_how_to_register_one(main, agent):
    text = refused(main, "check", "--env", "Mine-v0")
    assert "Environment `Mine` doesn't exist" in text and "--env my_env:Mine-v0" in text
    save_agent(load_agent(agent, "cpu"), agent, "Walk")  # the class that a function made
    text = refused(main, "evaluate", agent)
    assert "Environment `Walk` doesn't exist" in text and text.endswith("name its id with --env")


def test_evaluate_shows_how_far_it_is(main, agent, capsys):
    main("evaluate", agent, "--env", "CartPole-v1", "--episodes", 3)
    out, err = capsys.readouterr()
    returns = evaluate(load_agent(agent, "cpu"), "CartPole-v1", 3)
    assert out.startswith(f"CartPole-v1: return {returns.mean():.1f} ± {returns.std():.1f} over 3 ")
    assert "3/3" in err and "episode" in err


def test_check_fits_a_terminal(main, capsys):
    main("check", "--env", "CartPole-v1", *TINY)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "environment      CartPole-v1"
    assert any(line.startswith(" " * 17) for line in lines)


# ---------------------------------------------------------------- how train ends


def test_what_it_prints_can_be_typed(main, tmp_path, capsys):
    main("train", "--env", "CartPole-v1", *TINY, "--run-dir", tmp_path / "my run")
    *_, agent, judge, watch = capsys.readouterr().out.splitlines()
    path = tmp_path / "my run" / "agent.pt"
    assert agent == f"Agent:     {path}" and path.exists()
    assert shlex.split(judge)[2:] == ["python", "-m", "dreamer", "evaluate", str(path)]
    assert shlex.split(watch)[2:] == ["python", "-m", "dreamer", "watch", str(path)]


class Ending(gym.Wrapper):
    """CartPole, in which something happens at the 30th step."""

    what = "fault"

    def __init__(self):
        super().__init__(gym.make("CartPole-v1"))
        self.steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 30 and self.what == "fault":
            raise RuntimeError("a cable is loose")
        if self.steps == 30 and self.what:
            signal.raise_signal(signal.Signals[self.what])
        return super().step(action)


if "Ending-v0" not in gym.registry:
    gym.register("Ending-v0", Ending)


@pytest.mark.parametrize(
    ("what", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("fault", "a cable is loose")]
)
def test_what_is_stopped_says_how_to_go_on(main, tmp_path, monkeypatch, capsys, what, status):
    monkeypatch.setattr(Ending, "what", what)
    words = ["train", "--env", "Ending-v0", *TINY, "--run-dir", str(tmp_path / "my run")]
    with pytest.raises(SystemExit) as end:
        main(*words)
    said = capsys.readouterr().err
    if what == "fault":
        assert status in end.value.code and "\n" not in end.value.code
        said = end.value.code
    else:
        assert end.value.code == status
    again = shlex.split(said.rstrip().rpartition("python -m dreamer ")[2])
    assert again == [*words, "--resume"]
    assert load_checkpoint(tmp_path / "my run" / "checkpoint.pt")["counters"][0] in (29, 30)
    monkeypatch.setattr(Ending, "what", None)
    main(*again)
    assert (tmp_path / "my run" / "agent.pt").exists()


def test_what_is_printed_is_no_reason_to_end(agent, tmp_path):
    """A terminal without the letter, a pipe that nobody reads."""
    there = tmp_path / "Łódź"
    there.mkdir()
    agent.rename(there / "agent.pt")
    words = [sys.executable, "-m", "dreamer", "evaluate", str(there / "agent.pt")]
    words += ["--env", "CartPole-v1", "--episodes", "2"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.returncode == 0 and re.search(r"return [\d.]+ \? [\d.]+ over 2", found.stdout)
    words[3:] = ["train", "--help"]
    found = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True)
    assert found.returncode == 0 and " ?_dyn (v2: 1;" in found.stdout
    words[3:] = ["check", "--env", "CartPole-v1"]
    reads, writes = os.pipe()
    os.close(reads)
    found = subprocess.run(words, cwd=ROOT, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert found.returncode == 0 and found.stderr == ""
