"""A run, one thing at a time: rows of the replay, random actions, when updates are due, the log."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from agents import as_tensors
from conftest import ACTION_SPACES, CPU, Walk, lived, quiet_train, tiny_config, walk

from dreamer import resume, run
from dreamer.agent import DreamerAgent
from dreamer.checkpoint import load_checkpoint, read_log
from dreamer.config import Config
from dreamer.envs import AgentEnv
from dreamer.networks import Decoder
from dreamer.run import PREFILL_HOLD, REPORTS, Run, pick_device

# ---------------------------------------------------------------- act


@pytest.mark.parametrize("kind", ["discrete from 5", "box"])
def test_the_replay_holds_what_happened(kind, tmp_path):
    """Row t: obs_t, the reward that came with it, the action chosen there; a row of its own for
    the final observation; a time limit is last, but not terminal."""
    seen: list[dict] = []
    quiet_train(walk(kind, seen), run_dir=tmp_path)
    seen = lived(seen)
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    rows = {name: replay[name].numpy() for name in ("obs", "action", "reward")}
    flags = {name: replay[name].numpy() for name in ("is_first", "is_last", "is_terminal")}
    env, t, ends, discrete = AgentEnv(walk(kind)), 0, [], kind != "box"
    nothing = -1 if discrete else 0  # discrete actions are kept as class numbers
    for i, event in enumerate(seen):
        if t == len(rows["reward"]):
            break  # the observation that the run ended with, not yet acted upon
        np.testing.assert_array_equal(rows["obs"][t], event["obs"])
        first = event["event"] == "reset"
        assert rows["reward"][t] == np.float32(0 if first else event["reward"])
        assert flags["is_first"][t] == first
        last = not first and (event["terminated"] or event["truncated"])
        assert flags["is_last"][t] == last
        assert flags["is_terminal"][t] == (last and event["terminated"])
        if last:
            assert (rows["action"][t] == nothing).all()
            ends.append("terminal" if event["terminated"] else "time limit")
        else:
            action = rows["action"][t]
            taken = 5 + action[0] if discrete else env.native_action(action)
            np.testing.assert_allclose(taken, seen[i + 1]["action"], rtol=1e-6)
        t += 1
    assert t == len(rows["reward"]) == 60 + len(ends)
    assert set(ends) == {"terminal", "time limit"}


def test_with_repeated_actions_a_row_is_a_choice_and_counts_as_its_steps(tmp_path):
    """Rows hold what the last of 4 steps gave and the sum of their rewards. 60 steps are 15
    choices, and as many updates as without repeats."""
    seen: list[dict] = []
    config = tiny_config(action_repeat=4, train_ratio=6, batch_size=3, seq_len=6)
    result = quiet_train(walk("discrete", seen), config, tmp_path)
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert saved["counters"][:2] == [60, 40 * 6 // 18]

    rows, held, ends = [], [], []  # (obs, reward, is_first, is_last, is_terminal), by hand
    choices = length = 0
    for event in lived(seen):
        if event["event"] == "reset":
            rows.append((event["obs"], 0.0, True, False, False))
            continue
        held.append(event)
        length += 1
        last = event["terminated"] or event["truncated"]
        if last or len(held) == 4:
            assert len({e["action"] for e in held}) == 1
            reward = sum(e["reward"] for e in held)
            rows.append((event["obs"], reward, False, last, event["terminated"]))
            held, choices = [], choices + 1
        if last:
            ends.append((4 * choices, length))
            length = 0
    assert choices == 15
    replay = saved["replay"]
    assert 0 <= len(rows) - len(replay["reward"]) <= 1  # the last one is not yet acted upon
    for t, (obs, reward, *flags) in enumerate(rows[: len(replay["reward"])]):
        np.testing.assert_array_equal(replay["obs"][t].numpy(), obs)
        assert replay["reward"][t].item() == pytest.approx(reward, rel=1e-6)
        names = ("is_first", "is_last", "is_terminal")
        assert [replay[name][t].item() for name in names] == flags
    assert any(row[-1] for row in rows) and any(row[-2] > row[-1] for row in rows)

    assert [(row["step"], row["length"]) for row in result.episodes] == ends
    assert any(length % 4 for _, length in ends)


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_what_the_actor_met_is_what_training_meets(kind, tmp_path, monkeypatch):
    """The states that `act` filtered in a run equal those that `observe` makes of the replayed
    rows, given the same random numbers: exploration, clipping and episode ends included."""
    act, met, noise = DreamerAgent.act, [], []

    def recorded(self, obs, is_first, state=None, greedy=False, rng=None):
        seed = len(met)
        noise.append(torch.rand(1, 3, generator=torch.Generator().manual_seed(seed)))
        rng = torch.Generator().manual_seed(seed)
        action, state = act(self, obs, is_first, state, greedy, rng)
        met.append(state)
        return action, state

    monkeypatch.setattr(DreamerAgent, "act", recorded)
    agent = quiet_train(walk(kind), tiny_config(train_ratio=0), tmp_path).agent
    replay = load_checkpoint(tmp_path / "checkpoint.pt")["replay"]
    # `act` never saw the final rows of episodes; what is drawn there is erased by the next row.
    acted = (~replay["is_last"]).nonzero()[:, 0].tolist()
    assert len(acted) == len(met) == 60 < len(replay["reward"])
    uniform = torch.zeros(len(replay["reward"]), 1, 3)
    uniform[acted] = torch.stack(noise)
    rows = (replay[name][None] for name in ("obs", "action", "is_first"))
    obs, action, is_first = rows
    if kind == "discrete":  # class numbers, -1 where no action was taken
        action = torch.nn.functional.one_hot(action.long() + 1, 4)[..., 0, 1:].float()
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: uniform.view(shape))
    with torch.no_grad():
        post, _ = agent.rssm.observe(agent.encoder(obs), action, is_first, agent.rng)
    for row, state in zip(acted, met, strict=True):
        torch.testing.assert_close(state.deter, post.deter[:, row], rtol=0, atol=1e-5)
        assert torch.equal(state.stoch, post.stoch[:, row])


def test_episodes_are_reset_with_seeds_of_their_own():
    def seeds(seed):
        seen: list[dict] = []
        quiet_train(walk(seen=seen), tiny_config(seed=seed, train_ratio=0))
        return [e["seed"] for e in lived(seen) if e["event"] == "reset"]

    first, again, other = seeds(1), seeds(1), seeds(2)
    assert first == again and len(set(first)) == len(first) > 5
    assert not set(first) & set(other)


# ---------------------------------------------------------------- random actions


def make_run(folder, kind: str = "box", **settings) -> Run:
    return Run(walk(kind), Config(**settings), folder, CPU)


def random_pushes(folder, count: int, **settings) -> list[int]:
    """Lengths of the random actions among so many choices of action, as they are held."""
    one = make_run(folder, **settings)
    lengths: list[int] = []
    for one.step in range(count):
        if one.random_is_due():
            fresh = one.held_steps == 0
            before, action = one.held_action, one.random_action()
            assert fresh != np.array_equal(action, before)
            if fresh:
                lengths.append(0)
            lengths[-1] += 1
    return lengths


def test_the_prefill_is_random_actions_that_are_held(tmp_path):
    settings = {"steps": 20_000, "prefill": 10_000, "explore": 0}
    lengths = random_pushes(tmp_path, 20_000, **settings)
    assert 10_000 <= sum(lengths) < 10_000 + PREFILL_HOLD  # and not one step after it
    assert set(lengths) == set(range(1, PREFILL_HOLD + 1))
    assert np.median(lengths) == pytest.approx(PREFILL_HOLD**0.5, abs=1)  # log-uniform


@pytest.mark.parametrize("longest", [1, 2, 64])
def test_later_random_actions_are_held_and_have_the_asked_share(tmp_path, longest):
    settings = {"prefill": 0, "explore": 0.1, "explore_hold": longest}
    lengths = random_pushes(tmp_path, 100_000, **settings)
    assert sum(lengths) == pytest.approx(10_000, rel=0.1)
    assert set(lengths) >= set(range(1, min(longest, 30) + 1)) and max(lengths) <= longest
    assert np.mean(np.array(lengths) >= longest**0.5) == pytest.approx(  # log-uniform
        1 - np.log(np.ceil(longest**0.5)) / np.log(longest + 1), abs=0.05
    )


def test_without_explore_later_actions_are_the_policys(tmp_path):
    assert random_pushes(tmp_path, 1_000, prefill=0, explore=0) == []


def test_a_held_action_ends_with_its_episode(tmp_path):
    one = make_run(tmp_path, "discrete", prefill=1, explore=0)
    one.step, one.held_steps = 1, 40
    one.start_episode()
    assert one.random_is_due()
    one.random_action()
    assert one.held_steps == 39
    one.end_episode(terminated=False)
    assert not one.random_is_due()


def test_the_prefill_is_counted_in_steps_of_the_environment(tmp_path):
    one = Run(walk("box"), tiny_config(action_repeat=4, explore=0), tmp_path, CPU)
    random = []
    for one.step in range(0, 60, 4):  # before each choice
        random.append(one.random_is_due())
        if random[-1]:
            one.random_action()
            one.held_steps = 0
    assert random == [True] * 5 + [False] * 10  # 20 steps


def test_a_choice_stands_until_it_is_taken(tmp_path):
    one = resume.start(walk(), tiny_config(), tmp_path, device="cpu")
    first, again = one.choose(), one.choose()
    assert first[0] is again[0] and first[1] is again[1]
    one.take(*first)
    assert one.chosen is None and one.step == len(one.replay) == 1
    one.log.close()


# ---------------------------------------------------------------- learn


def test_updates_follow_the_train_ratio_and_wait_for_the_prefill():
    config = tiny_config(steps=60, prefill=20, train_ratio=18, batch_size=3, seq_len=6)
    reports = quiet_train(walk(), config).reports
    assert [row["step"] for row in reports] == list(range(21, 61))
    assert [row["update"] for row in reports] == list(range(1, 41))


def test_no_update_is_due_before_a_window_is_full(tmp_path):
    one = resume.start(walk(), tiny_config(prefill=0, seq_len=6), tmp_path, device="cpu")
    while len(one.replay) < 6:
        assert one.updates_due() == 0
        one.act()
        one.step = 45  # rows are what counts
    assert one.updates_due() == 45 * 4 // 18
    one.log.close()


def after_prefill(folder, kind: str = "box", **settings) -> Run:
    run = resume.start(walk(kind), tiny_config(**settings), folder, device="cpu")
    while run.step < run.config.warm_up:
        run.act()
    return run


@pytest.mark.parametrize("kind", ["discrete", "box"])
def test_windows_begin_where_acting_was(kind, tmp_path):
    """Without updates each row keeps the state that acting had there. Whatever row a window starts
    in, filtering it leads to the state of that very row."""
    run = after_prefill(tmp_path, kind, prefill=30)
    window = run.replay.sample(200, 3, np.random.default_rng(0))
    with torch.no_grad():
        post, *_ = run.agent.learn_world(as_tensors(window))
    kept = run.replay.rows["deter"][window["index"][:, 0]].astype(np.float32)
    acted = ~window["is_last"][:, 0]  # the final row has no action, and nobody begins there
    assert window["is_first"][acted, 0].any() and kept[acted].std(0).min() > 0.01
    np.testing.assert_allclose(post.deter[acted, 0], kept[acted], atol=1e-3)
    assert (run.replay.rows["stoch"][: len(run.replay)].min(1) >= 0).sum() == 30  # the others: -1


def test_rows_keep_what_the_last_update_made_of_them(tmp_path):
    run = after_prefill(tmp_path, batch_size=1, model_lr=0.02)
    run.learn()
    batch = run.sample()
    index, (metrics, states) = batch["index"], run.agent.update(batch)
    before = run.replay.rows["deter"][index].copy()
    run.learned(index, metrics, states)
    kept = run.replay.rows["deter"][index]
    assert np.abs(kept - before).max() > 0.01
    np.testing.assert_allclose(kept, states.deter.detach(), atol=1e-3)
    assert (run.replay.rows["stoch"][index] == states.stoch.argmax(-1).numpy()).all()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    """From the fifth update on, the decoder's loss is NaN."""
    calls, loss = [], Decoder.loss

    def failing(self, guess, obs):
        calls.append(1)
        return loss(self, guess, obs) * (float("nan") if len(calls) >= 5 else 1)

    monkeypatch.setattr(Decoder, "loss", failing)
    monkeypatch.setattr("dreamer.training.CHECKPOINT_SECONDS", 0.0)
    with pytest.raises(FloatingPointError, match=r"Walk: update 5 at step \d+ .*loss"):
        quiet_train(walk(), run_dir=tmp_path)
    assert len(calls) == 5
    saved = resume.load_agent(tmp_path / "checkpoint.pt", "cpu")
    assert all(p.isfinite().all() for p in saved.state_dict().values())


@pytest.mark.parametrize(
    ("offset", "spread", "warned"),
    [(101_325, 50, True), (0, 1e-3, True), (0, 1, False), (7, 0, False)],
)
def test_numbers_too_faint_to_be_seen_are_named(offset, spread, warned):
    """The second number: of a pressure the agent would see nothing; a constant says nothing."""

    class Faint(Walk):
        def step(self, action):
            obs, *rest = super().step(action)
            return self.seen_as(obs), *rest

        def reset(self, **kwargs):
            obs, info = super().reset(**kwargs)
            return self.seen_as(obs), info

        def seen_as(self, obs):
            return np.array([obs[0], offset + spread * obs[1]], np.float32)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_train(lambda: Faint(ACTION_SPACES["discrete"]()))
    found = [str(w.message) for w in caught if "barely" in str(w.message)]
    assert len(found) == warned
    assert all("Faint: observation dimensions 1 barely vary" in text for text in found)


# ---------------------------------------------------------------- report


def test_the_log_tells_every_episode_once(tmp_path):
    seen: list[dict] = []
    result = quiet_train(walk(seen=seen), tiny_config(evals=3, eval_cost=9), tmp_path)
    steps = [row["step"] for row in result.episodes]
    assert len(set(steps)) == len(steps) and steps == sorted(steps)
    assert sum(row["length"] for row in result.episodes) == steps[-1] <= 60
    totals, total = [], 0.0
    trained = [event for event in seen if event["env"] is result.env.env]
    assert len(trained) < len(seen)  # evaluations have environments of their own
    for event in trained:
        total = 0.0 if event["event"] == "reset" else total + event["reward"]
        if event["event"] == "step" and (event["terminated"] or event["truncated"]):
            totals.append(total)
    np.testing.assert_allclose([row["return"] for row in result.episodes], totals, rtol=1e-5)
    assert [len(row["returns"]) for row in result.evals] == [1, 2, 3]
    for kind in (result.reports, result.evals):
        steps = [row["step"] for row in kind]
        assert len(set(steps)) == len(steps) and steps == sorted(steps) and steps


def test_reports_and_evaluations_are_spread_evenly(tmp_path):
    """Whatever the steps are divided by, and nothing is said before the first update."""
    one = make_run(tmp_path, "discrete", steps=1_000, evals=3, eval_cost=50)
    one.summed = one.updates = 1
    reports, evaluations = [], []
    for one.step in range(1_001):
        if one.report_due():
            reports.append(one.step)
            one.reported = one.step
        if one.evaluation_due():
            evaluations.append(one.step)
            one.evaluated = one.step
    assert reports == list(range(5, 1_001, 1_000 // REPORTS))
    assert evaluations == [334, 667, 1_000]  # the first steps from a third, two thirds, all on
    one.step, one.summed, one.updates, one.reported, one.evaluated = 1_000, 0, 0, 0, 0
    assert not one.report_due() and not one.evaluation_due()


def test_a_report_averages_over_the_updates_since_the_last_one(tmp_path):
    one = after_prefill(tmp_path)
    batch = one.sample()
    metrics, states = one.agent.update(batch)
    for losses in ([1.0, 3.0, 8.0], [5.0]):
        for loss in losses:
            changed = {**metrics, "loss": torch.tensor(loss)}
            one.learned(batch["index"], changed, states)
        assert one.report()["loss"] == sum(losses) / len(losses)
    assert not one.report_due()
    rows = read_log(tmp_path / "log.jsonl", "report")
    assert [(row["update"], row["loss"]) for row in rows] == [(3, 4.0), (4, 5.0)]


def test_an_evaluation_says_returns_dreams_and_values(tmp_path):
    one = quiet_train(walk(), tiny_config(evals=3, eval_cost=9), tmp_path)
    *_, row = read_log(tmp_path / "log.jsonl", "eval")
    assert row == one.evals[-1] and row["step"] == 60 and row["episodes"] == 3
    assert row["return"] == pytest.approx(np.mean(row["returns"])) and len(row["returns"]) == 3
    wanted = {"value_pred", "value_real", "value_corr", "minutes"}
    wanted |= {"dream_obs_error", "naive_obs_error", "dream_reward_error"}
    assert wanted <= row.keys()


# ---------------------------------------------------------------- devices


def test_pick_device():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="auto, cpu or cuda, got 'tpu'"):
        pick_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_cuda_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="no CUDA GPU"):
        pick_device("cuda")


def test_a_run_on_the_cpu_has_one_thread_and_flushes_denormal_numbers():
    tiny = torch.tensor(1e-40)
    assert tiny * 1 != 0
    run.tune_cpu()
    assert torch.get_num_threads() == 1
    if torch.set_flush_denormal(True):  # where the processor can
        assert tiny * 1 == 0
