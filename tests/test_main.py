"""`python -m dreamer watch`: whole episodes in a window, or one sentence about what is wrong."""

from __future__ import annotations

import re
import sys

import gymnasium as gym
import pytest
from conftest import tiny_config

from dreamer import DreamerAgent, evaluate, load_agent, save_agent
from dreamer import __main__ as command


@pytest.fixture
def watch(monkeypatch):
    """`python -m dreamer watch` with these words, where there is a display."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def main(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", ["dreamer", "watch", *map(str, words)])
        command.main()

    return main


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
    assert windows == [{"render_mode": "human"}] * 2
    trained = load_agent(agent, "cpu")
    returns = [evaluate(trained, "CartPole-v1", 1, seed)[0] for seed in (7, 8)]
    expected = [f"episode {7 + i}: return {ret:.1f}" for i, ret in enumerate(returns)]
    assert capsys.readouterr().out.splitlines() == expected


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
        ([], "required: agent"),
        (["--env", "CartPole-v1"], "required: agent"),
        (["agent.pt", "--env"], "--env: expected one argument"),
    ],
)
def test_words_that_are_missing_are_named(watch, capsys, words, sentence):
    with pytest.raises(SystemExit) as error:
        watch(*words)
    assert error.value.code == 2 and sentence in capsys.readouterr().err
