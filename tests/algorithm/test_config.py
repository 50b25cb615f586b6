"""`Config`: what it takes, and that the error for anything else says what would be allowed."""

import dataclasses
import math
import typing

import numpy as np
import pytest

from dreamer.config import Config

FIELDS = {
    field.name: typing.get_type_hints(Config)[field.name] for field in dataclasses.fields(Config)
}
RANGES = {f.name: f.metadata["range"] for f in dataclasses.fields(Config) if "range" in f.metadata}
NUMBERS = [name for name, kind in FIELDS.items() if kind in (int, float)]


def test_every_number_has_a_range():
    assert set(RANGES) == set(NUMBERS)
    assert all(low < high for low, high in RANGES.values())


@pytest.mark.parametrize("name", NUMBERS)
def test_the_ends_of_a_range_are_allowed_and_nothing_beyond(name):
    low, high = RANGES[name]
    others = {"capacity": 10**5} if name == "seq_len" else {"seq_len": 2}
    others.pop(name, None)
    for value in (low, high):
        assert getattr(Config(**{name: value}, **others), name) == value
    step = 1 if FIELDS[name] is int else 1e-3 * max(1, abs(high))
    for value in (low - step, high + step):
        check_refused(name, value)


def check_refused(name: str, value: object) -> None:
    """The error names field, value and what is allowed."""
    with pytest.raises(ValueError) as error:
        Config(**{name: value})
    text = str(error.value)
    assert text.startswith(f"Config.{name} must be") and repr(value) in text
    if name in RANGES:
        low, high = RANGES[name]
        assert f"{low:g} to {high:g}" in text


@pytest.mark.parametrize("name", FIELDS)
def test_nonsense_is_refused(name):
    huge = 10**400, 1e300, -1e300, math.inf, -math.inf
    for value in (None, "3", "", [3], 3j, True, math.nan, np.float32("nan"), *huge):
        check_refused(name, value)
    if FIELDS[name] is not float:
        check_refused(name, np.float32(2.5))


def test_whole_floats_and_numpys_numbers_become_pythons_own():
    given = {"steps": 1e4, "batch_size": 3.0, "layers": np.float64(2), "seed": np.int64(7)}
    given |= {"lam": np.float32(0.5), "train_ratio": np.int32(2)}
    config = Config(**given)
    for name, value in given.items():
        assert getattr(config, name) == value and type(getattr(config, name)) is FIELDS[name]


@pytest.mark.parametrize("envs", [1, 3])
def test_each_environments_part_of_the_replay_holds_a_window(envs):
    Config(capacity=10 * envs, seq_len=10, envs=envs)
    with pytest.raises(ValueError, match="Config.seq_len must be at most 10,"):
        Config(capacity=11 * envs - 1, seq_len=11, envs=envs)


def test_the_groups_of_help_hold_every_field_once():
    """In the order in which they are shown; `Config` joins them and adds none."""
    groups = [base for base in Config.__mro__ if base.__name__.endswith("Config")][:0:-1]
    assert [group.__name__ for group in groups][:2] == ["RunConfig", "ExperienceConfig"]
    names = [field.name for group in groups for field in dataclasses.fields(group)]
    assert names == list(FIELDS) and len(set(names)) == len(names)
    assert names[:2] == ["steps", "train_ratio"]


def test_updates_by_hand():
    config = Config(train_ratio=6, batch_size=3, seq_len=6, prefill=10)  # 18 rows an update
    assert [config.updates_after(steps) for steps in (0, 10, 12, 13, 70)] == [0, 0, 0, 1, 20]
    assert Config(steps=100, prefill=1_000).warm_up == 50
    assert Config(steps=100, prefill=40).warm_up == 40
