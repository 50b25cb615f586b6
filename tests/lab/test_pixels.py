"""Tasks seen as pictures: what is drawn of them, and the probe."""

import gymnasium as gym
import numpy as np
import torch
from conftest import quiet_train, tiny_config
from PIL import Image

from dreamer.rssm import State
from lab import pixels


class Moving(gym.Env):
    """A bright row moves down a picture; ten steps."""

    observation_space, action_space = (
        gym.spaces.Box(0, 255, (16, 12, 3), np.uint8),
        gym.spaces.Discrete(2),
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.seen(), {}

    def seen(self):
        picture = np.zeros((16, 12, 3), np.uint8)
        picture[self.time] = 200
        return picture

    def step(self, action):
        self.time += 1
        return self.seen(), -0.02, False, self.time >= 10, {}


def test_real_frames_reconstructions_and_dreams_are_drawn(tmp_path, monkeypatch):
    """A return of -0.2 is 0 in the title, without a sign."""
    agent = quiet_train(Moving, tiny_config(depth=2)).agent
    _, found = pixels.watched(agent, Moving, seed=0)
    assert {name: len(x) for name, x in found.items()} == {"real": 11, "seen": 11, "dream": 6}
    assert (found["real"][3] == 200).all((1, 2)).nonzero()[0].tolist() == [3]
    titles, strip = [], pixels.filmstrip
    monkeypatch.setattr(pixels, "filmstrip", lambda *args: titles.append(args[1]) or strip(*args))
    film, gif = pixels.draw_all(agent, Moving, 0, tmp_path, "slide")
    assert titles == ["slide: one greedy episode, return 0"]
    assert Image.open(gif).n_frames == 11 and Image.open(film).width > 800


def test_a_filmstrip_ends_with_grey_where_the_dream_is_right(monkeypatch):
    saved, real = [], np.full((7, 4, 4, 3), 100, np.uint8)
    monkeypatch.setattr(pixels, "save", lambda fig, path: saved.append(fig))
    dream = real[5:].copy()
    dream[0, 0], dream[0, 1] = 200, 50  # two rows of pixels are too light, too dark
    pixels.filmstrip({"real": real, "seen": real, "dream": dream}, "title", "")
    last = [ax.images[0].get_array() for ax in saved[0].axes if ax.images][-1]
    assert last[:, 0].tolist() == [228, 78, 128, 128]


def test_the_probe_reads_what_is_there_and_nothing_else(monkeypatch):
    rng = np.random.default_rng(0)
    agent, told = quiet_train(Moving, tiny_config(depth=2)).agent, []
    monkeypatch.setattr(pixels, "true_state", lambda _: told.append(rng.normal(size=3)) or told[-1])
    mixed = np.array([[1.0, 2, 0], [0, 1, 1], [3, 0, 1]])

    def as_state(x):
        return State(torch.from_numpy(x), torch.zeros(len(x), 0, 0), None)

    def linear(agent, episode, seed):
        return as_state(np.array(told[-len(episode["obs"]) :]) @ mixed)

    def noise(agent, episode, seed):
        return as_state(rng.normal(size=(len(episode["obs"]), 3)))

    for feat, low, high in (linear, 0.99, 1), (noise, -1, 0.2):
        monkeypatch.setattr(pixels, "filter_episode", feat)
        r2 = pixels.linear_probe(agent, Moving, episodes=40)["r2"]
        assert low < min(r2) and max(r2) <= high
