"""Gymnasium environments as the agent sees them: flat actions in, flat float32 observations out."""

import contextlib
import copy
import functools
import math
import operator
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from dreamer.config import Config
from dreamer.replay_buffer import Layout

MakeEnv = str | EnvSpec | Callable[..., gym.Env]  # an id, Gymnasium's description, or a function
VectorEnv = SyncVectorEnv | AsyncVectorEnv
KINDS = ("numbers", "flags", "categories", "images")  # fields of `Layout`, in their order
MIN_SIDE = 8  # pixels of an image's sides
MOST_CLASSES = 100_000  # entries of a one-hot vector


class EnvFault(ValueError):
    """An environment raised an error or gave what no agent can learn from; the message names
    environment, step and what is wrong."""


@contextlib.contextmanager
def blaming(what: str, *known: type[Exception]) -> Iterator[None]:
    """Turn whatever fails in this block, the environment's own code, into an `EnvFault`, except
    errors that are known to say what is wrong."""
    try:
        yield
    except Exception as error:
        if isinstance(error, (EnvFault, *known)):
            raise
        raise EnvFault(f"{what}: {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------- spaces


def image_shape(space: Any) -> tuple[int, int, int] | None:
    """(H, W, C) of an image, None for any other space.

    An image is a `Box` of three axes, or one of uint8 with two, neither shorter than MIN_SIDE. Of
    three axes the shorter one of the first and the last holds the channels, the last if they are
    alike.
    """
    shape = space.shape if isinstance(space, spaces.Box) else ()
    if len(shape) == 2 and space.dtype == np.uint8 and min(shape) >= MIN_SIDE:
        return (*shape, 1)
    if len(shape) != 3:
        return None
    return (*shape[1:], shape[0]) if shape[0] < shape[2] else shape


def classes_of(space: Any) -> tuple[int, ...]:
    """Sizes of the one-hot vectors that stand for a value of the space; none for `Box`."""
    if isinstance(space, spaces.Discrete):
        return (int(space.n),)
    if isinstance(space, spaces.MultiDiscrete):
        return tuple(int(n) for n in space.nvec.flat)
    return (2,) * math.prod(space.shape) if isinstance(space, spaces.MultiBinary) else ()


def kind_of(space: Any) -> str:
    """The field of `Layout` to which a space belongs that is no `Dict` or `Tuple`. Raises
    ValueError for what no observation can be."""
    shape, wanted = image_shape(space), "Box, Discrete, MultiDiscrete and MultiBinary are"
    if shape:
        span = float(space.high.max()) - float(space.low.min())
        if min(shape[:2]) >= MIN_SIDE and 0 < span < np.inf:
            return "images"
        wanted = f"an image has bounds, and sides of {MIN_SIDE} or more (else FlattenObservation)"
    elif isinstance(space, spaces.Box) and len(space.shape) < 3:
        whole = space.dtype.kind in "biu" and space.low.min() >= 0 and space.high.max() <= 1
        return "flags" if whole else "numbers"
    elif isinstance(space, spaces.MultiBinary):
        return "flags"
    elif 0 < max(classes_of(space), default=0) <= MOST_CLASSES:
        return "categories"
    elif classes_of(space):
        wanted = "a one-hot vector would be too long: give its parts as a MultiDiscrete"
    raise ValueError(f"observation space {space} is not supported: {wanted}")


def parts_of(space: Any) -> list[tuple[tuple, Any]]:
    """The keys and the spaces of a `Dict`'s or `Tuple`'s innermost parts, in the order of a
    `Layout`; no keys and the space itself if it is neither."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return [((), space)]
    inner = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
    parts = [((key, *keys), leaf) for key, part in inner for keys, leaf in parts_of(part)]
    return sorted(parts, key=lambda part: KINDS.index(kind_of(part[1])))


def layout_of(obs_space: Any, action_space: Any) -> Layout:
    """What observations and actions consist of. Raises ValueError for spaces that are not
    supported."""
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    for _, space in parts_of(obs_space):
        found[kind_of(space)].append(space)
    bounded = isinstance(action_space, spaces.Box) and action_space.is_bounded()
    if not bounded and not classes_of(action_space):
        raise ValueError(
            f"action space {action_space} is not supported: a bounded Box, Discrete, MultiDiscrete "
            "and MultiBinary are; a wrapper (gymnasium.wrappers.TransformAction) can make it one"
        )
    return Layout(
        numbers=sum(map(spaces.flatdim, found["numbers"])),
        flags=sum(map(spaces.flatdim, found["flags"])),
        categories=tuple(n for space in found["categories"] for n in classes_of(space)),
        images=tuple(shape for space in found["images"] if (shape := image_shape(space))),
        action_numbers=spaces.flatdim(action_space) if bounded else 0,
        action_categories=classes_of(action_space),
    )


def names_of(space: Any) -> list[str]:
    """A name for each number, flag and category of an observation, in the order of its `Layout`."""
    names: list[str] = []
    for keys, part in parts_of(space):
        name = ".".join(map(str, keys)) or "observation"
        count = 0 if image_shape(part) else len(classes_of(part)) or spaces.flatdim(part)
        names += [name] if keys and count == 1 else [f"{name}[{i}]" for i in range(count)]
    return names


def bounds_of(space: Any) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each number of an observation, in the order of its layout."""
    boxes = [part for _, part in parts_of(space) if kind_of(part) == "numbers"]
    low = [np.zeros(0), *(np.ravel(box.low) for box in boxes)]
    return np.concatenate(low), np.concatenate([low[0], *(np.ravel(box.high) for box in boxes)])


def flatten(space: Any, obs: Any) -> np.ndarray:
    """An observation as the flat float32 vector of its `Layout`, a copy. Raises ValueError or
    TypeError for what is not in the space, NaN and infinity included."""
    vectors = []
    for keys, part in parts_of(space):
        value = functools.reduce(operator.getitem, keys, obs)  # obs[key][key]...
        vectors.append(flatten_part(part, value))
    flat = np.concatenate(vectors, dtype=np.float32)
    if not np.isfinite(flat).all():
        raise ValueError(f"not finite in float32: {obs}")
    return flat


def flatten_part(space: Any, value: Any) -> Any:
    """A value of an innermost space as a vector. The bounds of numbers are not looked at."""
    if image_shape(space):
        return pixels(space, value)
    if not classes_of(space):
        value = np.asarray(value)
        if value.ndim > 1 and value.shape != space.shape:
            raise ValueError(f"its shape is {value.shape}, not {space.shape}")
        return value.reshape(spaces.flatdim(space))
    value = np.asarray(value) if space.shape else value
    if not space.contains(value):
        raise ValueError(f"{value!r} is not in {space}")
    return spaces.flatten(space, value)


def pixels(space: spaces.Box, image: Any) -> np.ndarray:
    """An image in whole numbers from 0, at its space's lower bound, to 255, at its upper one:
    (H*W*C), channels last, row by row. Raises ValueError for what is not in the space."""
    image, low, high = np.asarray(image), float(space.low.min()), float(space.high.max())
    if image.shape != space.shape or (image.dtype.kind == "f") > (space.dtype.kind == "f"):
        raise ValueError(f"{image.dtype} of shape {image.shape} is not in {space}")
    if (low, high) != (0, 255):
        image = 255 * (image.astype(np.float32) - low) / (high - low)
    image = np.rint(image)
    if not (-1 <= image.min() and image.max() <= 256):
        raise ValueError("pixels beyond the bounds of their space")
    first = len(space.shape) == 3 and space.shape[0] < space.shape[2]
    return (np.moveaxis(image, 0, -1) if first else image).clip(0, 255).ravel()


# ---------------------------------------------------------------- actions


def random_action(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Draw an action (A,) uniformly."""
    if not layout.discrete:
        return rng.uniform(-1, 1, layout.action_size).astype(np.float32)
    action, start = np.zeros(layout.action_size, np.float32), 0
    for size in layout.action_categories:
        action[start + rng.integers(size)] = 1
        start += size
    return action


def native_action(space: Any, action: np.ndarray) -> Any:
    """The environment's own action for the agent's (A,): numbers are clipped to [-1, 1] and
    rescaled to the bounds, each one-hot vector becomes its class."""
    if isinstance(space, spaces.Box):
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        share = (np.clip(action, -1, 1).astype(np.float64).reshape(space.shape) + 1) / 2
        scaled = low * (1 - share) + high * share
        if space.dtype.kind != "f":
            scaled = np.rint(scaled)
        return np.clip(scaled, space.low, space.high).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return action.reshape(*space.shape, 2).argmax(-1).astype(space.dtype)
    return spaces.unflatten(space, action)


class ActionMask(gym.Wrapper):
    """Shows `info["action_mask"]` in the observation and takes no invalid action.

    In the place of an invalid action a valid one is drawn, so that the world model learns what
    really happens, and random actions explore. A mask holds 1 for each valid action and 0 for each
    invalid one (Gymnasium's convention), of a `MultiDiscrete` a tuple of such masks. Raises
    ValueError for other values.
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.classes = classes_of(env.action_space)
        mask = spaces.MultiBinary(sum(self.classes))
        self.observation_space = spaces.Dict({"obs": env.observation_space, "action_mask": mask})

    def with_mask(self, obs: Any, info: dict[str, Any]) -> dict[str, Any]:
        masks = info["action_mask"] if len(self.classes) > 1 else [info["action_mask"]]
        self.masks = [np.asarray(mask) for mask in masks]
        valid = np.concatenate(self.masks)
        if valid.shape != (sum(self.classes),) or not np.isin(valid, (0, 1)).all():
            raise ValueError(
                f'info["action_mask"] must hold 1 for each valid action and 0 for each invalid one '
                f"of {sum(self.classes)}, got {valid}"
            )
        return {"obs": obs, "action_mask": valid.astype(np.int8)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.rng = np.random.default_rng(seed)
        obs, info = self.env.reset(seed=seed, options=options)
        return self.with_mask(obs, info), info

    def step(self, action: Any) -> Any:
        space: Any = self.action_space
        chosen = np.array(action - space.start).reshape(-1)
        for i, mask in enumerate(self.masks):
            if mask.any() and not mask[chosen[i]]:
                chosen[i] = self.rng.choice(mask.nonzero()[0])
        taken = (chosen.reshape(space.shape) + space.start).astype(space.dtype)
        obs, *rest, info = self.env.step(taken if space.shape else taken.item())
        return self.with_mask(obs, info), *rest, info


# ---------------------------------------------------------------- one environment


class AgentEnv(gym.Wrapper):
    """An environment with flat actions and observations, as `layout` says, and a name.

    env: an id, a Gymnasium spec, or a function that makes an environment; it gets `options`, such
    as render_mode. Each action is held for `action_repeat` steps, with the rewards summed, or until
    the episode ends. An episode is cut after `max_episode_steps`, as by a time limit. At an
    episode's end `info` holds its `return`, its `length` in steps, and `success`, where the
    environment gives `is_success`. Where it gives `action_mask`, see `ActionMask`.

    `reset(seed=s, options={"idle": [s]})` leaves the environment alone, and so do steps until the
    next reset. `options={"actions": {s: [...]}}` takes these actions again after the reset.

    Raises ValueError for what is no such environment, and EnvFault when the environment fails.
    """

    def __init__(
        self, env: MakeEnv, action_repeat: int = 1, max_episode_steps: int = 100_000, **options: Any
    ):
        made = self.given = make_env(env, **options)
        self.name = made.spec.id if made.spec else type(made.unwrapped).__name__
        self.spec_json = spec_json(made, by_id=isinstance(env, str | EnvSpec))
        limit = made.spec and made.spec.max_episode_steps
        self.time_limit = min(limit or max_episode_steps, max_episode_steps)
        self.action_repeat, self.taken = action_repeat, 0
        may_be_masked = spaces.Discrete | spaces.MultiDiscrete
        if isinstance(getattr(made, "action_space", None), may_be_masked):
            with blaming(f"{self.name}: reset at step 0"):
                if "action_mask" in made.reset(seed=0)[1]:
                    made = ActionMask(made)
        with blaming(self.name):
            self.layout = layout_of(made.observation_space, made.action_space)
        super().__init__(gym.wrappers.TimeLimit(made, max_episode_steps))
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.layout.obs_size,))
        self.action_space = spaces.Box(-1, 1, (self.layout.action_size,))
        self.obs, self.idle = np.zeros(self.layout.obs_size, np.float32), True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode that depends on `seed` alone: obs (O,), info."""
        options = options or {}
        self.idle = seed in options.get("idle", ())
        if self.idle:
            return self.obs, {}
        with blaming(f"{self.name}: reset at step {self.taken}"):
            obs, _ = self.env.reset(seed=seed)
            self.obs = flatten(self.env.observation_space, obs)
        self.ret, self.length, reward = 0.0, 0, 0.0
        for action in options.get("actions", {}).get(seed, ()):
            _, reward, terminated, truncated, _ = self.step(action)
            if terminated or truncated:  # it did not then
                return self.obs, {"reward": math.nan}
        return self.obs, {"reward": reward}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """action (A,) -> obs (O,), reward, terminated, truncated, info."""
        if self.idle:
            return self.obs, 0.0, False, False, {}
        space, total, info = self.env.action_space, 0.0, {}
        what = f"{self.name}: step at step {self.taken + 1} must return observation, reward, "
        with blaming(what + "terminated, truncated, info"):
            for _ in range(self.action_repeat):
                self.taken += 1
                self.length += 1
                native = native_action(space, action)  # anew: environments may change it
                obs, reward, terminated, truncated, said = self.env.step(native)
                total += float(np.float32(reward))
                if terminated or truncated:
                    break
            self.obs, total = flatten(self.env.observation_space, obs), float(np.float32(total))
            if not math.isfinite(total):
                raise ValueError(f"the reward is {total}")
            self.ret += total
            if terminated or truncated:
                info = {"return": self.ret, "length": self.length, **success_of(said)}
        return self.obs, total, bool(terminated), bool(truncated), info

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """Draw an action (A,) uniformly."""
        return random_action(self.layout, rng)

    def close(self) -> None:
        """Close the environment; a failure there does not lose what was computed."""
        try:
            super().close()
        except Exception as error:
            warnings.warn(f"{self.name}: close failed: {error!r}", stacklevel=2)


def success_of(info: dict[str, Any]) -> dict[str, float]:
    """`info["is_success"]` as 0 or 1; nothing where it is not given or NaN."""
    success = float(np.asarray(info.get("is_success", math.nan), float).item())
    return {} if math.isnan(success) else {"success": float(bool(success))}


# ---------------------------------------------------------------- making them


def make_env(env: MakeEnv, **options: Any) -> gym.Env:
    """The environment itself. Raises ValueError for what makes none, EnvFault where it fails."""
    name = getattr(env, "__name__", None) or getattr(env, "id", env)
    with blaming(f"{name} could not be made", gym.error.Error):
        if isinstance(env, str | EnvSpec):
            return gym.make(env, **options)
        made: Any = env(**options) if callable(env) else None
    if isinstance(made, gym.Env):
        return made
    raise ValueError(
        f"an environment's id is needed, or a function that makes a gymnasium.Env each time it is "
        f"called: {name} " + (f"makes {made!r}" if callable(env) else "is neither")
    )


def spec_json(env: gym.Env, by_id: bool = False) -> str | None:
    """Gymnasium's JSON of how to make the environment again, arguments and wrappers included; None
    where no JSON can say it (a function inside, or a wrapper that does not record its arguments
    and was put around it by hand, not by what is registered under its id)."""
    spec: Any = copy.deepcopy(env.spec)
    unknown = spec and any(wrapper.kwargs is None for wrapper in spec.additional_wrappers)
    if spec is None or (unknown and not by_id):
        return None
    where = spec.entry_point
    if callable(where) and where.__module__ != "__main__" and where.__qualname__.isidentifier():
        spec.entry_point = f"{where.__module__}:{where.__name__}"
    try:
        return spec.to_json()
    except (ValueError, TypeError):
        return None


def make_envs(
    env: MakeEnv, number: int, config: Config, taken: Sequence[gym.Env] = (), **options: Any
) -> VectorEnv:
    """Make that many environments (`AgentEnv`), which are reset by hand when an episode ends: in
    this process, or with `vectorization_mode="async"` each in its own.

    Raises EnvFault for a function that gives the same environment twice, or a `taken` one.
    """
    repeat, longest = config.action_repeat, config.max_episode_steps
    make = functools.partial(AgentEnv, env, repeat, longest, **options)
    if config.vectorization_mode == "async":
        makers = [functools.partial(make_in_worker, make, os.getpid())] * number
        return Workers(makers, autoreset_mode=AutoresetMode.DISABLED)
    envs = SyncVectorEnv([make] * number, autoreset_mode=AutoresetMode.DISABLED)
    everyone = [*taken, *envs.envs]
    if len({id(one.unwrapped) for one in everyone}) < len(everyone):
        raise EnvFault(f"{env}: the function gave the same environment twice")
    return envs


class Workers(AsyncVectorEnv):
    """Environments in processes of their own, which all end, even where one has died already."""

    def close_extras(self, *args: Any, **options: Any) -> None:
        try:
            super().close_extras(*args, **options)
        except (EOFError, ConnectionError):
            for process in self.processes:
                process.terminate()


def make_in_worker(make: Callable[[], AgentEnv], creator: int) -> AgentEnv:
    """`make()`; in a process of its own, Ctrl-C is left to the one that created it."""
    if os.getpid() != creator:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return make()
