"""Gymnasium's spaces: which ones the agent takes, and what their flat vectors consist of."""

from typing import Any

import numpy as np
from gymnasium import spaces


def inside(space: Any, value: Any) -> bool:
    """Whether `value` has the form of the space and its categories are those of the space; the size
    of numbers is another matter."""
    if isinstance(space, spaces.Dict):
        return all(inside(part, value[name]) for name, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return all(inside(p, v) for p, v in zip(space.spaces, value, strict=True))
    if isinstance(space, spaces.Box):  # what is no matrix is counted later
        return len(space.shape) < 2 or np.shape(value) == space.shape
    return bool(space.contains(np.asarray(value) if space.shape else value))


def check_observations(name: str, space: Any) -> None:
    """Raises ValueError for what cannot be flattened into a short vector of numbers."""
    if isinstance(space, spaces.Dict | spaces.Tuple) and space.spaces:
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            check_observations(name, part)
        return
    reason = None
    if not isinstance(space, spaces.Space):
        kind = type(space).__module__.split(".")[0]
        reason = (
            "this is gym, Gymnasium is needed" if kind == "gym" else "it is no gymnasium.spaces"
        )
    elif isinstance(space, spaces.Text):
        reason = "turn text into numbers in a wrapper (gymnasium.wrappers.TransformObservation)"
    elif isinstance(space, spaces.Box) and len(space.shape) >= 3:
        reason = (
            "images are not supported yet; a small one can be flattened by "
            "gymnasium.wrappers.FlattenObservation"
        )
    elif isinstance(space, spaces.Dict | spaces.Tuple) or 0 in (space.shape or ()):
        reason = "it is empty"
    elif not isinstance(
        space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    ):
        reason = "Box, Discrete, MultiDiscrete, MultiBinary, and a Dict or Tuple of them, are"
    if reason:
        raise ValueError(f"{name}: observation space {space} is not supported: {reason}")


def check_actions(name: str, space: Any) -> None:
    """Raises ValueError for what is neither categories nor a bounded box of numbers."""
    reason = None
    if isinstance(space, spaces.Box):
        unbounded = np.flatnonzero(~(space.bounded_below & space.bounded_above))
        if 0 in space.shape:
            reason = "it is empty"
        elif len(unbounded):
            reason = (
                f"dimension {unbounded[0]} has no bounds; gymnasium.wrappers.TransformAction with "
                "a bounded Box gives it some"
            )
    elif isinstance(space, spaces.Dict | spaces.Tuple):
        reason = (
            "join its parts in a wrapper (gymnasium.wrappers.TransformAction) to one Box or one "
            "MultiDiscrete"
        )
    elif not isinstance(space, spaces.Space) and type(space).__module__.split(".")[0] == "gym":
        reason = "this is gym, Gymnasium is needed"
    elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        reason = "Discrete, MultiDiscrete, MultiBinary and a bounded Box are"
    if reason:
        raise ValueError(f"{name}: action space {space} is not supported: {reason}")


def obs_parts(space: Any) -> tuple[int, ...]:
    """What the entries of a flattened observation are, in order: 0 for a number, 1 for a flag, K
    for a one-hot vector of K entries."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return tuple(size for part in parts for size in obs_parts(part))
    if isinstance(space, spaces.Box):
        whole = space.dtype == bool or np.issubdtype(space.dtype, np.integer)
        flags = whole & (space.low >= 0) & (space.high <= 1)
        return tuple(np.ravel(flags).astype(int).tolist())
    if isinstance(space, spaces.MultiBinary):
        return (1,) * spaces.flatdim(space)
    return segments(space)


def segments(space: Any) -> tuple[int, ...]:
    """Sizes of the one-hot vectors that make up an action; none for `Box`."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flat)
    if isinstance(space, spaces.MultiBinary):
        return (2,) * int(np.prod(space.shape))
    return ()


def within(scaled: np.ndarray, space: spaces.Box) -> np.ndarray:
    """`scaled` as the space's own type, within its bounds in spite of rounding."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        native = np.clip(scaled, low, high).astype(space.dtype)
    # At the ends of int64 float64 has no exact number: take the bounds themselves.
    native = np.where(scaled >= high, space.high, np.where(scaled <= low, space.low, native))
    return np.asarray(native, space.dtype)
