"""The dream page's JavaScript: its forward pass is PyTorch's, its reality Gymnasium's."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from dreamjs import EPISODE, engine, experience, run, stirred_agent

from dreamer import AgentEnv
from dreamer.rssm import State, kl_losses
from dreamer.utils import make_rng
from lab import dream_page

CLOSE = {"rtol": 1e-4, "atol": 1e-4}

# Filters or dreams an episode, and says everything that the model thinks on the way.
EPISODE_JS = """
const model = new Model(packed);
let state = model.initial();
if (start) state = { deter: Float32Array.from(start.deter), stoch: start.stoch };
const said = [];
for (let t = 0; t < uniform.length; t++) {
  const first = isFirst ? isFirst[t] : t === 0;
  if (first && obs) state = model.initial();
  const before = first && obs ? new Float32Array(model.action) : actions[t];
  state = obs
    ? model.observe(state, before, obs[t], uniform[t])
    : model.imagine([state], before, [uniform[t]])[0];
  const policy = model.policy(state);
  const { guess, obs: decoded } = model.decode([state])[0];
  const list = (x) => x && Array.from(x);
  said.push({
    deter: list(state.deter), stoch: list(state.stoch), post: list(state.post),
    prior: list(state.prior), kl: state.post && klNats(state.post, state.prior),
    guess: list(guess), decoded: list(decoded), ...model.heads(state),
    drawn: list(model.act(policy, false, noise[t])), mode: list(model.act(policy, true)),
    probs: list(policy.probs),
  });
}
return said;
"""


def compare(agent, said: list[dict], expected: dict[str, torch.Tensor], noise: torch.Tensor):
    """Everything said of each step against PyTorch's; expected: deter, stoch, prior, maybe post."""
    deter, stoch = expected["deter"], expected["stoch"]
    with torch.inference_mode():
        feat = agent.rssm.get_feat(State(deter, stoch, deter))
        policy = agent.actor(feat)
        real = {"deter": deter, "stoch": stoch, "prior": expected["prior"].exp()}
        real |= {"guess": agent.decoder(feat), "decoded": agent.decoder.predict(feat)}
        real |= {"reward": agent.reward.predict(feat), "cont": agent.cont.predict(feat)}
        real |= {"value": agent.critic.predict(feat)}
        real |= {"drawn": policy.sample(noise), "mode": policy.mode()}
        if agent.layout.discrete:
            real["probs"] = policy.log_probs[0].exp()
        if "post" in expected:
            real["post"] = expected["post"].exp()
            real["kl"] = kl_losses(expected["post"], expected["prior"], 0.0)[0]
    for name, values in real.items():
        column = np.array([row[name] for row in said], np.float32)
        values = values.flatten(1) if values.ndim > 1 else values
        close = CLOSE | ({"atol": 1e-3} if name == "decoded" else {})  # pixels are up to 255
        np.testing.assert_allclose(column, values.numpy(), err_msg=name, **close)
        assert column.std() > 1e-3, f"{name} says nothing"


@pytest.mark.parametrize("task", dream_page.TASKS)
def test_filtering_dreaming_and_all_heads_are_those_of_pytorch(task):
    agent, rows = stirred_agent(task), experience(task)
    js, packed = engine("model.js", "conv.js"), dream_page.pack(agent, rounded=False)
    obs, action, is_first = (torch.from_numpy(rows[k]) for k in ("obs", "action", "is_first"))
    if not agent.layout.discrete:
        action = 1.5 * action  # some are beyond the bounds and act as the clipped ones
    noise = agent.actor.noise((EPISODE,), make_rng(agent.device, 1))
    uniform = torch.rand(EPISODE, 1, 16, generator=make_rng(agent.device, 2))[:, 0]
    given = {"packed": packed, "uniform": uniform.tolist(), "noise": noise.tolist()}

    # Awake: the posterior of every row.
    rng = make_rng(agent.device, 2)
    with torch.inference_mode():
        embed = agent.encoder(obs)
        post, last = agent.rssm.observe(embed[None], action[None], is_first[None], rng)
    before = [[0.0] * agent.layout.action_size, *action[:-1].tolist()]
    awake = {"obs": obs.tolist(), "actions": before, "isFirst": is_first.tolist(), "start": None}
    said = run(js, EPISODE_JS, **awake, **given)
    names = {"deter": "deter", "stoch": "stoch", "post": "post_logits", "prior": "prior_logits"}
    compare(agent, said, {k: getattr(post, v)[0] for k, v in names.items()}, noise)
    assert post.stoch.flatten(0, 2).any(0).all(), "some class is never drawn"

    # Asleep: as many steps from the last state on, with the prior alone.
    rng = make_rng(agent.device, 2)
    with torch.inference_mode():
        dream = agent.rssm.imagine(last, lambda feat, t: action[t][None], EPISODE, rng)
        deter, stoch = dream.deter[0, 1:], dream.stoch[0, 1:]
        prior = agent.rssm.prior(deter)
    start = {"deter": last.deter[0].tolist(), "stoch": last.stoch[0].flatten().tolist()}
    asleep = {"obs": None, "actions": action.tolist(), "isFirst": None, "start": start}
    said = run(js, EPISODE_JS, **asleep, **given)
    compare(agent, said, {"deter": deter, "stoch": stoch, "prior": prior}, noise)


def test_many_states_advance_together_as_each_would_alone():
    code = """
    const model = new Model(packed), us = (u) => new Array(16).fill(u);
    const states = [0, 0.2, 0.9].map((u) => model.look(model.initial().deter, obs, us(u)));
    const flat = (list) => list.map(({ deter, stoch, prior }) => [...deter, ...stoch, ...prior]);
    const next = (some, i) => flat(model.imagine(some, [0.5], some.map((_, n) => us((i + n) / 4))));
    return [next(states, 1), states.flatMap((state, i) => next([state], i + 1))];"""
    packed = dream_page.pack(stirred_agent("pendulum"))
    obs = experience("pendulum")["obs"][5].tolist()
    together, alone = run(engine("model.js"), code, packed=packed, obs=obs)
    assert together == alone and len({tuple(state) for state in together}) == 3


@pytest.mark.parametrize(("shape", "bits"), [((4, 3), 8), ((5, 4), 8), ((7, 5), 7), ((3, 5), 6)])
def test_rounded_weights_are_read_with_the_scale_of_their_row(shape, bits):
    """Whatever the number of bytes: base64 fills up to a multiple of 3."""
    weight = torch.arange(-2.0, shape[0] * shape[1] - 2).reshape(shape) ** 3
    code = """
    const out = linear({ weight: unpack(packed) }, Array.from({ length: n }, (_, i) => unit(i)));
    function unit(i) { return Float32Array.from({ length: n }, (_, k) => Number(k === i)); }
    return out.map((column) => [...column]);"""
    packed = dream_page.pack_tensor(weight, bits)
    read = np.array(run(engine("model.js"), code, packed=packed, n=shape[1])).T
    half_a_step = weight.abs().numpy().max(1, keepdims=True) / (2 ** (bits - 1) - 1) / 2
    assert (np.abs(read - weight.numpy()) <= 1.001 * half_a_step).all()


WORLDS = {"CartPole-v1": "CartPole", "Pendulum-v1": "Pendulum", "Acrobot-v1": "Acrobot"}


@pytest.mark.parametrize(("env_id", "kind"), WORLDS.items())
def test_reality_is_gymnasiums_from_start_to_end(env_id, kind):
    """Random episodes, half of them from far off. The extreme draws of a start give the extremes of
    many seeds."""
    env, js = gym.make(env_id), engine("reality.js")
    agent_env, rng, starts, ended = AgentEnv(env_id), np.random.default_rng(0), [], 0
    world = env.unwrapped
    for seed in range(300):
        env.reset(seed=seed)
        starts.append(np.asarray(world.state, np.float64))
    code = f"const w = new {kind}(); return [0, 1].map((x) => (w.reset(() => x), w.state));"
    extremes = np.array(run(js, code))
    found = np.min(starts, 0), np.max(starts, 0)
    np.testing.assert_allclose(found, extremes, atol=0.05 * np.ptp(extremes, 0).max())

    code = f"""
    const world = new {kind}();
    world.state = start;
    return actions.map((a) => world.step(a)).map((s) => ({{ ...s, obs: [...s.obs] }}));"""
    for number, start in enumerate(starts[:10]):
        env.reset(seed=number)
        world.state = start * (number % 2 * (2 if kind == "CartPole" else 8) + 1)
        actions = [agent_env.random_action(rng) for _ in range(20)]
        actions = [np.rint(256 * a) / 256 for a in actions for _ in range(10)]  # exact in float32
        steps = run(js, code, start=world.state.tolist(), actions=[a.tolist() for a in actions])
        for action, step in zip(actions, steps, strict=True):
            native = 2 * action if kind == "Pendulum" else int(action.argmax())
            obs, reward, terminated, _, _ = world.step(native)
            np.testing.assert_allclose(step["obs"], obs, rtol=1e-5, atol=1e-5)
            assert step["reward"] == pytest.approx(reward, rel=1e-5, abs=1e-5)
            assert step["terminated"] == terminated
            if terminated:
                ended += 1
                break
    assert ended or kind == "Pendulum"


def test_a_held_action_is_cut_short_by_an_end_and_by_the_time_limit():
    js = engine("reality.js")
    code = """
    const world = { reset: () => 0, step: () => ({ obs: 0, reward: 1, terminated: ++n === end }) };
    let n = 0;
    const held = new Held(world, 4, 10);
    held.reset();
    return [1, 2, 3].map(() => held.step(0));"""
    steps, ended = (run(js, code, end=end) for end in (-1, 6))
    assert [step["reward"] for step in steps] == [4, 4, 2]
    assert [step["truncated"] for step in steps] == [False, False, True]
    assert [step["reward"] for step in ended[:2]] == [4, 2]
    assert [step["terminated"] for step in ended[:2]] == [False, True]
