"""Every space of docs/environments.md: what works trains, what does not gets one sentence."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import quiet_train as quiet
from conftest import tiny_config

from dreamer import evaluate, load_agent
from dreamer.agent import DreamerAgent
from dreamer.envs import AgentEnv, EnvFault
from dreamer.networks import DiscretePolicy
from dreamer.replay_buffer import ReplayBuffer
from dreamer.utils import make_rng

S = gym.spaces


class Sampled(gym.Env):
    """Observations drawn from the space; refuses actions that its action space does not contain."""

    def __init__(self, obs: gym.Space, act: gym.Space, length: int = 7):
        self.observation_space, self.action_space = copy.deepcopy((obs, act))
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        return self.observation_space.sample(), 1.0, False, self.time >= self.length, {}


VECTOR, TWO = S.Box(-1, 1, (3,)), S.Discrete(2)
OBSERVATIONS = {  # space -> size of the vector that the agent sees
    "vector": (VECTOR, 3),
    "matrix": (S.Box(-1, 1, (2, 3)), 6),
    "0-d": (S.Box(-1, 1, ()), 1),
    "uint8": (S.Box(0, 255, (4,), np.uint8), 4),
    "Discrete": (S.Discrete(5, start=3), 5),
    "MultiDiscrete": (S.MultiDiscrete([3, 2]), 5),
    "MultiDiscrete matrix": (S.MultiDiscrete([[3, 2], [4, 2]]), 11),
    "MultiBinary": (S.MultiBinary(4), 4),
    "Dict": (S.Dict({"x": VECTOR, "on": S.Discrete(3)}), 6),
    "Tuple": (S.Tuple([S.Discrete(4), S.MultiBinary(2)]), 6),
    "nested": (S.Dict({"a": S.Tuple([VECTOR, S.Dict({"b": TWO})]), "c": S.Box(0, 1, (2, 2))}), 9),
}
ACTIONS = {  # space -> sizes of the one-hot vectors, and of the action
    "Discrete": (S.Discrete(4, start=-1), (4,), 4),
    "one action": (S.Discrete(1), (1,), 1),
    "MultiDiscrete": (S.MultiDiscrete([3, 2, 4]), (3, 2, 4), 9),
    "MultiDiscrete from": (S.MultiDiscrete([3, 2], start=[5, -2]), (3, 2), 5),
    "MultiDiscrete matrix": (S.MultiDiscrete([[2, 3], [2, 2]]), (2, 3, 2, 2), 9),
    "MultiBinary": (S.MultiBinary(3), (2, 2, 2), 6),
    "MultiBinary matrix": (S.MultiBinary((2, 2)), (2, 2, 2, 2), 8),
    "vector": (S.Box(-2, 3, (2,)), (), 2),
    "matrix": (S.Box(-1, 1, (2, 2)), (), 4),
    "0-d": (S.Box(-1, 1, ()), (), 1),
    "integers": (S.Box(-3, 3, (2,), np.int64), (), 2),
    "float64": (S.Box(-3.0, 1.0, (1,), np.float64), (), 1),
}


@pytest.mark.parametrize(("space", "size"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_every_observation_space_trains_300_steps(space, size):
    config = tiny_config(steps=300, train_ratio=1)
    agent = quiet(lambda: Sampled(space, TWO), config).agent
    assert agent.obs_size == size
    assert np.isfinite(evaluate(agent, lambda: Sampled(space, TWO), 2)).all()


@pytest.mark.parametrize(("space", "sizes", "total"), ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("actor_grad", ["reinforce", "pathwise"])
def test_every_action_space_trains_300_steps(space, sizes, total, actor_grad, tmp_path):
    config = tiny_config(steps=300, train_ratio=1, actor_grad=actor_grad)
    agent = quiet(lambda: Sampled(VECTOR, space), config, tmp_path).agent
    assert (agent.segments, agent.action_size) == (sizes, total)
    assert all(p.isfinite().all() for p in agent.parameters())
    loaded = load_agent(tmp_path / "agent.pt", "cpu")
    make = lambda: Sampled(VECTOR, space)  # noqa: E731
    np.testing.assert_array_equal(evaluate(loaded, make, 2), evaluate(agent, make, 2))


REFUSED_OBSERVATIONS = {
    "text": (S.Text(5), "wrapper"),
    "a small image": (S.Box(0, 255, (7, 7, 3), np.uint8), "at least 8 pixels long"),
    "frames": (S.Box(0, 255, (4, 8, 8, 3), np.uint8), "two or three axes"),
    "frames within": (S.Dict({"x": S.Box(0, 1, (4, 8, 8, 3))}), "two or three axes"),
    "a graph": (S.Graph(VECTOR, None), "Box, Discrete"),
    "a sequence": (S.Sequence(VECTOR), "Box, Discrete"),
    "nothing": (S.Box(-1, 1, (0,)), "empty"),
}
REFUSED_ACTIONS = {
    "unbounded": (S.Box(np.float32([-1, 0]), np.float32([1, np.inf])), "dimension 1 has no bounds"),
    "all unbounded": (S.Box(-np.inf, np.inf, (2, 2)), "dimension 0 has no bounds"),
    "a sequence": (S.Sequence(TWO), "Discrete, MultiDiscrete"),
    "hybrid": (S.Dict({"go": TWO, "how": VECTOR}), "join its parts in a wrapper"),
    "tuple": (S.Tuple([TWO]), "join its parts in a wrapper"),
    "text": (S.Text(5), "Discrete, MultiDiscrete"),
    "nothing": (S.Box(-1, 1, (0,)), "empty"),
}


@pytest.mark.parametrize(
    ("space", "advice"), REFUSED_OBSERVATIONS.values(), ids=REFUSED_OBSERVATIONS
)
def test_other_observation_spaces_get_one_sentence(space, advice):
    with pytest.raises(
        ValueError, match="^Sampled: observation space .* not supported: .*"
    ) as error:
        quiet(lambda: Sampled(space, TWO))
    part = space["x"] if isinstance(space, S.Dict) else space
    assert advice in str(error.value) and str(part) in str(error.value)


@pytest.mark.parametrize(("space", "advice"), REFUSED_ACTIONS.values(), ids=REFUSED_ACTIONS)
def test_other_action_spaces_get_one_sentence(space, advice):
    with pytest.raises(ValueError, match="^Sampled: action space .* not supported: ") as error:
        quiet(lambda: Sampled(VECTOR, space))
    assert advice in str(error.value) and str(space) in str(error.value)


def old_gym_space():
    """Something that says it is of the package gym."""
    return type("Box", (), {"__module__": "gym.spaces.box", "shape": (2,)})()


@pytest.mark.parametrize("which", ["observation_space", "action_space"])
def test_spaces_of_the_old_gym_are_named(which):
    env = Sampled(VECTOR, TWO)
    setattr(env, which, old_gym_space())
    with pytest.raises(ValueError, match="this is gym, Gymnasium is needed"):
        AgentEnv(lambda: env)


# ---------------------------------------------------------------- many actions


def test_twenty_thousand_actions_are_cheap():
    env = AgentEnv(lambda: Sampled(VECTOR, S.Discrete(20_000)))
    action = env.random_action(np.random.default_rng(0))
    assert action.shape == (20_000,) and action.sum() == 1
    replay = ReplayBuffer(100, 3, 20_000, env.segments)
    assert sum(column[0].nbytes for column in replay.rows.values()) < 100
    replay.add(np.zeros(3), action, 0.0, True, False, False)
    replay.add(np.zeros(3), np.zeros(20_000), 0.0, False, True, False)
    found = replay.sample(1, 2, np.random.default_rng(0))["action"]
    np.testing.assert_array_equal(found, [[action, np.zeros(20_000)]])


def test_a_policy_of_two_parts_by_hand():
    log_probs = [torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.1, 0.9]).log()]
    policy = DiscretePolicy(log_probs)
    action = torch.tensor([0.0, 1, 0, 0, 1])
    assert policy.log_prob(action).exp().item() == pytest.approx(0.25 * 0.9)
    assert policy.mode().tolist() == [1, 0, 0, 0, 1]
    by_hand = -(0.5 * np.log(0.5) + 0.5 * np.log(0.25) + 0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert policy.entropy().item() == pytest.approx(by_hand)
    assert policy.sample(torch.tensor([0.6, 0.05])).tolist() == [0, 1, 0, 1, 0]


def test_unimix_holds_in_each_part():
    agent = DreamerAgent(2, 5, (3, 2), tiny_config())
    with torch.no_grad():
        agent.actor.mlp[-1].bias.copy_(torch.tensor([50.0, 0, 0, -50, 50]))
        first, second = agent.actor(torch.zeros(agent.critic.mlp[0].in_features)).log_probs
    assert first.exp().min().item() == pytest.approx(0.01 / 3, rel=1e-4)
    assert second.exp().min().item() == pytest.approx(0.01 / 2, rel=1e-4)


# ---------------------------------------------------------------- masked actions


class Masked(Sampled):
    """Only one of five actions is valid, another one each step; `taken` records what came."""

    taken: list[tuple[int, int]] = []

    def info(self):
        self.valid = (self.valid + 3) % 5
        return {"action_mask": np.eye(5, dtype=np.int8)[self.valid]}

    def reset(self, **kwargs):
        self.valid = 0
        return super().reset(**kwargs)[0], self.info()

    def step(self, action):
        Masked.taken.append((self.valid, int(action)))
        return *super().step(action)[:4], self.info()


@pytest.mark.parametrize("repeat", [1, 3])
def test_no_masked_action_is_ever_taken(repeat):
    Masked.taken = []
    make = lambda: Masked(VECTOR, S.Discrete(5))  # noqa: E731
    config = tiny_config(steps=90, explore=0.5, evals=2, eval_episodes=2, action_repeat=repeat)
    agent = quiet(make, config).agent
    evaluate(agent, make, 3, greedy=True)
    evaluate(agent, make, 3, greedy=False)
    assert len(Masked.taken) > 60
    assert [valid for valid, _ in Masked.taken] == [taken for _, taken in Masked.taken]


class TwoParts(Masked):
    """A mask for each part; of the second part it allows nothing, which means all."""

    def info(self):
        return {"action_mask": (np.int8([0, 0, 1]), np.int8([0, 0]))}


def test_a_mask_of_parts_and_one_that_allows_nothing():
    env = AgentEnv(lambda: TwoParts(VECTOR, S.MultiDiscrete([3, 2])))
    obs = env.reset(0)
    assert env.mask.tolist() == [False, False, True, True, True]
    assert (env.obs_size, env.obs_parts) == (3 + 5, (0,) * 3 + (1,) * 5)
    np.testing.assert_array_equal(obs[3:], env.mask)
    env.info = env.env.unwrapped.info = lambda: {"action_mask": np.ones(3)}
    with pytest.raises(EnvFault, match="has 3 entries, not 5"):
        env.reset(0)


@pytest.mark.parametrize(
    ("first", "later", "word"), [(True, False, "missing"), (False, True, "new")]
)
def test_a_mask_is_there_always_or_never(first, later, word):
    class Sometimes(Masked):
        def info(self):
            there = first if self.time == 0 else later
            return super().info() if there else {}

    env = AgentEnv(lambda: Sometimes(VECTOR, S.Discrete(5)))
    env.reset(0)
    with pytest.raises(EnvFault, match=rf'info\["action_mask"\] at step 1 is {word}'):
        env.step(np.eye(5)[1])


def test_a_masked_policy_keeps_the_odds_of_what_is_valid():
    policy = DiscretePolicy([torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.4, 0.6]).log()])
    masked = policy.masked(torch.tensor([0.1, 0.9, 1.0, 0.2, 0.3]))
    odds = torch.cat(masked.log_probs).exp()
    np.testing.assert_allclose(odds, [0, 0.6, 0.4, 0.4, 0.6], rtol=1e-6)  # none valid: all are
    by_hand = -sum(p * np.log(p) for p in (0.6, 0.4, 0.4, 0.6))
    assert masked.entropy().item() == pytest.approx(by_hand, rel=1e-6)
    chosen = torch.tensor([0.0, 1, 0, 1, 0])
    assert masked.log_prob(chosen).exp().item() == pytest.approx(0.6 * 0.4, rel=1e-6)


def test_acting_draws_valid_actions_alone():
    agent = DreamerAgent(6, 4, True, tiny_config(), masked=True)
    obs = np.tile([0.3, -0.2, 0, 1, 0, 1], (50, 1))
    action, _ = agent.act(obs, np.ones(50, bool), rng=make_rng(agent.device, 1))
    assert set(action.argmax(-1)) == {1, 3}


def test_dreams_keep_to_the_actions_that_the_model_takes_for_valid():
    agent = DreamerAgent(6, 4, True, tiny_config(imag_horizon=6), masked=True)
    with torch.no_grad():
        agent.decoder.mlp[-1].weight.zero_()
        agent.decoder.mlp[-1].bias.copy_(torch.tensor([0.0, 0, 0.2, 0.8, 0.1, 0.9]))
    state = agent.rssm.initial(8)
    post = SimpleNamespace(deter=state.deter[None], stoch=state.stoch[None])
    dream = agent.imagine(post, torch.arange(8))
    assert set(dream.action.argmax(-1).flatten().tolist()) == {1, 3}
    agent.learn_behaviour(dream)[0].backward()
    grads = [p.grad for p in agent.actor.parameters()]
    assert all(g.isfinite().all() for g in grads) and any(g.abs().sum() > 0 for g in grads)
    assert grads[-1][[0, 2]].abs().max() < 1e-7  # what is not valid is not learned

    with torch.no_grad():  # other products, other rounding: what was taken is not impossible now
        agent.decoder.mlp[-1].bias[3] = 0.5 - 1e-7
        agent.reward.mlp[-1].weight.normal_()
    assert agent.learn_behaviour(dream)[0].abs() < 1e3


# ---------------------------------------------------------------- extreme boxes


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (np.iinfo(np.int64).min, np.iinfo(np.int64).max, np.int64),
        (0, np.iinfo(np.uint64).max, np.uint64),
        (-1.7e308, 1.7e308, np.float64),
        (-3.4e38, 3.4e38, np.float32),
    ],
)
@pytest.mark.parametrize("action", [-2.0, -1.0, -0.3, 0.0, 1.0, 5.0])
def test_huge_bounds_are_reached_and_never_left(low, high, dtype, action):
    space = S.Box(low, high, (1,), dtype)
    native = AgentEnv(lambda: Sampled(VECTOR, space)).native_action(np.float32([action]))
    assert space.contains(native)
    if abs(action) >= 1:
        assert native[0] == (space.high if action > 0 else space.low)[0]


# ---------------------------------------------------------------- numbers and categories


@pytest.mark.parametrize(
    ("space", "parts"),
    [
        (VECTOR, (0, 0, 0)),
        (S.Discrete(3), (3,)),
        (S.MultiBinary(2), (1, 1)),
        (S.Box(0, 1, (2,), np.int8), (1, 1)),
        (S.Box(0, 1, (2,), bool), (1, 1)),
        (S.Box(0, 2, (2,), np.int8), (0, 0)),
        (S.Box(0, 1, (2,)), (0, 0)),
        (S.Dict({"a": S.Box(-1, 1, (2, 1)), "b": S.MultiDiscrete([2, 4])}), (0, 0, 2, 4)),
        (S.Tuple([S.Discrete(2), VECTOR, S.Tuple([TWO])]), (2, 0, 0, 0, 2)),
    ],
)
def test_what_an_observation_is_made_of(space, parts, tmp_path):
    run = quiet(lambda: Sampled(space, TWO), run_dir=tmp_path)
    assert run.env.obs_parts == parts
    assert run.agent.obs_parts == parts == load_agent(tmp_path / "agent.pt", "cpu").obs_parts
    fixed = torch.tensor([size > 0 for size in parts for _ in range(max(1, size))])
    assert (run.agent.encoder.norm.numbers == ~fixed).all()


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (S.Discrete(3), -1),
        (S.Discrete(3), 3),
        (S.MultiDiscrete([3, 4]), np.array([3, 0])),
        (S.MultiBinary(2), np.array([7, -1])),
        (S.Box(-1, 1, (2, 3)), np.zeros((3, 2))),
        (S.Dict({"x": VECTOR, "on": S.Discrete(3)}), {"x": np.zeros(3), "on": 5}),
        (S.Dict({"x": VECTOR, "on": S.Discrete(3)}), {"x": np.zeros(3)}),
        (S.Tuple([TWO, TWO]), (1, 2)),
    ],
)
def test_a_category_or_a_form_that_is_none_is_a_fault(space, value):
    env = AgentEnv(lambda: Sampled(space, TWO))
    env.env.reset = lambda **_: (value, {})
    with pytest.raises(EnvFault, match="^Sampled: observation at step 0 is not in "):
        env.reset(0)


def test_an_action_of_flags_is_drawn_and_taken_as_such():
    env = AgentEnv(lambda: Sampled(VECTOR, S.Box(0, 1, (3,), bool)))
    rng = np.random.default_rng(0)
    drawn = np.array([env.native_action(env.random_action(rng)) for _ in range(300)])
    assert drawn.dtype == bool and abs(drawn.mean() - 0.5) < 0.1


ONE, TWO_OF_THREE, BOTH = np.int8([0, 1]), np.int8([1, 1, 0]), np.int8([1, 1])


@pytest.mark.parametrize(
    ("space", "mask", "expected"),
    [
        (
            S.MultiDiscrete([[2, 3], [2, 2]]),
            ((ONE, TWO_OF_THREE), (BOTH, ONE)),  # as `space.sample(mask=...)` takes it
            [0, 1, 1, 1, 0, 1, 1, 0, 1],
        ),
        (S.MultiBinary(3), np.int8([0, 2, 1]), [1, 0, 1, 1, 0, 1]),
        (S.Discrete(3), np.array([[1], [0], [1]]), [1, 0, 1]),
    ],
)
def test_masks_in_gymnasiums_own_forms(space, mask, expected):
    class Given(Sampled):
        def reset(self, **kwargs):
            return super().reset(**kwargs)[0], {"action_mask": mask}

    env = AgentEnv(lambda: Given(VECTOR, space))
    np.testing.assert_array_equal(env.reset(0)[3:], expected)


@pytest.mark.parametrize(
    ("said", "found"),
    [(True, 1), (np.bool_(False), 0), (1.0, 1), ("False", None), (np.array([True, False]), None)],
)
def test_success_is_one_true_or_false(said, found):
    class Says(Sampled):
        def step(self, action):
            return *super().step(action)[:4], {"is_success": said}

    agent = DreamerAgent(3, 2, True, tiny_config())
    assert evaluate(agent, lambda: Says(VECTOR, TWO), 2, details=True)[1].get("success") == found
