"""Spaces by hand: what observations and actions become, and what is refused."""

import re

import numpy as np
import pytest
from gymnasium import spaces as S
from hypothesis import given
from hypothesis import strategies as st

from dreamer import Layout
from dreamer.envs import (
    MOST_CLASSES,
    bounds_of,
    flatten,
    layout_of,
    names_of,
    native_action,
    random_action,
)

TWO, VECTOR = S.Discrete(2), S.Box(-1, 1, (3,))
PIXELS = np.arange(216, dtype=np.uint8).reshape(3, 9, 8)
MIXED = S.Dict(
    arm=S.Tuple([S.Discrete(3), S.Box(-9, 9, (2,))]),
    eye=S.Box(0, 255, (3, 9, 8), np.uint8),
    lamp=S.MultiBinary(1),
    well=S.Dict(depth=S.Box(0, 9, ())),
)

OBSERVED = {  # space, a value, its layout, its vector
    "vector": (VECTOR, np.float64([0.5, -1, 7]), {"numbers": 3}, [0.5, -1, 7]),
    "matrix": (S.Box(-1, 1, (2, 2)), [[1, 2], [3, 4]], {"numbers": 4}, [1, 2, 3, 4]),
    "floats up to 1": (S.Box(0, 1, (2,)), [0.5, 1], {"numbers": 2}, [0.5, 1]),
    "0 and 1": (S.Box(0, 1, (2,), np.int8), np.int8([1, 0]), {"flags": 2}, [1, 0]),
    "MultiBinary": (S.MultiBinary((2, 2)), [[1, 0], [1, 1]], {"flags": 4}, [1, 0, 1, 1]),
    "Discrete": (S.Discrete(3, start=5), 6, {"categories": (3,)}, [0, 1, 0]),
    "MultiDiscrete": (
        S.MultiDiscrete([[2, 1], [2, 3]], start=[[1, 0], [0, -1]]),
        np.array([[2, 0], [0, 1]]),
        {"categories": (2, 1, 2, 3)},
        [0, 1, 1, 1, 0, 0, 0, 1],
    ),
    "all of them": (
        MIXED,
        {"arm": (2, [3, -4]), "eye": PIXELS, "lamp": [1], "well": {"depth": 8}},
        {"numbers": 3, "flags": 1, "categories": (3,), "images": ((9, 8, 3),)},
        [3, -4, 8, 1, 0, 0, 1, *np.arange(216).reshape(3, 72).T.ravel()],
    ),
}


@pytest.mark.parametrize(("space", "value", "layout", "vector"), OBSERVED.values(), ids=OBSERVED)
def test_observations_by_hand(space, value, layout, vector):
    assert layout_of(space, TWO) == Layout(**layout, action_categories=(2,))
    found = flatten(space, value)
    assert found.dtype == np.float32 and found.tolist() == vector


def test_each_number_flag_and_category_of_an_observation_has_a_name():
    assert names_of(MIXED) == ["arm.1[0]", "arm.1[1]", "well.depth", "lamp", "arm.0"]
    assert [bound.tolist() for bound in bounds_of(MIXED)] == [[-9, -9, 0], [9, 9, 9]]
    for space, count in (VECTOR, 3), (TWO, 1), (S.MultiDiscrete([1, 2]), 2):
        assert names_of(space) == [f"observation[{i}]" for i in range(count)]


def test_a_flat_observation_is_a_copy():
    """As environments may fill the same array again at the next step."""
    value = np.zeros(3, np.float32)
    assert not np.shares_memory(flatten(VECTOR, value), value)


NOT_IN = [
    (VECTOR, [0, np.nan, 0]),
    (VECTOR, np.float64([0, 1e300, 0])),  # float32 has no such number
    (VECTOR, [0, 0]),
    (S.Box(-1, 1, (2, 3)), np.zeros((3, 2))),
    (TWO, 2),
    (S.MultiDiscrete([3, 4]), np.array([3, 0])),
    (S.MultiBinary(2), [7, -1]),
]


@pytest.mark.parametrize(("space", "value"), NOT_IN, ids=str)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_what_is_not_in_its_space_is_refused(space, value):
    with pytest.raises((ValueError, TypeError)):
        flatten(space, value)


REFUSED = {
    "text": (S.Text(5), "Box, Discrete, "),
    "a sequence within": (S.Dict({"x": S.Sequence(VECTOR)}), "Box, Discrete, "),
    "a small image": (S.Box(0, 255, (7, 64, 3), np.uint8), "sides of 8 or more"),
    "an image without bounds": (S.Box(-np.inf, np.inf, (8, 8, 3)), "an image has bounds"),
    "an image of one brightness": (S.Box(1, 1, (8, 8, 3)), "an image has bounds"),
    "a huge category": (S.Discrete(MOST_CLASSES + 1), "its parts as a MultiDiscrete"),
}


@pytest.mark.parametrize(("space", "advice"), REFUSED.values(), ids=REFUSED)
def test_other_observation_spaces_get_a_sentence(space, advice):
    part = re.escape(str(space["x"] if isinstance(space, S.Dict) else space))
    with pytest.raises(ValueError, match=f"^observation space {part} is not supported: .*{advice}"):
        layout_of(space, TWO)


TAKEN = {  # space, an action, the environment's own
    "Discrete": (S.Discrete(3, start=-1), [0, 0, 1], 1),
    "MultiDiscrete": (S.MultiDiscrete([[3], [2]], start=[[5], [-2]]), [0, 0, 1, 0, 1], [[7], [-1]]),
    "MultiBinary": (S.MultiBinary((2, 2)), [0, 1, 1, 0, 1, 0, 0, 1], [[1, 0], [0, 1]]),
    "asymmetric": (S.Box(np.float32([-2, 0]), np.float32([2, 10])), [0.5, -7], [1, 0]),
    "float64": (S.Box(-3.0, 1.0, (1,), np.float64), [0.5], [0]),
    "matrix": (S.Box(-1, 1, (2, 2)), [0.5, -1, 0, 9], [[0.5, -1], [0, 1]]),
    "integers": (S.Box(0, 3, (4,), np.int64), [-1, -0.5, 0.9, 1], [0, 1, 3, 3]),
}


@pytest.mark.parametrize(("space", "action", "native"), TAKEN.values(), ids=TAKEN)
def test_actions_by_hand(space, action, native):
    layout = layout_of(VECTOR, space)
    assert layout.action_size == len(action) and layout.discrete == (not isinstance(space, S.Box))
    found = native_action(space, np.float32(action))
    assert space.contains(found), found
    np.testing.assert_allclose(found, native, rtol=1e-6)


@given(*(st.floats(-size, size, width=32, allow_subnormal=False) for size in (2**127, 2**127, 3)))
def test_every_native_action_is_in_the_space_and_reaches_its_bounds(one, other, action):
    space = S.Box(min(one, other), max(one, other), (1,))
    native = native_action(space, np.float32([action]))
    assert space.contains(native)
    if abs(action) >= 1:
        assert native[0] == (space.high if action > 0 else space.low)[0]


@pytest.mark.parametrize("space", [S.Box(-3, 1, (2,)), S.MultiDiscrete([2, 3])], ids=str)
def test_random_actions_cover_the_space(space):
    layout, rng = layout_of(VECTOR, space), np.random.default_rng(0)
    actions = np.stack([random_action(layout, rng) for _ in range(300)])
    if layout.discrete:
        for part in np.split(actions, [2], 1):
            assert (part.sum(1) == 1).all() and (part.sum(0) > 60).all()
    else:
        assert actions.min(0).max() < -0.9 and actions.max(0).min() > 0.9
        assert np.abs(actions).max() <= 1


HALF_BOUNDED = S.Box(np.float32([-1, 0]), np.float32([1, np.inf]))


@pytest.mark.parametrize("space", [HALF_BOUNDED, S.Tuple([TWO]), S.Text(5)], ids=str)
def test_other_action_spaces_get_a_sentence(space):
    with pytest.raises(ValueError, match="^action space .* is not supported: .*Discrete.*wrapper"):
        layout_of(VECTOR, space)
