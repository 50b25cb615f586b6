"use strict";
/* One visitor's play: a real world and a model that follows it, or dreams on without it.

It knows nothing of the screen: page.js calls `step` and shows what is in here. A step is one choice
of an action, as in the agent's training. */

const GHOSTS = 7; // further dreams, with other draws of the latent
const CONTEXT = 5; // steps that it sees of a new episode before it falls asleep again

const uniforms = (random, count) => Array.from({ length: count }, random);

/** A standard normal number (Box and Muller). */
const normal = (random) =>
  Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());

class Session {
  /** world: Held or Recorded; recorded: whether its actions are its own. */
  constructor(model, world, recorded, random = Math.random) {
    Object.assign(this, { model, world, recorded, random });
    this.ghostsOn = false;
    this.sleepAgain = false; // it slept when the last episode ended
    this.begin();
  }

  // ---------------------------------------------------------- episodes

  /** A new episode begins: nothing is remembered, and it looks. One that slept will sleep again. */
  begin() {
    this.sleepAgain ||= this.asleep;
    const obs = this.world.reset(this.random);
    this.asleep = false;
    this.age = 0; // of the dream, in steps
    this.steps = 0; // of reality, or of the dream that goes on after it
    this.ghosts = [];
    this.real = { obs, before: obs, reward: 0, total: 0, steps: 0, over: null };
    const { model } = this;
    const nothing = new Float32Array(model.action);
    this.action = nothing;
    this.taken = null; // what was done to the real thing in the last step
    this.state = model.observe(model.initial(), nothing, obs, this.draws());
    this.dream = { before: null, over: false, total: 0 };
    this.think();
    this.dream.before = this.dream.obs;
  }

  draws() {
    return uniforms(this.random, this.model.categoricals);
  }

  /** Whether reality goes on, and the dream takes the same actions. */
  get comparable() {
    return !this.asleep || !(this.real.over || this.apart);
  }

  /** Whether nothing goes on any more: time for another episode. */
  finished(driver) {
    const real = this.real.over !== null;
    return this.asleep ? this.dream.over || (real && driver === "recording") : real;
  }

  // ---------------------------------------------------------- waking and sleeping

  sleep() {
    if (this.asleep) return;
    this.asleep = true;
    this.sleepAgain = false;
    this.age = 0;
    this.apart = false; // it took other actions than the recording
    this.watching = this.state; // goes on looking, for the time when it wakes
    this.dream.total = 0; // of the rewards that it dreams
    if (this.ghostsOn) this.spawn();
  }

  /** It has the state again that looking all along would have given it. A memory that has dreamed
   * itself away from reality would need many looks to come back: no training showed it such a one. */
  wake() {
    this.sleepAgain = false;
    if (!this.asleep) return;
    this.asleep = false;
    this.age = 0;
    this.ghosts = [];
    this.dream.over = false;
    if (this.real.over) return this.begin();
    this.state = this.watching;
    this.think();
    this.dream.before = this.dream.obs; // it snaps, it does not glide
  }

  showGhosts(on) {
    this.ghostsOn = on;
    this.ghosts = [];
    if (on && this.asleep) this.spawn();
  }

  /** All ghosts start from the present state; then their draws differ. */
  spawn() {
    this.ghosts = Array.from({ length: GHOSTS }, () => ({
      state: this.state,
      obs: this.dream.obs,
      before: this.dream.obs,
    }));
  }

  // ---------------------------------------------------------- time

  /** The action of `driver`: "visitor", "sampled", "greedy" or "recording"; chosen: the visitor's. */
  choose(driver, chosen) {
    const { model, random } = this;
    if (this.recorded && (driver === "recording" || !this.asleep) && !this.real.over) {
      return this.world.action; // a recording cannot be steered
    }
    if (driver === "visitor") return chosen;
    const noise = model.discrete ? [random()] : [normal(random)];
    return model.act(this.policy, driver !== "sampled", noise);
  }

  step(driver, chosen) {
    const { model } = this;
    const action = this.choose(driver, chosen);
    this.action = action;
    this.steps++;
    this.apart ||= this.asleep && this.recorded && driver !== "recording";
    const goesOn = !this.real.over;
    this.taken = !goesOn ? null : this.recorded ? this.world.action : action;
    if (goesOn) this.act(action);

    // Its own step: with the observation, or without.
    this.dream.before = this.dream.obs;
    if (this.asleep) {
      this.age++;
      const dreams = [this, ...this.ghosts];
      const states = dreams.map(({ state }) => state);
      const next = model.imagine(states, action, dreams.map(() => this.draws()));
      dreams.forEach((dream, i) => (dream.state = next[i]));
      if (goesOn) this.watching = model.observe(this.watching, this.taken, this.real.obs, this.draws());
    } else {
      this.state = model.observe(this.state, action, this.real.obs, this.draws());
    }
    this.think();
    if (this.asleep) this.dream.total += this.heads.reward;
    this.dream.over ||= this.asleep && this.heads.cont < 0.5;
    if (this.sleepAgain && !this.asleep && this.steps === CONTEXT) this.sleep();
  }

  /** Reality's step. */
  act(action) {
    const { obs, reward, terminated, truncated } = this.world.step(action);
    const { real } = this;
    [real.before, real.obs, real.reward] = [real.obs, obs, reward];
    real.total += reward;
    real.steps++;
    real.over = terminated ? "ended" : truncated ? "time" : null;
  }

  /** What the model says of its present state. */
  think() {
    const { model, state } = this;
    const [{ obs }, ...others] = model.decode([this, ...this.ghosts].map((x) => x.state));
    this.dream.obs = obs;
    this.ghosts.forEach((ghost, i) => ([ghost.before, ghost.obs] = [ghost.obs, others[i].obs]));
    this.heads = model.heads(state);
    this.policy = model.policy(state);
    this.kl = state.post && klNats(state.post, state.prior);

    // Root mean square of the error, in standard deviations of what the agent has seen, or of pixels.
    const [guess, truth] = [obs, this.real.obs].map((x) => model.normalise(x));
    const squares = guess.map((x, i) => (x - truth[i]) ** 2);
    this.error = this.comparable ? Math.sqrt(mean(squares)) : null;
  }
}

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
