"""`AgentEnv`: a Gymnasium wrapper that holds actions, shows masks, and names what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import ACTION_SPACES, Odd, Walk, lived, quiet_train, tiny_config, walk
from gymnasium import spaces as S
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from dreamer import AgentEnv, evaluate
from dreamer.checkpoint import load_checkpoint
from dreamer.envs import EnvFault, spec_json

EYE = np.eye(3, dtype=np.float32)


def tail(env: gym.Env, seed: int = 3, steps: int = 30) -> list:
    """What an environment says of so many of its own random actions."""
    env.action_space.seed(seed)
    found = [env.reset(seed=seed)]
    for _ in range(steps):
        found.append(env.step(env.action_space.sample()))
        if found[-1][2] or found[-1][3]:
            found.append(env.reset(seed=seed + len(found)))
    return [repr(x) for x in found]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "Taxi-v4", "Blackjack-v1"])
@pytest.mark.filterwarnings("ignore:.*WARN")
def test_it_is_an_environment_as_gymnasium_checks_them(env):
    wrapped = AgentEnv(env)
    assert isinstance(wrapped, gym.Wrapper) and wrapped.name == env
    check_env(wrapped, skip_render_check=True, skip_close_check=True)  # these make it anew


def test_wrappers_fit_around_it_and_inside():
    inside = AgentEnv(lambda: gym.wrappers.TransformReward(walk("box")(), lambda r: 3 * r))
    limited = gym.wrappers.TimeLimit(AgentEnv(walk("box")), 4)
    around = gym.wrappers.TransformReward(gym.wrappers.RescaleAction(limited, -7, 7), lambda r: -r)
    action, plain = np.float32([0.5, -1]), AgentEnv(walk("box"))
    for env in (inside, around, plain):
        env.reset(seed=1)
    reward = plain.step(action)[1]
    assert inside.step(action)[1] == pytest.approx(3 * reward)
    steps = [around.step(7 * action) for _ in range(4)]
    assert steps[0][1] == pytest.approx(-reward)
    assert [step[3] for step in steps] == [False] * 3 + [True]


def test_what_makes_no_environment_is_refused():
    env = walk()()
    for wrong in (env, 7, lambda: 7, gym.vector.SyncVectorEnv([walk()])):
        with pytest.raises(ValueError, match="an environment's id is needed, or a function"):
            AgentEnv(wrong)
    with pytest.raises(gym.error.NameNotFound):
        AgentEnv("Nowhere-v0")
    with pytest.raises(EnvFault, match="^Walk could not be made: TypeError: .*action_space"):
        AgentEnv(Walk)


def test_an_action_is_held_for_as_many_steps_as_asked():
    """Nine steps in threes of 4, 4 and 1: the time limit cuts the last one short."""
    seen: list[dict] = []
    env = AgentEnv(walk(seen=seen, drift=0.01), action_repeat=4)
    env.reset(seed=0)
    answers = [env.step(action) for action in EYE]
    taken = lived(seen)[1:]
    assert [e["action"] for e in taken] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    parts = taken[:4], taken[4:8], taken[8:]
    for (obs, reward, terminated, truncated, info), part in zip(answers, parts, strict=True):
        np.testing.assert_array_equal(obs, part[-1]["obs"])
        assert reward == pytest.approx(sum(e["reward"] for e in part))
        assert not terminated and truncated == (part[-1] is taken[-1])
        if truncated:
            total = sum(e["reward"] for e in taken)
            assert info == {"return": pytest.approx(total), "length": 9}
        else:
            assert info == {}


@pytest.mark.parametrize("repeat", [1, 4])  # 25 is no multiple of 4
def test_an_endless_episode_is_cut_in_training_and_evaluation(tmp_path, repeat):
    settings = {"max_episode_steps": 25, "evals": 1, "action_repeat": repeat}
    endless = lambda: Odd(lambda obs, reward, *_: (obs, reward, False, False))  # noqa: E731
    run = quiet_train(endless, tiny_config(**settings), tmp_path)
    assert [row["length"] for row in run.episodes] == [25, 25]
    assert [(row["length"], len(row["returns"])) for row in run.evals] == [(25, 3)]
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    assert replay["is_last"].sum() == 2 and not replay["is_terminal"].any()
    assert evaluate(run.agent, endless, 2, details=True)[1]["length"] == 25


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (True, 1),
        (np.bool_(False), 0),
        (np.array([1.0]), 1),
        (0.5, 1),
        (float("nan"), None),
    ],
)
def test_success_is_yes_no_or_not_known(said, found):
    class Says(Walk):
        def step(self, action):
            return *super().step(action)[:4], {"is_success": said}

    env = AgentEnv(lambda: Says(S.Discrete(3)), max_episode_steps=2)
    env.reset(seed=0)
    assert "success" not in env.step(EYE[0])[4]
    assert env.step(EYE[0])[4].get("success") == found


def failing(*_):
    raise ZeroDivisionError("no gravity")


FAULTS = {
    "NaN observation": (lambda obs, *r: (obs * np.nan, *r), r"not finite .*\[nan nan\]"),
    "infinite observation": (lambda obs, *r: ([1, np.inf], *r), "not finite in float32: .*inf"),
    "another shape": (lambda obs, *r: (np.zeros(3), *r), "size 3 into shape"),
    "NaN reward": (lambda obs, reward, *r: (obs, float("nan"), *r), "the reward is nan"),
    "infinite reward": (lambda obs, reward, *r: (obs, -np.inf, *r), "the reward is -inf"),
    "too large a reward": (lambda obs, reward, *r: (obs, -1e39, *r), "the reward is -inf"),
    "no reward": (lambda obs, reward, *r: (obs, "much", *r), "'much'"),
    "an end that is two": (lambda o, r, *_: (o, r, np.array([True, False]), False), "ambiguous"),
    "an error": (failing, "ZeroDivisionError: no gravity"),
}


@pytest.mark.parametrize("change, message", FAULTS.values(), ids=FAULTS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_fault_names_environment_step_and_what_is_wrong(change, message):
    env = AgentEnv(lambda: Odd(change, 3))
    env.reset(seed=0)
    env.step(EYE[0]), env.step(EYE[0])
    with pytest.raises(EnvFault, match="^Odd: step at step 3 must return .*info: .*" + message):
        env.step(EYE[0])


class Returns(Walk):
    """Returns what it was given, from `reset` and `step`."""

    def __init__(self, reset=None, step=None, space=None):
        super().__init__(ACTION_SPACES["box"]())
        self.observation_space = space or self.observation_space
        self.given = reset, step

    def reset(self, **kwargs):
        usual = super().reset(**kwargs)
        return usual if self.given[0] is None else self.given[0]

    def step(self, action):
        usual = super().step(action)
        return usual if self.given[1] is None else self.given[1]


PICTURE = S.Box(0, 255, (8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    "env",
    [
        Returns(step=(np.zeros(2), 1.0, False, {})),
        Returns(step=7),
        Returns(reset=np.zeros(3)),  # no info
        Returns(reset=(np.zeros(3), {})),
        Returns(reset=(3, {}), space=S.Discrete(3)),
        Returns(reset=(np.random.default_rng(0).random((8, 8, 3)), {}), space=PICTURE),
        Returns(reset=(np.zeros((3, 8, 8), np.uint8), {}), space=PICTURE),
        Returns(reset=(np.full((8, 8, 3), 300), {}), space=PICTURE),
    ],
    ids=["four values", "a number", "no info", "shape", "category", "floats", "axes", "300"],
)
def test_what_breaks_the_interface_is_a_fault(env):
    made = AgentEnv(lambda: env)
    with pytest.raises(EnvFault, match="^Returns: (reset at step 0|step at step 1 must return)"):
        made.reset(seed=0)
        made.step(np.zeros(2, np.float32))


class Masked(Walk):
    """Gives a mask, one more after each step, and writes down which actions were taken."""

    def __init__(self, space: gym.Space, masks: list):
        super().__init__(space, drift=0.01)
        self.masks, self.taken = masks, []

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0], {"action_mask": self.masks[0]}

    def step(self, action):
        self.taken.append(action.tolist() if isinstance(action, np.ndarray) else action)
        return *super().step(action)[:4], {"action_mask": self.masks[self.time % len(self.masks)]}


def test_a_mask_is_observed_and_the_next_valid_action_is_taken():
    """Discrete from 5: action 6 of a mask 1, 0, 0, 1 becomes 8, and 8 of 1, 1, 0, 0 becomes 5.
    Where nothing is valid, what was chosen is taken."""
    masks = np.int8([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    env = AgentEnv(lambda: Masked(S.Discrete(4, start=5), list(masks)))
    assert env.layout.flags == 4 and env.layout.numbers == 2
    obs = [env.reset(seed=0)[0]]
    obs += [env.step(np.eye(4)[choice])[0] for choice in (1, 3, 1, 3)]
    assert env.unwrapped.taken == [8, 5, 6, 7]
    np.testing.assert_array_equal(np.array(obs)[:, 2:], masks[[0, 1, 2, 3, 0]])


def test_each_part_of_an_action_has_its_mask():
    space, masks = S.MultiDiscrete([3, 2], start=[0, 7]), (np.int8([0, 0, 1]), np.int8([1, 0]))
    env = AgentEnv(lambda: Masked(space, [masks]))
    assert env.reset(seed=0)[0][2:].tolist() == [0, 0, 1, 1, 0]
    env.step(np.float32([1, 0, 0, 0, 1]))
    assert env.unwrapped.taken == [[2, 7]]


@pytest.mark.parametrize("mask", [[0, -np.inf, 0], [0, -1e9, 0], [1, 0, np.nan], [1, 0], [0.5] * 3])
def test_other_masks_are_refused(mask):
    env = AgentEnv(lambda: Masked(S.Discrete(3), [np.float32(mask)]))
    with pytest.raises(EnvFault, match=r'info\["action_mask"\] must hold 1 for each valid action'):
        env.reset(seed=0)


gym.register("Wandering-v0", Walk, kwargs={"action_space": S.Discrete(3)})
gym.register("Named-v0", f"{__name__}:Returns", max_episode_steps=4)


class Shifted(gym.Wrapper, gym.utils.RecordConstructorArgs):
    def __init__(self, env, shift=1):
        gym.utils.RecordConstructorArgs.__init__(self, shift=shift)
        super().__init__(env)


class Silent(gym.Wrapper):
    """Does not record its arguments."""

    def __init__(self, env=None):
        super().__init__(env or gym.make("Named-v0"))


gym.register("Silent-v0", f"{__name__}:Silent")


def test_arguments_and_wrappers_are_kept():
    def make(**options):
        lake = gym.make("FrozenLake-v1", is_slippery=False, map_name="8x8", **options)
        return Shifted(gym.wrappers.TimeLimit(lake, 7), shift=3)

    text = spec_json(make())
    again = gym.make(EnvSpec.from_json(text), render_mode="rgb_array")
    assert isinstance(again, Shifted) and again.render_mode == "rgb_array"
    assert again._saved_kwargs == {"shift": 3}
    assert again.spec.kwargs["is_slippery"] is False
    assert again.unwrapped.desc.shape == (8, 8)
    assert spec_json(again) != text  # of another rendering
    assert spec_json(gym.make(EnvSpec.from_json(text))) == text


def test_an_id_may_stand_for_wrappers_of_any_kind():
    env = AgentEnv("Silent-v0")
    again = AgentEnv(EnvSpec.from_json(env.spec_json))
    assert again.name == "Silent-v0" and tail(again) == tail(env)
    assert again.spec_json == env.spec_json


def test_what_no_file_can_hold_is_not_known():
    assert spec_json(walk()()) is None
    assert spec_json(gym.make("Wandering-v0")) is None  # an argument that is no JSON
    named = spec_json(gym.make("Named-v0"))
    assert isinstance(gym.make(EnvSpec.from_json(named)).unwrapped, gym.Env)
    assert spec_json(Silent(gym.make("Named-v0"))) is None
    gym.register("Here-v0", lambda: Returns())
    assert spec_json(gym.make("Here-v0")) is None
    gym.register("Class-v0", Returns)
    assert "entry_point" in spec_json(gym.make("Class-v0"))
    Returns.__module__, before = "__main__", Returns.__module__
    try:
        assert spec_json(gym.make("Class-v0")) is None
    finally:
        Returns.__module__ = before
