"""Gymnasium environments as the agent sees them: flat actions in, flat float32 observations out."""

import contextlib
import itertools
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from dreamer.config import Config
from dreamer.spaces import (
    check_actions,
    check_observations,
    flatten,
    image_shapes,
    inside,
    obs_parts,
    segments,
    within,
)

EnvSpec = str | Callable[..., gym.Env]
FLAGS = bool | int | float | np.bool_ | np.number  # what may stand for True or False


class EnvFault(ValueError):
    """An environment raised an error or gave what no agent can learn from; the message names
    environment, step and value."""


class AgentEnv:
    """One Gymnasium environment (not a batch): flat actions in, flat float32 observations out.

    Observations of any space of numbers are flattened, categories become one-hot vectors
    (`gymnasium.spaces.flatten`). Actions go in as the agent makes them: for `Box` in [-1, 1]
    (clipped, then rescaled to the space's bounds), for `Discrete`, `MultiDiscrete` and
    `MultiBinary` as one-hot vectors, one after another, whose sizes are `segments` (empty for
    `Box`). `obs_parts` says the same of the observation, with 1 for a flag and 0 for a number.
    Behind all that come the `pixels` of its images, in whole numbers from 0 to 255: `images` are
    their shapes (H, W, C). Floats and flags are rounded to such numbers here, once for all.
    Each action is held for `action_repeat` steps of the environment, and an episode that does not
    end is cut after `max_episode_steps`, as by a time limit.

    `steps` counts `action_repeat` for each action, also for one that an end cuts short;
    `episode_steps` counts what the environment has really taken. `success` is its last
    `info["is_success"]`, or None.

    An environment that says which actions are valid, by `info["action_mask"]` from the first reset
    on, is `masked`: `mask` (A,) bool then also stands as flags at the end of each observation, so
    that the world model learns to foresee it.

    Raises ValueError with a sentence for what is no such environment, and EnvFault when the
    environment fails.
    """

    def __init__(
        self,
        spec: EnvSpec,
        action_repeat: int = 1,
        max_episode_steps: int = 100_000,
        **options: Any,
    ):
        self.env = make(spec, options)
        known = getattr(self.env, "spec", None)
        self.name = known.id if known else type(self.env.unwrapped).__name__
        self.spec_name = spec if isinstance(spec, str) else self.name  # to make another one
        name_videos(self.env)
        self.action_repeat, self.max_episode_steps = action_repeat, max_episode_steps
        self.mask: np.ndarray | None = None
        self.success: bool | None = None
        self.steps = self.episode_steps = 0
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        """Sizes and parts of observations and actions."""
        try:
            self.obs_space: Any = self.env.observation_space
            self.action_space: Any = self.env.action_space
        except Exception as error:
            raise EnvFault(
                f"{self.name} does not say what goes in and out, by its observation_space and "
                f"action_space: {error}"
            ) from error
        check_observations(self.name, self.obs_space)
        check_actions(self.name, self.action_space)
        self.obs_parts = obs_parts(self.obs_space)
        self.images = image_shapes(self.obs_space)
        self.pixels = sum(map(math.prod, self.images))
        self.segments = segments(self.action_space)
        self.action_size = sum(self.segments) or int(np.prod(self.action_space.shape))
        limit = getattr(getattr(self.env, "spec", None), "max_episode_steps", None)
        self.time_limit = limit and min(limit, self.max_episode_steps)
        with unfilmed(self.env):
            mask = self._reset(seed=0)[1].get("action_mask") if self.segments else None
        self.masked = mask is not None
        if self.masked:
            self.obs_parts += (1,) * self.action_size
        self.obs_size = sum(max(size, 1) for size in self.obs_parts) + self.pixels

    # ------------------------------------------------------------ reset, step, close

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode that depends on `seed` alone: obs (O,)."""
        self.episode_steps = 0
        obs, info = self._reset(seed)
        self.mask = self._mask(info)
        return self._flat(obs)

    def _reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        found = self._call("reset", lambda: self.env.reset(seed=seed))
        obs, info = self._unpack("reset", found, ("observation", "info"))
        return obs, info if isinstance(info, dict) else {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """action (A,) -> obs (O,), reward, terminated, truncated: what the last of the steps that
        the action is held for gives, the reward summed over all of them. An end cuts them short,
        and so does an action that is no longer valid."""
        counted, total = self.steps + self.action_repeat, 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated = self._step(action)
            total += reward
            if terminated or truncated or not self.allows(action):
                break
        self.steps = counted
        return obs, float(self._number("reward", total, ())), terminated, truncated

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        self.episode_steps += 1
        native = self.native_action(action)  # anew each time: environments may change it
        found = self._call("step", lambda: self.env.step(native))
        names = ("observation", "reward", "terminated", "truncated", "info")
        obs, reward, terminated, truncated, info = self._unpack("step", found, names)
        self.mask = self._mask(info)
        said = info.get("is_success") if isinstance(info, dict) else None
        self.success = bool(said) if isinstance(said, FLAGS) else None
        obs = self._flat(obs)
        reward = float(self._number("reward", reward, ()))
        terminated = self._flag("terminated", terminated)
        truncated = self._flag("truncated", truncated)
        if self.episode_steps >= self.max_episode_steps and not (terminated or truncated):
            truncated = True
            warnings.warn(
                f"{self.name}: an episode that did not end in {self.max_episode_steps} steps was "
                "cut there, as by a time limit (Config.max_episode_steps)",
                stacklevel=3,
            )
        return obs, reward, terminated, truncated

    def close(self) -> None:
        """Close the environment; a failure there does not lose a finished run."""
        try:
            self.env.close()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and ctrl_c_raises():
                raise
            warnings.warn(
                f"{self.name}: close raised {type(error).__name__}: {error}", stacklevel=2
            )

    # ------------------------------------------------------------ actions

    def native_action(self, action: np.ndarray) -> Any:
        """The environment's own action for the agent's (A,)."""
        space = self.action_space
        if not self.segments:
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            share = (np.clip(action, -1, 1).astype(np.float64).reshape(space.shape) + 1) / 2
            with np.errstate(over="ignore", invalid="ignore"):
                spread = high - low  # infinite where the bounds are the ends of float64
                scaled = np.where(
                    np.isfinite(spread), low + share * spread, low * (1 - share) + high * share
                )
            if space.dtype == bool or np.issubdtype(space.dtype, np.integer):
                scaled = np.rint(scaled)
            return within(scaled, space)
        ends = np.cumsum(self.segments)[:-1]
        index = np.array([part.argmax() for part in np.split(action, ends)])
        if isinstance(space, spaces.Discrete):
            return space.start + int(index[0])
        if isinstance(space, spaces.MultiBinary):
            return index.reshape(space.shape).astype(space.dtype)
        return (index.reshape(space.shape) + space.start).astype(space.dtype)

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """A uniformly drawn valid action (A,), as the agent would give it."""
        if not self.segments:
            return rng.uniform(-1, 1, self.action_size).astype(np.float32)
        action, start = np.zeros(self.action_size, np.float32), 0
        for size in self.segments:
            if self.mask is None:
                action[start + rng.integers(size)] = 1
            else:
                action[start + rng.choice(self.mask[start : start + size].nonzero()[0])] = 1
            start += size
        return action

    def allows(self, action: np.ndarray) -> bool:
        """Whether the environment's mask, where it gives one, has nothing against the action."""
        return self.mask is None or bool(self.mask[action > 0.5].all())

    def _mask(self, info: Any) -> np.ndarray | None:
        """`info["action_mask"]` as booleans (A,); a part without any valid action is all valid."""
        mask: Any = info.get("action_mask") if isinstance(info, dict) and self.segments else None
        if not self.masked and mask is None:
            return None
        if not self.masked or mask is None:
            raise EnvFault(
                f'{self.name}: info["action_mask"] at step {self.steps} is '
                f"{'missing' if mask is None else 'new'}: give it always, from reset on, or never"
            )
        flat = np.concatenate([np.ravel(part) for part in leaves(mask)])
        if isinstance(self.action_space, spaces.MultiBinary) and len(flat) == len(self.segments):
            flat = np.stack([flat != 1, flat != 0], -1).ravel()  # 0: only 0, 1: only 1, 2: both
        flat = flat.astype(bool)
        if flat.shape != (self.action_size,):
            raise EnvFault(
                f'{self.name}: info["action_mask"] at step {self.steps} has {flat.size} entries, '
                f"not {self.action_size}"
            )
        for part in np.split(flat, np.cumsum(self.segments)[:-1]):  # views
            if not part.any():
                part[:] = True
        return flat

    # ------------------------------------------------------------ what the environment gives

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except BaseException as error:  # whatever it is (SystemExit too), it is the environment's
            if isinstance(error, KeyboardInterrupt) and ctrl_c_raises():
                raise
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} raised {type(error).__name__}: {error}"
            ) from error

    def _unpack(self, what: str, found: Any, names: tuple[str, ...]) -> tuple:
        if not isinstance(found, tuple) or len(found) != len(names):
            count = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} returned {count}, not "
                f"({', '.join(names)})"
            )
        return found

    def _flat(self, obs: Any) -> np.ndarray:
        """The observation as float32 (O,)."""
        try:
            if not inside(self.obs_space, obs):
                raise ValueError("another shape, or a category that is none")
            obs, pixels = flatten(self.obs_space, obs)
        except Exception as error:
            raise EnvFault(
                f"{self.name}: observation at step {self.steps} is not in {self.obs_space}: {obs!r}"
            ) from error
        size = self.obs_size - self.pixels - self.masked * self.action_size
        obs = self._number("observation", obs, (size,))
        if self.mask is None and not self.pixels:
            return obs
        mask = () if self.mask is None else self.mask
        return np.concatenate([obs, mask, pixels], dtype=np.float32)

    def _flag(self, what: str, value: Any) -> bool:
        if isinstance(value, FLAGS) or (isinstance(value, np.ndarray) and value.shape == ()):
            return bool(value)
        raise EnvFault(f"{self.name}: {what} at step {self.steps} is not True or False: {value!r}")

    def _number(self, what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A copy, as environments may reuse their arrays; float32 and finite."""
        try:
            with np.errstate(over="ignore"):
                number = np.array(value, np.float32).reshape(shape)
        except Exception:
            wanted = f"{shape[0]} numbers" if shape else "a number"
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} is not {wanted}: {value!r}"
            ) from None
        if not np.isfinite(number).all():
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} is not finite in float32: {value}"
            )
        return number


def leaves(mask: Any) -> list[Any]:
    """The arrays in nested tuples."""
    if isinstance(mask, tuple | list):
        return [leaf for part in mask for leaf in leaves(part)]
    return [mask]


def ctrl_c_raises() -> bool:
    """Whether a KeyboardInterrupt may come from the user: Python's own handler is in place, not
    the one of a run, for which Ctrl-C is a flag."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---------------------------------------------------------------- making one


def make(spec: EnvSpec, options: dict[str, Any]) -> Any:
    """The environment of an id, or of a function that makes one; ValueError for anything else."""
    wanted = "an environment's id, or a function that makes a new one each time it is called"
    if isinstance(spec, str):
        return made(spec, lambda: gym.make(spec, **options))
    if isinstance(spec, gym.vector.VectorEnv):
        raise ValueError(f"{spec} is a batch of environments: one environment is needed")
    if isinstance(spec, gym.Env):
        raise ValueError(f"{spec} is an environment; pass {wanted}, as evaluation needs several")
    if not callable(spec):
        raise ValueError(
            f"{spec!r}: {OLD_GYM}" if of_old_gym(spec) else f"{spec!r} is not {wanted}"
        )
    name = getattr(spec, "__name__", repr(spec))
    env: Any = made(name, lambda: spec(**options))
    if isinstance(env, gym.vector.VectorEnv):
        raise ValueError(f"{env} is a batch of environments: one environment is needed")
    if not isinstance(env, gym.Env):
        hint = OLD_GYM if of_old_gym(env) else f"it must make a gymnasium.Env, and gave {env!r}"
        raise ValueError(f"{name}: {hint}")
    return env


OLD_GYM = "this is gym, Gymnasium is needed (gymnasium.make, or shimmy to convert it)"


def of_old_gym(thing: Any) -> bool:
    return any(kind.__module__.split(".")[0] == "gym" for kind in type(thing).__mro__)


def made(name: str, construct: Callable[[], Any]) -> Any:
    """What `construct` makes. Gymnasium's own errors (an unknown id) go on as they are."""
    try:
        return construct()
    except gym.error.Error:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and ctrl_c_raises():
            raise
        raise EnvFault(
            f"{name} could not be made: it raised {type(error).__name__}: {error}"
        ) from error


VIDEOS = itertools.count()


def name_videos(env: Any) -> None:
    """Each episode keeps its file: `RecordVideo` counts the episodes of one environment, so those
    of several, or of a resumed run, would have the same names."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.RecordVideo):
            folder, prefix = Path(env.video_folder), env.name_prefix
            names = (f"{prefix}-{number}" for number in VIDEOS)
            env.name_prefix = next(n for n in names if not any(folder.glob(f"{n}-*")))
        env = env.env


@contextlib.contextmanager
def unfilmed(env: Any) -> Iterator[None]:
    """`RecordVideo` neither records nor counts what happens here: it is nobody's episode."""
    films = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, gym.wrappers.RecordVideo):
            films.append((env, env.episode_trigger, env.step_trigger))
            env.episode_trigger = env.step_trigger = None
        env = env.env
    try:
        yield
    finally:
        for film, *triggers in films:
            film.episode_trigger, film.step_trigger = triggers
            film.episode_id = film.step_id = -1


def make_envs(
    spec: EnvSpec, number: int, config: Config, others: Sequence[AgentEnv] = (), **options: Any
) -> list[AgentEnv]:
    """That many environments. Raises ValueError if they and the others are not all different ones:
    what one of them goes through would then happen to the others too. Closes what it has made when
    it fails."""
    envs: list[AgentEnv] = []
    try:
        for _ in range(number):
            repeat, longest = config.action_repeat, config.max_episode_steps
            envs.append(AgentEnv(spec, repeat, longest, **options))
        everyone = [*others, *envs]
        if len({id(e.env.unwrapped) for e in everyone}) < len(everyone):
            raise ValueError(
                f"{envs[0].name}: the function gave the same environment twice; it must make a new "
                "one each time it is called"
            )
    except BaseException as error:
        for env in envs:
            env.close()
        if isinstance(error, EnvFault) and (envs or others):
            error.args = (f"{error} (if only one can be there, train with Config(evals=0))",)
        raise
    return envs


def share_a_simulator(one: AgentEnv, other: AgentEnv) -> bool:
    """Whether what `other` does happens to `one` too. It is seen where `one` repeats itself when it
    is seeded; both must be reset afterwards."""
    rng = np.random.default_rng(0)

    def first_step(between: Callable[[], Any]) -> list[float]:
        one.reset(0)
        action = one.random_action(np.random.default_rng(0))
        between()
        obs, *rest = one.step(action)
        return [*obs.tolist(), *rest]

    def other_moves() -> None:
        other.reset(1)
        other.step(other.random_action(rng))

    with unfilmed(one.env), unfilmed(other.env):
        alone, beside = first_step(lambda: None), first_step(other_moves)
        shared = alone != beside and alone == first_step(lambda: None)
    one.steps = other.steps = 0
    return shared
