"""Gymnasium's spaces: which ones the agent takes, and what their flat vectors consist of: numbers,
flags and one-hot vectors first, then the pixels of the images."""

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


def image_shape(space: Any) -> tuple[int, int, int] | None:
    """(H, W, C) of an image, None for any other space.

    An image is a `Box` of three axes, or one of uint8 with two, neither shorter than MIN_SIDE. Of
    three axes the shorter one of the first and the last holds the channels, the last if they are
    alike.
    """
    if not isinstance(space, spaces.Box):
        return None
    shape = space.shape
    if len(shape) == 2 and space.dtype == np.uint8 and min(shape) >= MIN_SIDE:
        return (*shape, 1)
    if len(shape) != 3:
        return None
    return (*shape[1:], shape[0]) if shape[0] < shape[2] else shape


MIN_SIDE = 8  # pixels


def parts_of(space: Any) -> list[Any]:
    """A `Dict`'s or `Tuple`'s innermost spaces, in order, or the space itself."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
        return [inner for part in parts for inner in parts_of(part)]
    return [space]


def values_of(space: Any, value: Any) -> list[Any]:
    """What `value` holds for each of `parts_of(space)`."""
    if isinstance(space, spaces.Dict):
        return [v for name, part in space.spaces.items() for v in values_of(part, value[name])]
    if isinstance(space, spaces.Tuple):
        return [v for part, x in zip(space.spaces, value, strict=True) for v in values_of(part, x)]
    return [value]


def image_shapes(space: Any) -> tuple[tuple[int, int, int], ...]:
    """(H, W, C) of each image in the space."""
    return tuple(shape for part in parts_of(space) if (shape := image_shape(part)))


def flatten(space: Any, value: Any) -> tuple[Any, np.ndarray]:
    """Numbers (to be checked by the caller where the space is one `Box`), flags and one-hot vectors
    of an observation, and the pixels of its images one after another."""
    if not image_shapes(space):
        flat = value if isinstance(space, spaces.Box) else spaces.flatten(space, value)
        return flat, np.zeros(0, np.float32)
    pairs = list(zip(parts_of(space), values_of(space, value), strict=True))
    numbers = [spaces.flatten(part, x) for part, x in pairs if not image_shape(part)]
    images = [pixels(part, x) for part, x in pairs if image_shape(part)]
    return np.concatenate([np.zeros(0), *numbers]), np.concatenate(images)


def bounds(space: Any) -> tuple[float, float]:
    """The least and the most that any number of a `Box` may be."""
    return float(space.low.min()), float(space.high.max())


def pixels(space: spaces.Box, image: Any) -> np.ndarray:
    """An image in whole numbers from 0, at its space's lower bound, to 255, at its upper one, as
    float32 (H*W*C): channels last, row by row. Raises ValueError for pixels beyond these bounds."""
    low, high = bounds(space)
    image = np.asarray(image, np.float32)
    if (low, high) != (0, 255):
        image = 255 * (image - low) / (high - low)
    image = np.rint(image)
    if not ((image >= -1) & (image <= 256)).all():
        raise ValueError("pixels beyond the bounds of their space")
    image = image.clip(0, 255)
    first = len(space.shape) == 3 and space.shape[0] < space.shape[2]
    return (np.moveaxis(image, 0, -1) if first else image).ravel()


def check_observations(name: str, space: Any) -> None:
    """Raises ValueError for what is neither an image nor a short vector of numbers."""
    shape = image_shape(space)
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
    elif isinstance(space, spaces.Box) and len(space.shape) > 3:
        reason = (
            "an image has two or three axes: stack frames without a channel axis "
            "(gymnasium.wrappers.GrayscaleObservation), or choose one (ReshapeObservation)"
        )
    elif shape and min(shape[:2]) < MIN_SIDE and 0 not in shape:
        reason = (
            f"the sides of an image are at least {MIN_SIDE} pixels long; what is smaller, or no "
            "image, can be flattened by gymnasium.wrappers.FlattenObservation"
        )
    elif shape and not 0 < np.subtract(*bounds(space)[::-1]) < np.inf:
        reason = "the pixels of an image need bounds: take uint8, bool, or floats from 0 to 1"
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
    for a one-hot vector of K entries. Images have no part in it."""
    if image_shape(space):
        return ()
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return tuple(size for part in parts_of(space) for size in obs_parts(part))
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
