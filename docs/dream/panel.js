"use strict";
/* The panel below the pictures: grids, curves, bars and numbers of what the model thinks. */

const STEPS = 120; // that a curve shows
const GUTTER = 42; // pixels to the left of a curve, for the ends of its range

const byId = (id) => document.getElementById(id);

const looks = new Map(); // what `colours` has found
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => looks.clear());

/** The colours of an element, from the style sheet. */
function colours(element) {
  const key = `${element.id} ${element.className}`;
  if (!looks.has(key)) {
    const style = getComputedStyle(element);
    const names = ["ink", "accent", "faint", "line", "soft", "dream", "force", "shade", "card"];
    const found = names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]);
    looks.set(key, Object.fromEntries(found));
  }
  return looks.get(key);
}

/** A canvas, cleared, with one unit to a pixel of the page: its context, width and height. */
function cleared(canvas) {
  const ctx = prepare(canvas, { width: canvas.clientWidth, height: canvas.clientHeight });
  ctx.translate(-canvas.clientWidth / 2, -canvas.clientHeight / 2);
  return [ctx, canvas.clientWidth, canvas.clientHeight];
}

// ------------------------------------------------------------ latents

/** Probabilities (S * K) as squares, one row for each categorical; drawn (S * K): a dot on what was
 * drawn. Without probabilities, the eyes are shut. */
function drawGrid(canvas, probs, drawn, rows, columns, look) {
  const [ctx, width, height] = cleared(canvas);
  const [w, h] = [width / columns, height / rows];
  for (let i = 0; i < rows * columns; i++) {
    const [x, y] = [(i % columns) * w, Math.floor(i / columns) * h];
    ctx.globalAlpha = 1;
    ctx.fillStyle = look.line;
    ctx.fillRect(x + 0.5, y + 0.5, w - 1, h - 1);
    if (!probs) continue;
    ctx.globalAlpha = Math.sqrt(probs[i]); // so that small ones are seen
    ctx.fillStyle = look.dream;
    ctx.fillRect(x + 0.5, y + 0.5, w - 1, h - 1);
    if (!drawn || !drawn[i]) continue;
    ctx.globalAlpha = 1;
    ctx.fillStyle = probs[i] > 0.3 ? look.card : look.ink;
    ctx.beginPath();
    ctx.arc(x + w / 2, y + h / 2, Math.min(w, h) * 0.2, 0, TAU);
    ctx.fill();
  }
  if (probs) return;
  ctx.globalAlpha = 1;
  ctx.fillStyle = look.soft;
  ctx.textAlign = "center";
  ctx.font = `600 ${Math.min(16, width / 9)}px system-ui, sans-serif`;
  const words = "nothing seen";
  ctx.lineWidth = 5;
  ctx.strokeStyle = look.line;
  ctx.strokeText(words, width / 2, height / 2);
  ctx.fillText(words, width / 2, height / 2);
}

// ------------------------------------------------------------ curves

/** The last steps of a number. low, high: the range that is shown at least. */
class Curve {
  constructor(id, low, high) {
    Object.assign(this, { canvas: byId(id), low, high });
    this.clear();
  }

  clear() {
    this.points = []; // { value, real, asleep, age }; value null: none
  }

  add(value, asleep, age, real = null) {
    this.points.push({ value, real, asleep, age });
    if (this.points.length > STEPS) this.points.shift();
  }

  draw(horizon, look) {
    const [ctx, width, height] = cleared(this.canvas);
    const known = this.points.flatMap((p) => [p.value, p.real]).filter((v) => v !== null);
    const low = Math.min(this.low, ...known);
    const high = Math.max(this.high, ...known);
    const x = (i) => GUTTER + ((i + 0.5) / STEPS) * (width - GUTTER);
    const y = (value) => height - 3 - ((value - low) / (high - low)) * (height - 6);

    ctx.fillStyle = look.shade;
    this.points.forEach((p, i) => {
      const [left, right] = [Math.round(x(i - 0.5)), Math.round(x(i + 0.5))]; // without seams
      if (p.asleep) ctx.fillRect(left, 0, right - left, height);
    });
    ctx.strokeStyle = look.line;
    ctx.lineWidth = 1;
    ctx.strokeRect(GUTTER + 0.5, 0.5, width - GUTTER - 1, height - 1);
    if (low < 0 && high > 0) this.stroke(ctx, [[GUTTER, y(0)], [width, y(0)]], look.faint);
    ctx.fillStyle = look.soft;
    ctx.font = "11px system-ui, sans-serif";
    ctx.textAlign = "right";
    const digits = high - low < 3 ? 2 : 1;
    ctx.fillText(short(high, digits), GUTTER - 5, 10);
    ctx.fillText(short(low, digits), GUTTER - 5, height - 2);
    ctx.setLineDash([3, 3]);
    this.points.forEach((p, i) => {
      if (p.age === horizon) this.stroke(ctx, [[x(i), 0], [x(i), height]], look.ink);
    });
    ctx.setLineDash([1.5, 3]);
    this.path(ctx, "real", x, y, look.ink, 1.5);
    ctx.setLineDash([]);
    this.path(ctx, "value", x, y, look.dream, 2);
  }

  stroke(ctx, points, color) {
    ctx.beginPath();
    points.forEach((point, i) => (i ? ctx.lineTo(...point) : ctx.moveTo(...point)));
    ctx.strokeStyle = color;
    ctx.stroke();
  }

  path(ctx, name, x, y, color, width) {
    ctx.lineWidth = width;
    let run = [];
    const end = () => {
      if (run.length) this.stroke(ctx, run, color);
      run = [];
    };
    this.points.forEach((p, i) => (p[name] === null ? end() : run.push([x(i), y(p[name])])));
    end();
  }
}

/** The dream's age as a bar, with the mark of the length that the agent learns from. */
function drawAge(canvas, age, horizon, look) {
  const [ctx, width, height] = cleared(canvas);
  const whole = 4 * horizon;
  const x = (steps) => (Math.min(steps, whole) / whole) * (width - 2);
  ctx.fillStyle = look.line;
  ctx.fillRect(0, 20, width, 16);
  ctx.fillStyle = look.dream;
  ctx.fillRect(0, 20, x(age), 16);
  ctx.fillStyle = look.ink;
  ctx.fillRect(x(horizon) - 1, 12, 2, 32);
  ctx.font = "12px system-ui, sans-serif";
  ctx.textAlign = "center";
  ctx.fillStyle = look.soft;
  ctx.fillText(`${horizon}`, x(horizon), height - 2);
  ctx.textAlign = "right";
  ctx.fillText(`${whole}${age > whole ? " and more" : ""}`, width, height - 2);
}

// ------------------------------------------------------------ policy

/** The policy as bars: one for each action, from 0 to its probability; or for a continuous one the
 * mean, one standard deviation to both sides, on a line from left (-1) to right. */
function policyRows(policy, names) {
  if (policy.probs) {
    return names.map((name, i) => {
      const share = policy.probs[i];
      return { name, from: 0, to: share, text: percent(share) };
    });
  }
  const [mean, std] = [-policy.mean[0], policy.std[0]]; // the angle grows to the left
  const place = (x) => (clip(x, -1, 1) + 1) / 2;
  return [
    { name: "torque", from: place(mean - std), to: place(mean + std), text: signed(mean) },
    { name: "spread", from: 0, to: 0, text: std.toFixed(2) },
  ];
}

function showPolicy(element, rows) {
  while (element.children.length > rows.length) element.lastChild.remove();
  while (element.children.length < rows.length) {
    const row = document.createElement("div");
    row.innerHTML = "<span></span><i><b></b></i><span></span>";
    element.append(row);
  }
  rows.forEach(({ name, from, to, text }, i) => {
    const row = element.children[i];
    const [track, bar] = [row.querySelector("i"), row.querySelector("b")];
    row.className = "bar";
    row.children[0].textContent = name;
    row.children[2].textContent = text;
    track.style.visibility = from === to ? "hidden" : "visible";
    bar.style.marginLeft = `${100 * from}%`;
    bar.style.width = `${100 * (to - from)}%`;
  });
}

const percent = (p) => `${Math.round(100 * p)}%`;
const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

/** A number in a few characters; none is a dash. */
function short(x, digits = 2) {
  if (x === null) return "–";
  const text = x.toFixed(Math.abs(x) < 10 ? digits : Math.min(digits, 1));
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

// ------------------------------------------------------------ all of it

class Panel {
  constructor() {
    this.curves = {
      kl: new Curve("kl-curve", 0, 4),
      error: new Curve("error-curve", 0, 0.5),
      reward: new Curve("reward-curve", 0, 0.01),
      value: new Curve("value-curve", 0, 0.01),
      cont: new Curve("cont-curve", 0, 1),
    };
  }

  clear() {
    for (const curve of Object.values(this.curves)) curve.clear();
  }

  /** Take in a step of the session. */
  add({ asleep, age, kl, error, heads, real, comparable }) {
    const paid = comparable ? real.reward : null;
    this.curves.kl.add(kl, asleep, age);
    this.curves.error.add(error, asleep, age);
    this.curves.reward.add(heads.reward, asleep, age, paid);
    this.curves.value.add(heads.value, asleep, age);
    this.curves.cont.add(heads.cont, asleep, age);
  }

  show(session, task, horizon) {
    const { model, state, heads, kl, error, age, real, asleep, comparable } = session;
    const look = colours(document.body);
    const { categoricals, classes } = model;
    drawGrid(byId("prior"), state.prior, asleep && state.stoch, categoricals, classes, look);
    drawGrid(byId("post"), state.post, state.post && state.stoch, categoricals, classes, look);
    for (const curve of Object.values(this.curves)) curve.draw(horizon, look);
    drawAge(byId("age-bar"), age, horizon, look);
    showPolicy(byId("policy"), policyRows(session.policy, task.actions));
    const paid = comparable ? ` · real ${short(real.reward)}` : "";
    byId("kl").textContent = short(kl, 1);
    byId("error").textContent = short(error);
    byId("age").textContent = asleep ? age : "awake";
    byId("reward").textContent = short(heads.reward) + paid;
    byId("value").textContent = short(heads.value, 1);
    byId("cont").textContent = percent(heads.cont);
  }
}
