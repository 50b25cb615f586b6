"""`AgentEnv`: a Gymnasium wrapper that holds actions, shows masks, and names what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import ACTION_SPACES, Walk, lived, walk
from gymnasium import spaces as S
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from dreamer import AgentEnv
from dreamer.envs import EnvFault, spec_json, success_of
from lab.spaces import TwoJoints

EYE = np.eye(3, dtype=np.float32)


@pytest.mark.parametrize("env", ["Pendulum-v1", "Taxi-v4", "Blackjack-v1"])
@pytest.mark.filterwarnings("ignore:.*WARN")
def test_it_is_an_environment_as_gymnasium_checks_them(env):
    wrapped = AgentEnv(env)
    assert isinstance(wrapped, gym.Wrapper) and wrapped.name == env
    check_env(wrapped, skip_render_check=True, skip_close_check=True)  # these make it anew


def test_wrappers_fit_around_it_and_inside():
    inside = AgentEnv(lambda: gym.wrappers.TransformReward(walk("box")(), lambda r: 3 * r))
    around = gym.wrappers.RescaleAction(gym.wrappers.TimeLimit(AgentEnv(walk("box")), 4), -7, 7)
    action, plain = np.float32([0.5, -1]), AgentEnv(walk("box"))
    for env in (inside, around, plain):
        env.reset(seed=1)
    reward = plain.step(action)[1]
    assert inside.step(action)[1] == pytest.approx(3 * reward)
    steps = [around.step(7 * action) for _ in range(4)]
    assert steps[0][1] == pytest.approx(reward) and [step[3] for step in steps] == [0, 0, 0, 1]


def test_what_makes_no_environment_is_refused():
    for wrong in (walk()(), 7, lambda: 7, gym.vector.SyncVectorEnv([walk()])):
        with pytest.raises(ValueError, match="an environment's id is needed, or a function"):
            AgentEnv(wrong)
    with pytest.raises(gym.error.NameNotFound):
        AgentEnv("Nowhere-v0")
    with pytest.raises(EnvFault, match="^Walk could not be made: TypeError: .*action_space"):
        AgentEnv(Walk)


def test_options_go_to_what_makes_it():
    assert AgentEnv(lambda drift: walk(drift=drift)(), drift=7).unwrapped.drift == 7
    assert AgentEnv("CartPole-v1", render_mode="rgb_array").render_mode == "rgb_array"


def test_an_action_is_held_for_as_many_steps_as_asked():
    """Nine steps in threes of 4, 4 and 1: the time limit cuts the last one short. What the
    environment does to its action does not matter, and the next episode counts anew."""
    seen: list[dict] = []

    class Halving(Walk):
        def step(self, action):
            found = super().step(action.copy())
            action *= 0.5
            return found

    env = AgentEnv(lambda: Halving(ACTION_SPACES["box"](), seen, drift=0.01), action_repeat=4)
    for episode in range(2):
        env.reset(seed=episode)
        answers = [env.step(np.float32(action)) for action in ([0, 0], [1, 1], [-1, 0.5])]
        taken = lived(seen)[1:]
        assert [[*e["action"]] for e in taken] == 4 * [[0, 5]] + 4 * [[2, 10]] + [[-2, 7.5]]
        parts = taken[:4], taken[4:8], taken[8:]
        for (obs, reward, terminated, truncated, _), part in zip(answers, parts, strict=True):
            np.testing.assert_array_equal(obs, part[-1]["obs"])
            assert reward == pytest.approx(sum(e["reward"] for e in part))
            assert not terminated and truncated == (part[-1] is taken[-1])
        total = pytest.approx(sum(e["reward"] for e in taken))
        assert [a[4] for a in answers] == [{}, {}, {"return": total, "length": 9}]
        seen.clear()


def test_success_is_yes_no_or_not_known():
    said = True, np.bool_(False), np.array([1.0]), np.nan
    found = [success_of({"is_success": value}) for value in said]
    assert found == [{"success": 1.0}, {"success": 0.0}, {"success": 1.0}, {}]


def test_actions_can_be_taken_again_after_a_reset():
    """What a resumed run does; the history of another seed, and one that is too long, are not."""
    env, rng = AgentEnv(walk(drift=0.01)), np.random.default_rng(0)
    actions = [env.random_action(rng) for _ in range(9)]
    env.reset(seed=5)
    steps = [env.step(action) for action in actions]
    obs, info = env.reset(seed=5, options={"actions": {5: actions[:4], 6: actions}})
    np.testing.assert_array_equal(obs, steps[3][0])
    assert info["reward"] == steps[3][1]
    again = [env.step(action) for action in actions[4:]]
    np.testing.assert_array_equal(again[0][0], steps[4][0])
    assert again[-1][4] == steps[-1][4] != {}
    assert np.isnan(env.reset(seed=5, options={"actions": {5: actions}})[1]["reward"])


class Faulty(Walk):
    """From its third step on returns what `change` makes of its own answer, or from `reset`."""

    def __init__(self, method, change, kind):
        super().__init__(ACTION_SPACES[kind]())
        self.method, self.change, self.count = method, change, 0

    def reset(self, **kwargs):
        found = super().reset(**kwargs)
        return self.change(*found) if self.method == "reset" else found

    def step(self, action):
        self.count += 1
        found = super().step(action)
        return self.change(*found) if self.method == "step" and self.count > 2 else found


FAULTS = {
    "NaN observation": ("step", lambda obs, *r: (obs * np.nan, *r), r"not finite .*\[nan nan\]"),
    "another shape": ("step", lambda obs, *r: (np.zeros(3), *r), "size 3 into shape"),
    "NaN reward": ("step", lambda obs, _, *r: (obs, np.nan, *r), "the reward is nan"),
    "too large a reward": ("step", lambda obs, _, *r: (obs, -1e39, *r), "the reward is -inf"),
    "too large a sum": ("step", lambda obs, _, *r: (obs, 2e38, *r), "the reward is inf"),
    "no number": ("step", lambda obs, _, *r: (obs, "much", *r), "'much'"),
    "ends": ("step", lambda o, r, *_: (o, r, np.array([True, False]), False, {}), "ambiguous"),
    "an error": ("step", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    "four values": ("step", lambda o, r, end, *_: (o, r, end, {}), "ValueError: not enough values"),
    "an error in reset": ("reset", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    "no info": ("reset", lambda obs, info: obs, "(Type|Value)Error: "),
}


@pytest.mark.parametrize("kind", ["discrete", "box"])
@pytest.mark.parametrize(("method", "change", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_fault_names_environment_step_and_what_is_wrong(method, change, message, kind):
    where = {"reset": "reset at step 0: ", "step": "step at step 3 must return .*info: "}[method]
    taken = []
    with pytest.raises(EnvFault, match=f"^Faulty: {where}.*{message}"):
        env = AgentEnv(lambda: Faulty(method, change, kind), action_repeat=2)
        env.reset(seed=0)
        for _ in range(2):
            taken.append(env.step(env.random_action(np.random.default_rng(0))))
    assert len(taken) == (method == "step")


def test_an_environment_without_spaces_is_named():
    with pytest.raises(EnvFault, match="^Bare: "):
        AgentEnv(type("Bare", (gym.Env,), {}))


def test_a_failing_close_loses_nothing():
    class Slammed(Walk):
        def close(self):
            raise RuntimeError("slammed")

    with pytest.warns(UserWarning, match="^Slammed: close failed: RuntimeError"):
        AgentEnv(lambda: Slammed(S.Discrete(3))).close()


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


def test_a_mask_is_observed_and_an_invalid_action_becomes_any_valid_one():
    """Discrete from 5. Valid actions stay; where nothing is valid, what was chosen is taken. The
    mask of each held step counts. The same seed draws the same."""
    masks = np.int8([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    env, held = (
        AgentEnv(lambda: Masked(S.Discrete(4, start=5), list(masks)), repeat) for repeat in (1, 4)
    )
    assert env.layout.flags == 4 and env.layout.numbers == 2
    found = []
    for seed in [*range(20), 0]:
        obs = [env.reset(seed=seed)[0]]
        obs += [env.step(np.eye(4)[choice])[0] for choice in (1, 3, 1, 3, 0)]
        np.testing.assert_array_equal(np.array(obs)[:, 2:], masks[[0, 1, 2, 3, 0, 1]])
        found.append(env.unwrapped.taken[-5:])
    assert [set(taken) for taken in np.array(found).T] == [{5, 8}, {5, 6}, {6}, {7}, {5}]
    assert found[0] == found[-1]
    held.reset(seed=0)
    held.step(np.eye(4)[3])
    first, second, *rest = held.unwrapped.taken
    assert first == 8 and second in (5, 6) and rest == [8, 7]


def test_each_part_of_an_action_has_its_mask():
    space, masks = S.MultiDiscrete([3, 2], start=[0, 7]), (np.int8([0, 0, 1]), np.int8([1, 0]))
    env = AgentEnv(lambda: Masked(space, [masks]))
    assert env.reset(seed=0)[0][2:].tolist() == [0, 0, 1, 1, 0]
    env.step(np.float32([1, 0, 0, 0, 1]))
    assert env.unwrapped.taken == [[2, 7]]


@pytest.mark.parametrize("mask", [[0, -np.inf, 0], [1, 0, np.nan], [1, 0], [0.5] * 3])
def test_other_masks_are_refused(mask):
    env = AgentEnv(lambda: Masked(S.Discrete(3), [np.float32(mask)]))
    with pytest.raises(EnvFault, match=r'info\["action_mask"\] must hold 1 for each valid action'):
        env.reset(seed=0)


class Shifted(gym.Wrapper, gym.utils.RecordConstructorArgs):
    def __init__(self, env, shift=1):
        gym.utils.RecordConstructorArgs.__init__(self, shift=shift)
        super().__init__(env)


def test_arguments_and_wrappers_are_kept():
    lake = gym.make("FrozenLake-v1", is_slippery=False, map_name="8x8")
    text = spec_json(Shifted(gym.wrappers.TimeLimit(lake, 7), shift=3))
    again = gym.make(EnvSpec.from_json(text))
    assert isinstance(again, Shifted) and again._saved_kwargs == {"shift": 3}
    assert again.spec.kwargs["is_slippery"] is False and again.unwrapped.desc.shape == (8, 8)
    assert spec_json(again) == text


def wrapped():
    return gym.Wrapper(gym.make("Named-v0"))


def test_what_no_file_can_hold_is_not_known():
    gym.register("Named-v0", TwoJoints)
    named = spec_json(gym.make("Named-v0"))
    assert isinstance(gym.make(EnvSpec.from_json(named)).unwrapped, TwoJoints)
    gym.register("Wandering-v0", Walk, kwargs={"action_space": S.Discrete(3)})  # no JSON
    gym.register("Here-v0", lambda: TwoJoints())
    made = [gym.make(name) for name in ("Wandering-v0", "Here-v0")]
    for env in (*made, walk()(), gym.Wrapper(gym.make("Named-v0"))):
        assert spec_json(env) is None
    gym.register("Wrapped-v0", f"{__name__}:wrapped")
    own = AgentEnv("Wrapped-v0").spec_json  # by an id Gymnasium puts all wrappers around it
    assert AgentEnv(EnvSpec.from_json(own)).name == "Wrapped-v0"
