"""Gymnasium environments as the agent sees them: flat float32 in, scaled actions out."""

import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

EnvSpec = str | Callable[[], gym.Env]
MAX_EPISODE_STEPS = 10_000  # an episode that goes on is cut here, as by a time limit


class EnvFault(ValueError):
    """An environment raised an error or gave what no agent can learn from; the message names
    environment, step and value."""


class AgentEnv:
    """One Gymnasium environment (not a batch of them) with float32 vectors in and scaled actions.

    Actions go in as the agent makes them: one-hot for `Discrete`, in [-1, 1] (clipped, then
    rescaled to the space's bounds) for `Box`. Each is held for `action_repeat` steps of the
    environment. Raises ValueError naming the space where the environment is not a `Box` vector in,
    `Discrete` or bounded `Box` vector out, and EnvFault when the environment fails. `steps` counts
    `action_repeat` for each action, also for one that an end cuts short (as the authors do);
    `episode_steps` counts what the environment has really taken.
    """

    def __init__(self, spec: EnvSpec, action_repeat: int = 1, **kwargs: Any):
        if isinstance(spec, gym.Env):
            raise ValueError(
                f"{spec} is an environment; pass its id, or a function that makes a new one each "
                "time, as evaluation needs several"
            )
        self.env = gym.make(spec, **kwargs) if isinstance(spec, str) else spec(**kwargs)
        self.name = spec if isinstance(spec, str) else type(self.env.unwrapped).__name__
        obs_space: Any = self.env.observation_space
        action_space: Any = self.env.action_space
        if not isinstance(obs_space, gym.spaces.Box) or len(obs_space.shape) != 1:
            raise ValueError(
                f"{self.name}: observation space {obs_space} is not supported; "
                "a Box of one dimension (a vector) is: gymnasium.wrappers.FlattenObservation makes "
                "one of most spaces"
            )
        self.discrete = isinstance(action_space, gym.spaces.Discrete)
        if not self.discrete and not (
            isinstance(action_space, gym.spaces.Box)
            and len(action_space.shape) == 1
            and action_space.is_bounded()
        ):
            raise ValueError(
                f"{self.name}: action space {action_space} is not supported; "
                "Discrete, or a bounded Box of one dimension, is"
            )
        self.action_space, self.action_repeat = action_space, action_repeat
        self.obs_size = obs_space.shape[0]
        self.action_size = int(action_space.n) if self.discrete else action_space.shape[0]
        self.steps = self.episode_steps = 0

    def reset(self, seed: int) -> np.ndarray:
        """Start an episode that depends on `seed` alone."""
        self.episode_steps = 0
        obs, _ = self._call("reset", lambda: self.env.reset(seed=seed))
        return self._number("observation", obs, (self.obs_size,))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """action (A,) -> obs (O,), reward, terminated, truncated: what the last of the steps that
        the action is held for gives, the reward summed over all of them. An end cuts them short.
        """
        counted, total = self.steps + self.action_repeat, 0.0
        for _ in range(self.action_repeat):
            obs, reward, terminated, truncated = self._step(action)
            total += reward
            if terminated or truncated:
                break
        self.steps = counted
        return obs, float(self._number("reward", total, ())), terminated, truncated

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool]:
        """One step of the environment."""
        self.steps += 1
        self.episode_steps += 1
        native = self.native_action(action)  # anew each time: environments may change it
        obs, reward, terminated, truncated, _ = self._call("step", lambda: self.env.step(native))
        obs = self._number("observation", obs, (self.obs_size,))
        reward = self._number("reward", reward, ())
        if self.episode_steps == MAX_EPISODE_STEPS and not (terminated or truncated):
            truncated = True
            warnings.warn(
                f"{self.name}: an episode that did not end in {MAX_EPISODE_STEPS} steps was cut "
                "there, as by a time limit",
                stacklevel=3,
            )
        return obs, float(reward), bool(terminated), bool(truncated)

    def native_action(self, action: np.ndarray) -> Any:
        """The environment's own action for the agent's (A,)."""
        if self.discrete:
            return self.action_space.start + int(np.argmax(action))
        space = self.action_space
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        scaled = low + (np.clip(action, -1, 1).astype(np.float64) + 1) / 2 * (high - low)
        if np.issubdtype(space.dtype, np.integer):
            scaled = np.rint(scaled)
        return np.clip(scaled, low, high).astype(space.dtype)  # clip: rounding errors

    def random_action(self, rng: np.random.Generator) -> np.ndarray:
        """A uniformly drawn action (A,), as the agent would give it."""
        if self.discrete:
            return np.eye(self.action_size, dtype=np.float32)[rng.integers(self.action_size)]
        return rng.uniform(-1, 1, self.action_size).astype(np.float32)

    def _call(self, what: str, function: Callable[[], tuple]) -> tuple:
        try:
            return function()
        except Exception as error:  # whatever it is, it is the environment's
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} raised {type(error).__name__}: {error}"
            ) from error

    def _number(self, what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A copy, as environments may reuse their arrays; float32 and finite."""
        try:
            with np.errstate(over="ignore"):
                number = np.array(value, np.float32).reshape(shape)
        except (TypeError, ValueError):
            wanted = f"{shape[0]} numbers" if shape else "a number"
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} is not {wanted}: {value!r}"
            ) from None
        if not np.isfinite(number).all():
            raise EnvFault(
                f"{self.name}: {what} at step {self.steps} is not finite in float32: {value}"
            )
        return number

    def close(self) -> None:
        self.env.close()


def make_envs(spec: EnvSpec, number: int, action_repeat: int = 1, **kwargs: Any) -> list[AgentEnv]:
    """That many environments. Raises ValueError if they are not all different ones: what one of
    them goes through would then happen to the others too."""
    envs = [AgentEnv(spec, action_repeat, **kwargs) for _ in range(number)]
    if len({id(e.env.unwrapped) for e in envs}) < number:
        raise ValueError(
            f"{envs[0].name}: the function gave the same environment twice; it must make a new one "
            "each time it is called"
        )
    return envs
