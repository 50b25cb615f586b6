"""The dream page: what the command writes, and what a visitor's session does with it."""

import io

import numpy as np
import pytest
from dreamjs import engine, experience, run, save_agents, stirred_agent
from PIL import Image

from lab import dream_page


def test_the_command_writes_the_same_page_again_and_finds_any_other(tmp_path, monkeypatch):
    agents, out = save_agents(tmp_path / "agents"), tmp_path / "page"
    tasks = {"cartpole": ("CartPole-v1", 0), "lunar_lander": ("LunarLander-v3", 2)}
    monkeypatch.setattr(dream_page, "TASKS", tasks)
    dream_page.main(agents, out)
    first = {path: path.read_bytes() for path in out.rglob("*.*")}
    assert {path.stem for path in first} == {"index", *tasks}
    lander = dream_page.read_script(out / "agents" / "lunar_lander.js")
    assert len(lander["episodes"]) == 2
    monkeypatch.setattr(dream_page, "record", None)  # recordings stay with their weights
    for path, content in first.items():
        dream_page.main(agents, out, check=True)
        path.write_bytes(content + b" ")
        with pytest.raises(SystemExit, match="run it"):
            dream_page.main(agents, out, check=True)
        path.write_bytes(content)


def test_the_committed_page_is_up_to_date():
    dream_page.main(check=True)


FILES = "model.js", "conv.js", "reality.js", "pixels.js", "session.js"
NEW = """
  let number = 1; // pseudo-random numbers that depend on nothing else
  const random = () => (number = (number * 16807) % 2147483647) / 2147483647;
  const worlds = { cartpole: CartPole, pendulum: Pendulum, acrobot: Acrobot };
  const pictures = { pixel_pendulum: drawPendulum, pixel_cartpole: drawCartPole };
  const held = packed.episodes
    ? new Recorded(packed.episodes, packed.repeat)
    : new Held(new worlds[name.replace("pixel_", "")](), packed.repeat, 1000);
  const world = pictures[name] ? new Pictured(held, pictures[name]) : held;
  const session = new Session(new Model(packed), world, Boolean(packed.episodes), random);
  const idle = new Float32Array(session.model.action);
  idle[0] = 1;
  const look = () => ({
    asleep: session.asleep, age: session.age, error: session.error, over: session.real.over,
    real: [...session.real.obs], dream: [...session.dream.obs], kl: session.kl,
    steps: session.steps, action: [...session.action], post: session.state.post !== null,
  });
"""


def session(task: str, code: str):
    packed = dream_page.pack(stirred_agent(task), rounded=False)
    if dream_page.TASKS[task][1]:
        rows = experience(task)
        episode = {name: rows[name].tolist() for name in ("obs", "reward")}
        action = rows["action"].argmax(1).tolist()
        packed["episodes"] = [episode | {"action": action, "terminated": True}]
    return run(engine(*FILES), NEW + code, packed=packed, name=task)


@pytest.mark.parametrize("task", ["acrobot", "lunar_lander"])
def test_it_sees_awake_and_dreams_asleep(task):
    """The error is that of the decoded observation, in standard deviations."""
    seen = session(
        task,
        """
        const seen = [look()];
        const steps = (n) => { for (let i = 0; i < n; i++) session.step("visitor", idle); };
        steps(1); seen.push(look());
        session.sleep(); steps(2); seen.push(look());
        session.wake(); seen.push(look());
        steps(1); seen.push(look());
        return seen;""",
    )
    found = [(x["asleep"], x["age"], x["post"]) for x in seen]
    assert found == [(0, 0, 1), (0, 0, 1), (1, 2, 0), (0, 0, 1), (0, 0, 1)]
    _, awake, asleep, woken, _ = seen
    assert awake["kl"] > 0 and asleep["kl"] is None
    assert awake["real"] != asleep["real"] == woken["real"], "waking takes no time"
    assert woken["dream"] != asleep["dream"], "the dream snaps"
    norm = stirred_agent(task).encoder.norm
    for x in awake, woken:
        pair = [norm(norm.mean.new_tensor(x[side])).numpy() for side in ("dream", "real")]
        expected = np.sqrt(np.mean(np.square(pair[0] - pair[1])))
        assert x["error"] == pytest.approx(expected, rel=1e-3)


def test_waking_helps_the_committed_agents():
    """Asleep for 20 steps again and again, each is nearer to reality when it wakes: by a third or
    more, in most cases."""
    code = """
    const found = [];
    for (let i = 0; i < 9; i++) {
      session.begin();
      const driver = packed.episodes ? "recording" : "greedy";
      for (let t = 0; t < 8; t++) session.step(driver, idle);
      session.sleep();
      for (let t = 0; t < 20 && !session.real.over; t++) session.step(driver, idle);
      if (session.real.over) continue;
      const asleep = session.error;
      session.wake();
      found.push([asleep, session.error]);
    }
    return found;"""
    for task in dream_page.TASKS:
        packed = dream_page.read_script(dream_page.PAGE / "agents" / f"{task}.js")
        errors = run(engine(*FILES), NEW + code, packed=packed, name=task)
        asleep, woken = np.array(errors).T
        assert len(asleep) >= 6, task
        assert np.median(woken) < np.median(asleep) * 2 / 3, (task, asleep, woken)


def test_a_gif_holds_the_frames_that_it_was_made_of():
    """Noise in few colours fills the table of codes more than once."""
    frames = np.random.default_rng(0).choice(np.array([0, 66, 140, 255], np.uint8), (2, 90, 120, 4))
    code = "return [...encodeGif(frames.map((frame) => Uint8Array.from(frame)), 120, 90, 70)];"
    found = run(engine("gif.js"), code, frames=frames.reshape(2, -1).tolist())
    gif = Image.open(io.BytesIO(bytes(found)))
    assert gif.info["duration"] == 70
    for i, frame in enumerate(frames):
        gif.seek(i)
        np.testing.assert_array_equal(np.asarray(gif.convert("RGB")), frame[..., :3])


def test_a_recording_goes_its_own_way():
    """Awake the model follows the recorded actions; asleep it takes the driver's, and with others
    than the recorded ones nothing can be compared."""
    rows = experience("lunar_lander")
    awake, recorded, own = session(
        "lunar_lander",
        """
        const other = Float32Array.of(0, 0, 1, 0);
        session.step("visitor", other); const awake = look();
        session.sleep();
        session.step("recording", other); const recorded = look();
        session.step("visitor", other);
        return [awake, recorded, look()];""",
    )
    assert own["action"] == [0, 0, 1, 0]
    assert [x["error"] is None for x in (awake, recorded, own)] == [False, False, True]
    for t, seen in enumerate((awake, recorded, own)):
        assert t == 2 or seen["action"] == rows["action"][t].tolist()
        np.testing.assert_allclose(seen["real"], rows["obs"][t + 1], rtol=1e-6)
