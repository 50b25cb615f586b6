"use strict";
/* The real thing: Gymnasium's CartPole, Pendulum and Acrobot, equation by equation, and recorded
episodes of LunarLander, whose simulator is not rebuilt here.

A world has reset(random) -> obs and step(action) -> { obs, reward, terminated }, with actions as the
agent makes them: one-hot, or in [-1, 1]. The tests compare each step with Gymnasium's
(tests/test_dream_model.py). */

const indexOf = (onehot) => onehot.indexOf(Math.max(...onehot));
const clip = (x, low, high) => Math.max(low, Math.min(high, x));
const between = (random, low, high) => low + (high - low) * random();

/** An angle in [-π, π). */
function wrapped(angle) {
  const turn = 2 * Math.PI;
  return ((((angle + Math.PI) % turn) + turn) % turn) - Math.PI;
}

class CartPole {
  reset(random) {
    this.state = [0, 0, 0, 0].map(() => between(random, -0.05, 0.05));
    return this.observe();
  }

  observe() {
    return Float32Array.from(this.state);
  }

  step(action) {
    let [x, speed, angle, spin] = this.state;
    const force = indexOf(action) === 1 ? 10 : -10; // newton
    const [gravity, poleMass, mass, half, tau] = [9.8, 0.1, 1.1, 0.5, 0.02];
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    const push = (force + poleMass * half * spin ** 2 * sin) / mass;
    const angular =
      (gravity * sin - cos * push) / (half * (4 / 3 - (poleMass * cos ** 2) / mass));
    const linear = push - (poleMass * half * angular * cos) / mass;
    x += tau * speed;
    speed += tau * linear;
    angle += tau * spin;
    spin += tau * angular;
    this.state = [x, speed, angle, spin];
    const terminated = Math.abs(x) > 2.4 || Math.abs(angle) > (12 * 2 * Math.PI) / 360;
    return { obs: this.observe(), reward: 1, terminated };
  }
}

class Pendulum {
  reset(random) {
    this.state = [between(random, -Math.PI, Math.PI), between(random, -1, 1)];
    return this.observe();
  }

  observe() {
    const [angle, spin] = this.state; // 0 is upright, and the angle grows anticlockwise
    return Float32Array.of(Math.cos(angle), Math.sin(angle), spin);
  }

  step(action) {
    const [angle, spin] = this.state;
    const torque = 2 * clip(action[0], -1, 1);
    const cost = wrapped(angle) ** 2 + 0.1 * spin ** 2 + 0.001 * torque ** 2;
    const faster = clip(spin + (15 * Math.sin(angle) + 3 * torque) * 0.05, -8, 8);
    this.state = [angle + faster * 0.05, faster];
    return { obs: this.observe(), reward: -cost, terminated: false };
  }
}

class Acrobot {
  reset(random) {
    this.state = [0, 0, 0, 0].map(() => between(random, -0.1, 0.1));
    return this.observe();
  }

  observe() {
    const [one, two, spin, spinTwo] = this.state; // angles of the links, hanging down at 0
    return Float32Array.of(
      Math.cos(one), Math.sin(one), Math.cos(two), Math.sin(two), spin, spinTwo,
    );
  }

  /** Time derivatives of the state under a torque at the middle joint. */
  static slope([one, two, spin, spinTwo], torque) {
    const [cos, sin] = [Math.cos(two), Math.sin(two)]; // masses, lengths and inertias are all 1
    const [centre, gravity] = [0.5, 9.8]; // of a link's mass
    const d1 = centre ** 2 + (1 + centre ** 2 + 2 * centre * cos) + 2;
    const d2 = centre ** 2 + centre * cos + 1;
    const phi2 = centre * gravity * Math.cos(one + two - Math.PI / 2);
    const phi1 =
      -centre * spinTwo ** 2 * sin -
      2 * centre * spinTwo * spin * sin +
      (centre + 1) * gravity * Math.cos(one - Math.PI / 2) +
      phi2;
    const second =
      (torque + (d2 / d1) * phi1 - centre * spin ** 2 * sin - phi2) /
      (centre ** 2 + 1 - d2 ** 2 / d1);
    return [spin, spinTwo, -(d2 * second + phi1) / d1, second];
  }

  step(action) {
    const [torque, dt] = [indexOf(action) - 1, 0.2];
    const ahead = (slope, time) => this.state.map((s, i) => s + time * slope[i]);
    const k1 = Acrobot.slope(this.state, torque); // Runge-Kutta of fourth order
    const k2 = Acrobot.slope(ahead(k1, dt / 2), torque);
    const k3 = Acrobot.slope(ahead(k2, dt / 2), torque);
    const k4 = Acrobot.slope(ahead(k3, dt), torque);
    const mean = k1.map((k, i) => (k + 2 * k2[i] + 2 * k3[i] + k4[i]) / 6);
    const [one, two, spin, spinTwo] = ahead(mean, dt);
    this.state = [
      wrapped(one),
      wrapped(two),
      clip(spin, -4 * Math.PI, 4 * Math.PI),
      clip(spinTwo, -9 * Math.PI, 9 * Math.PI),
    ];
    const terminated = -Math.cos(this.state[0]) - Math.cos(this.state[0] + this.state[1]) > 1;
    return { obs: this.observe(), reward: terminated ? 0 : -1, terminated };
  }
}

/** An action held for `repeat` steps of a world, which an end cuts short; rewards are summed. After
 * `limit` steps of the world the episode is over too, as by Gymnasium's time limit. */
class Held {
  constructor(world, repeat, limit) {
    Object.assign(this, { world, repeat, limit });
  }

  reset(random) {
    this.steps = 0;
    return this.world.reset(random);
  }

  step(action) {
    let total = 0;
    for (let i = 0; i < this.repeat; i++) {
      const { obs, reward, terminated } = this.world.step(action);
      total += reward;
      const truncated = ++this.steps >= this.limit && !terminated;
      if (terminated || truncated || i === this.repeat - 1) {
        return { obs, reward: total, terminated, truncated };
      }
    }
  }
}

/** Recorded episodes, { obs, action, reward, terminated } each, played one after another. They go
 * their own way: what an action would change is not known. */
class Recorded {
  constructor(episodes, repeat) {
    this.episodes = episodes.map((episode) => ({
      ...episode,
      obs: episode.obs.map((row) => Float32Array.from(row)),
    }));
    this.repeat = repeat;
    this.number = -1;
  }

  get episode() {
    return this.episodes[this.number];
  }

  /** The action that was really taken in the present row, as a one-hot vector. */
  get action() {
    const onehot = new Float32Array(4);
    onehot[this.episode.action[this.row]] = 1;
    return onehot;
  }

  reset() {
    this.number = (this.number + 1) % this.episodes.length;
    this.row = 0;
    return this.episode.obs[0];
  }

  step() {
    const { obs, reward, terminated } = this.episode;
    this.row++;
    const last = this.row === obs.length - 1;
    return {
      obs: obs[this.row],
      reward: reward[this.row],
      terminated: last && terminated,
      truncated: last && !terminated,
    };
  }
}
