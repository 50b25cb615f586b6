"""`python -m dreamer`: what its commands print, and one sentence about what is wrong."""

import dataclasses
import os
import re
import shlex
import signal
import sys

import gymnasium as gym
import numpy as np
import pytest
from conftest import tiny_config

from dreamer import Config, DreamerAgent, Layout, evaluate, load_agent, save_agent
from dreamer import __main__ as command
from dreamer.checkpoint import load_checkpoint, read_log
from dreamer.envs import spec_json

TINY = [f"--{k.replace('_', '-')}={v}" for k, v in dataclasses.asdict(tiny_config()).items()]
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER")


@pytest.fixture
def main(monkeypatch, tmp_path):
    """`python -m dreamer` with these words, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def main(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["dreamer", *map(str, words)])
        command.main()

    return main


@pytest.fixture
def refused(main):
    """The sentence with which `python -m dreamer` ends."""

    def refused(*words: object) -> str:
        with pytest.raises(SystemExit) as error:
            main(*words)
        assert str(error.value).startswith("error: ")
        return str(error.value)

    return refused


@pytest.fixture
def blind(monkeypatch):
    """There is no display."""
    for name in SCREENS:
        monkeypatch.setenv(name, "")  # and put back afterwards
        monkeypatch.delenv(name)


@pytest.fixture
def agent(tmp_path):
    """The file of an agent for CartPole, not trained."""
    made = DreamerAgent(Layout(numbers=4, action_categories=(2,)), tiny_config())
    made.env_spec = spec_json(gym.make("CartPole-v1"))
    save_agent(made, tmp_path / "agent.pt")
    return tmp_path / "agent.pt"


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["watch", "--help"]])
def test_bare_it_shows_help(main, words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(*words)
    out = capsys.readouterr().out
    assert end.value.code == 0 and "usage: python -m dreamer" in out
    if words[:1] == ["train"]:
        for field in dataclasses.fields(Config):
            assert f"--{field.name.replace('_', '-')} " in out, field.name
        groups = "run experience networks world-model dreams actor-critic reports".split()
        assert all(f" {name} options " in out for name in groups)
        assert "D, size of the GRU state: larger is slower (default: 128)" in out
    elif words[:1] != ["watch"]:
        assert all(name in out for name in ("check", "train", "evaluate", "watch"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "--env", "CartPole-v1", "--stepz", "3"], "--stepz"),
        (
            ["train", "--env", "CartPole-v1", "--actor-grad", "x"],
            "invalid choice 'x' for argument '--actor-grad'",
        ),
        (["train", "--env", "CartPole-v1", "--steps", "1.5"], "1.5 is not a whole number"),
        (["watch", "--env", "CartPole-v1"], "agent.pt, a checkpoint.pt, or cartpole"),
        (["fly"], "fly"),
    ],
)
def test_words_that_are_wrong_are_named(main, words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        main(*words)
    assert end.value.code == 2 and sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_wrong_is_one_sentence(refused, agent, tmp_path):
    (tmp_path / "damaged.pt").write_bytes(agent.read_bytes()[:-1])
    unknown = load_agent(agent, "cpu")
    unknown.env_spec = None
    save_agent(unknown, tmp_path / "unknown.pt")
    for words, sentence in [
        (["plot"], "plot needs folders of runs"),
        (["evaluate", "missing.pt"], r"missing\.pt"),
        (["evaluate", "damaged.pt"], r"damaged\.pt is damaged or is no checkpoint: put a good"),
        (["evaluate", agent, "--env", "Pendulum-v1"], "but the agent was made for"),
        (["check", "--env", "Mine-v0"], "`Mine` doesn't exist.*--env my_env:Name-v0"),
        (["train", "--env", "Mine-v0"], "`Mine` doesn't exist.*--env my_env:Name-v0"),
        (["train", "--env", "my_env:Mine-v0"], "my_env"),
        (["train", "--env", "CartPole-v1", "--steps", "0"], "Config.steps must be a whole number"),
        (["watch", "unknown.pt"], "does not say how to make .* a function.* --env"),
        (["train"], "--env is needed, or --resume with --run-dir"),
        (["train", "--resume"], "--env is needed, or --resume with --run-dir"),
    ]:
        text = refused(*words)
        assert re.search(sentence, text) and "\n" not in text, text
    assert {path.name for path in tmp_path.iterdir()} == {"agent.pt", "damaged.pt", "unknown.pt"}


def test_evaluate_shows_how_far_it_is(main, agent, capsys):
    main("evaluate", agent, "--episodes", 3)
    out, err = capsys.readouterr()
    returns = evaluate(load_agent(agent, "cpu"), "CartPole-v1", 3)
    assert out.startswith(f"CartPole-v1: return {returns.mean():.1f} ± {returns.std():.1f} over 3 ")
    assert f"(worst {returns.min():.1f}, best {returns.max():.1f})" in out
    assert "3/3" in err and "episode" in err


def test_agents_of_the_results_are_called_by_name_alone(main, refused, capsys):
    main("evaluate", "cartpole", "--episodes", 1)
    assert capsys.readouterr().out.startswith("CartPole-v1: return 500.0")
    assert re.match(r"error: no agent cartpool in .*: a clone of", refused("watch", "cartpool"))
    assert refused("watch", "mine/cartpole").startswith("error: there is no file ")


def test_what_train_prints_can_be_typed(main, tmp_path, capsys):
    main("train", "--env", "CartPole-v1", *TINY, "--evals", 1, "--run-dir", "my run")
    last, judge, watch, picture = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"return [\d.]+ in the evaluation at step 60", last)
    words = ["python", "-m", "dreamer", "evaluate", "my run/agent.pt"]
    assert shlex.split(judge)[2:] == words
    assert shlex.split(watch)[2:] == [*words[:3], "watch", words[4]]
    assert picture.endswith("my run/returns.png") and (tmp_path / "my run/returns.png").exists()
    main(*words[3:], "--episodes", 1)
    main("train", "--env", "CartPole-v1", *TINY)
    assert (tmp_path / "runs" / "CartPole-v1" / "seed0" / "agent.pt").exists()


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


gym.register("Ending-v0", f"{__name__}:Ending")


@pytest.mark.parametrize(("what", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("fault", None)])
def test_what_is_stopped_can_go_on(main, tmp_path, monkeypatch, capsys, what, status):
    """After Ctrl-C it says how. The environment need not be named again."""
    monkeypatch.setattr(Ending, "what", what)
    words = ["train", "--env", "Ending-v0", *TINY, "--run-dir", str(tmp_path / "my run")]
    with pytest.raises(SystemExit) as end:
        main(*words)
    if what == "fault":
        assert "a cable is loose" in end.value.code and "resume it when" in end.value.code
    else:
        assert end.value.code == status
    again = shlex.split(capsys.readouterr().err.rstrip().rpartition("python -m dreamer ")[2])
    if what == "SIGINT":
        assert again == [*words, "--resume"]
    assert load_checkpoint(tmp_path / "my run" / "checkpoint.pt")["numbers"]["step"] in (29, 30)
    monkeypatch.setattr(Ending, "what", None)
    main(*(again if what == "SIGINT" else ["train", *words[3:], "--resume"]))
    assert (tmp_path / "my run" / "agent.pt").exists()


def test_where_there_is_a_window_it_shows_each_episode(main, agent, monkeypatch, capsys):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    make, asked = gym.make, []
    monkeypatch.setattr(gym, "make", lambda env, **options: asked.append(options) or make(env))
    main("watch", agent, "--episodes", 2, "--seed", 7)
    assert asked == [{"render_mode": "human"}] * 2
    returns = [evaluate(load_agent(agent, "cpu"), "CartPole-v1", 1, seed)[0] for seed in (7, 8)]
    expected = [f"episode {7 + i}: return {ret:.1f}" for i, ret in enumerate(returns)]
    assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("own", [True, False])
def test_where_there_is_none_all_episodes_are_one_gif(main, blind, agent, own, tmp_path, capsys):
    """In the folder of the agent's own run; of an agent from elsewhere in runs/."""
    from PIL import Image

    if own:
        (tmp_path / "config.json").write_text("{}")
    main("watch", agent, "--episodes", 2, "--seed", 7)
    first, *rest = capsys.readouterr().out.splitlines()
    gif = tmp_path / ("agent.gif" if own else "runs/agent.gif")
    assert first == f"the episodes are filmed into {gif}"
    returns = [evaluate(load_agent(agent, "cpu"), "CartPole-v1", 1, seed)[0] for seed in (7, 8)]
    assert rest == [f"episode {7 + i}: return {ret:.1f}" for i, ret in enumerate(returns)]
    with Image.open(gif) as picture:
        milliseconds = 0
        for i in range(picture.n_frames):  # pictures that are the same are joined
            picture.seek(i)
            milliseconds += picture.info["duration"]
    assert milliseconds == 40 * sum(returns)  # a picture for each action, with its reward of 1
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"


def test_a_gif_can_be_asked_for_and_returns_are_drawn(main, agent, finished, monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    monkeypatch.setenv("DISPLAY", ":0")
    main("watch", agent, "--episodes", 1, "--gif", "new/film")
    assert (tmp_path / "new" / "film.gif").exists()
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    main("plot", finished, finished)
    rows = read_log(finished / "log.jsonl", "eval")
    thin, thick = drawn[0].axes[0].lines[2:]
    assert thick.get_xydata().tolist() == [[row["step"], row["return"]] for row in rows]
    assert len(thin.get_xydata()) == len(read_log(finished / "log.jsonl", "episode"))


class Small(gym.Wrapper):
    """CartPole, drawn as 11 x 10 pixels or as something that is no picture."""

    def __init__(self, render_mode=None, drawn=None):
        super().__init__(gym.make("CartPole-v1"))
        self.drawn = drawn or np.zeros((11, 10, 3), np.uint8)

    def render(self):
        return self.drawn


class NoMode(Small):
    def __init__(self):
        super().__init__()


gym.register("Small-v0", Small)
gym.register("Text-v0", Small, kwargs={"drawn": "a cart"})
gym.register("NoMode-v0", NoMode)


def test_small_pictures_are_enlarged(main, blind, agent, tmp_path):
    from PIL import Image

    main("watch", agent, "--env", "Small-v0", "--episodes", 1)
    with Image.open(tmp_path / "runs" / "agent.gif") as picture:
        assert picture.size == (180, 198)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ("Text-v0", "^error: Text-v0 draws no picture: its constructor"),
        ("NoMode-v0", "render_mode"),
    ],
)
def test_what_cannot_draw_itself_is_said(refused, blind, agent, env, sentence):
    assert re.search(sentence, refused("watch", agent, "--env", env))
