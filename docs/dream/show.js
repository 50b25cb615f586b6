"use strict";
/* What the page does by itself until a visitor takes over, and what it counts while it is open. */

const AWAKE = 3000, ASLEEP = 4500; // milliseconds of the show's acts
const OPENING = 8; // steps after which the curtain rises: something moves already

/** The agent swings the pendulum up, closes its eyes for a while, and opens them again. */
const opening = {
  on: false,
  time: 0,

  start() {
    if (!this.on) return; // a visitor was faster
    document.body.classList.add("opening");
    toggleGhosts(true);
    this.begin();
    if (!settings.paused) return;
    for (let i = 0; i < 40; i++) step(); // a still of the second act, for who wants no motion
    this.turn();
    for (let i = 0; i < 40; i++) step();
  },

  /** An episode that begins far below, so that there is something to see. */
  begin() {
    if (session.asleep) session.wake();
    do session.begin();
    while (session.real.obs[0] > -0.5);
    news = "The agent swings the pendulum up. ";
    this.time = clock.due = clock.rest = 0;
    for (let i = 0; i < OPENING; i++) step();
  },

  pass(milliseconds) {
    if (session.finished(settings.driver)) return;
    this.time += milliseconds;
    if (this.time > (session.asleep ? ASLEEP : AWAKE)) this.turn();
  },

  turn() {
    this.time = 0;
    toggleSleep();
    news = session.asleep
      ? "It has closed its eyes. Everything on the right is imagined. "
      : "It has opened its eyes: the dream jumps to where reality is. ";
    show();
  },

  /** Whoever does anything takes over, where the show stands; to move on, or to let it play, is
   * nothing yet. */
  stop({ key, target }) {
    const plays = settings.paused && (key === "p" || target.closest?.("#play, #paused"));
    if (!this.on || plays || key === "Tab") return;
    this.on = false;
    news = "";
    document.body.classList.remove("opening");
  },
};

/** How long reality has lasted without looking, and what an episode of the visitor's own earned. */
const tally = {
  bests: {}, // task -> the visitor's best return

  begin() {
    Object.assign(this, { awake: 0, drivers: new Set(), done: false });
  },

  clear() {
    this.last = "";
    this.begin();
  },

  /** After each step. */
  add() {
    const { real, asleep, age } = session;
    if (session.steps === 1) this.begin();
    this.drivers.add(settings.driver);
    if (this.done) return;
    if (!asleep) this.awake++;
    if (!real.over) return;
    this.done = true;
    if (asleep && task.endures) this.last = `Awake for ${this.awake} steps; asleep, reality lasted ${age}. `;
    if (session.recorded || this.drivers.size > 1 || !this.drivers.has("visitor")) return;
    this.bests[task.name] = Math.max(real.total, this.bests[task.name] ?? -Infinity);
  },

  /** What is known, in one line; score: the agent's mean return. */
  text(score) {
    const best = this.bests[task.name];
    if (session.recorded) return this.last;
    if (best === undefined) {
      const call = `Beat the agent: its mean return is ${short(score, 0)}.`;
      return settings.driver === "visitor" ? this.last + call : this.last;
    }
    const end = best > score ? ": you have beaten it!" : best === score ? ": a draw!" : ".";
    return `${this.last}Your best return is ${short(best, 0)}, the agent’s mean ${short(score, 0)}${end}`;
  },
};
