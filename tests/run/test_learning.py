"""It learns: python -m pytest -m learning tests/run/test_learning.py"""

from dataclasses import replace

import pytest
from conftest import quiet_train

from dreamer import Config, evaluate
from lab import spaces

pytestmark = pytest.mark.learning


def test_it_learns_cartpole():
    """3,000 environment steps: far beyond the 22 of random actions. (A minute or two. Rounding
    differs between processors: three seeds of one, for a measure, had 205, 288 and 448.)"""
    sizes = dict(deter=64, hidden=64, layers=1, categoricals=8, classes=8, batch_size=8)
    config = Config(steps=3000, prefill=500, train_ratio=128, evals=0, imag_starts=64, **sizes)
    returns = evaluate(quiet_train("CartPole-v1", config).agent, episodes=20, seed=1)
    assert returns.mean() > 150, returns


def test_it_remembers():
    """A cue, and a question 8 rows later. (By chance half of the answers are right. One or two
    minutes.)"""
    env, threshold, config = spaces.TASKS["recall_8"]
    agent = quiet_train(env, replace(config, steps=7_000, evals=0)).agent
    assert evaluate(agent, episodes=100, seed=1).mean() >= threshold
