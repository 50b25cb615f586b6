"""The dream page's pictures: those of lab/pixels.py, and an agent that acts on them."""

import numpy as np
import pytest
from dreamjs import engine, run

from lab import dream_page, pixels

FILES = "model.js", "conv.js", "reality.js", "pixels.js", "session.js"


@pytest.mark.parametrize("task", ["Pendulum", "CartPole"])
def test_pictures_are_those_of_gymnasium(task):
    """On average to a quarter of one of 256 shades, and in each pixel to 24: edges are smoothed in
    another way. An angle that is off by 0.05 makes 1.3 and 0.8 on average."""
    env, rng, given, real = pixels.make(f"{task}-v1"), np.random.default_rng(0), [], []
    env.reset(seed=0)
    far = [4, 0] if task == "Pendulum" else [2.4, 0, 0.25, 0]
    for torque in [None, *rng.uniform(-2, 2, 40)]:
        env.unwrapped.state = rng.uniform(-1, 1, len(far)) * far
        env.unwrapped.last_u = torque
        given.append([env.unwrapped.state.tolist(), torque])
        real.append(env.observation(None).flatten().astype(int))
    code = f"return given.map(([state, torque]) => [...draw{task}(state, torque)]);"
    off = np.abs(run(engine("pixels.js"), code, given=given) - np.array(real))
    assert off.mean(1).max() < 0.25 and off.max() <= 24


LIMITS = {"Pendulum": (200, -400), "CartPole": (500, 450)}  # steps, and a return that is beaten


@pytest.mark.parametrize("kind", LIMITS)
def test_agents_that_learned_from_gymnasiums_pixels_act_well_on_these(kind):
    """Random actions come to about -1200 and 22."""
    code = f"""
    let number = 3;
    const random = () => (number = (number * 16807) % 2147483647) / 2147483647;
    const world = new Pictured(new Held(new {kind}(), packed.repeat, limit), draw{kind});
    const session = new Session(new Model(packed), world, false, random);
    while (!session.real.over) session.step("greedy");
    return session.real.total;"""
    name, (limit, beaten) = f"pixel_{kind.lower()}.js", LIMITS[kind]
    packed = dream_page.read_script(dream_page.PAGE / "agents" / name)
    assert run(engine(*FILES), code, packed=packed, limit=limit) > beaten
