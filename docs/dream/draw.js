"use strict";
/* Pictures of observations, real or dreamed, with the same few lines for both.

A picture is drawn in a look: the colours ink, accent, faint, force and card, alpha, and dashed, the
width of a dashed outline where that alone is wanted. ctx is scaled to the scene's units, with the
origin in the middle; points are [x, y], with y upwards. */

const TAU = 2 * Math.PI;

/** A width of a line, but at least 1.5 pixels of the page: a finer one has no contrast. */
const visible = (ctx, width) => Math.max(width, (1.5 * devicePixelRatio) / ctx.getTransform().a);

function line(ctx, points, width, color) {
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, -y) : ctx.moveTo(x, -y)));
  ctx.lineWidth = visible(ctx, width);
  ctx.strokeStyle = color;
  ctx.lineCap = ctx.lineJoin = "round";
  ctx.stroke();
}

function shape(ctx, points, look) {
  ctx.beginPath();
  points.forEach(([x, y], i) => (i ? ctx.lineTo(x, -y) : ctx.moveTo(x, -y)));
  ctx.closePath();
  paint(ctx, look);
}

function disc(ctx, [x, y], radius, look) {
  ctx.beginPath();
  ctx.arc(x, -y, radius, 0, TAU);
  paint(ctx, look);
}

function paint(ctx, look) {
  if (look.dashed) {
    ctx.lineWidth = look.dashed;
    ctx.strokeStyle = look.ink;
    ctx.stroke();
  } else {
    ctx.fillStyle = look.ink;
    ctx.fill();
  }
}

/** A rod from one point to the other: full, or its outline alone. */
function rod(ctx, from, to, width, look, color) {
  if (!look.dashed) return line(ctx, [from, to], width, color);
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const half = width / 2 / Math.hypot(dx, dy);
  const [nx, ny] = [-dy * half, dx * half];
  const corner = ([x, y], side) => [x + side * nx, y + side * ny];
  shape(ctx, [corner(from, 1), corner(to, 1), corner(to, -1), corner(from, -1)], look);
}

/** An arc with an arrow head around a point: a torque, anticlockwise where it is positive. */
function torqueArrow(ctx, [x, y], radius, torque, color) {
  const size = Math.min(1, Math.abs(torque));
  if (size < 0.05) return;
  const start = Math.PI / 2 - Math.sign(torque) * 0.9 * size;
  const end = Math.PI / 2 + Math.sign(torque) * 0.9 * size;
  ctx.beginPath();
  ctx.arc(x, -y, radius, -start, -end, torque > 0);
  ctx.lineWidth = 0.05;
  ctx.strokeStyle = color;
  ctx.stroke();
  const tip = [x + radius * Math.cos(end), y + radius * Math.sin(end)];
  const along = end + (Math.sign(torque) * Math.PI) / 2;
  const head = 0.06 + 0.1 * size;
  const wing = (turn) => [
    tip[0] + head * Math.cos(along + turn), tip[1] + head * Math.sin(along + turn),
  ];
  line(ctx, [wing(2.5), tip, wing(-2.5)], 0.05, color);
}

// ------------------------------------------------------------ the four tasks

/* scenery: what never moves. thing: what an observation shows. force: what the action does to it. */

const CART = {
  width: 5.4, // units that must be seen, and their height
  height: 3.4,
  scenery(ctx, look) {
    line(ctx, [[-9, -0.95], [9, -0.95]], 0.02, look.faint);
    for (const x of [-2.4, 2.4]) line(ctx, [[x, -1.12], [x, -0.78]], 0.03, look.faint);
    line(ctx, [[0, -1.0], [0, -0.9]], 0.03, look.faint);
  },
  thing(ctx, [x, , angle], look) {
    const top = -0.55;
    const tip = [x + 1.75 * Math.sin(angle), top + 1.75 * Math.cos(angle)];
    shape(ctx, [[x - 0.36, top], [x + 0.36, top], [x + 0.36, -0.85], [x - 0.36, -0.85]], look);
    rod(ctx, [x, top], tip, 0.11, look, look.accent);
    if (look.dashed) return;
    for (const side of [-0.2, 0.2]) disc(ctx, [x + side, -0.87], 0.08, look);
    disc(ctx, [x, top], 0.07, look);
  },
  force(ctx, [x], action, look) {
    const side = action[1] - action[0];
    if (!side) return;
    const [from, to] = [x + side * 0.45, x + side * 0.75];
    line(ctx, [[from, -0.7], [to, -0.7]], 0.05, look.force);
    line(ctx, [[to - side * 0.12, -0.6], [to, -0.7], [to - side * 0.12, -0.8]], 0.05, look.force);
  },
};

const PENDULUM = {
  width: 2.9,
  height: 2.9,
  scenery(ctx, look) {
    ctx.setLineDash([0.03, 0.07]);
    ctx.beginPath();
    ctx.arc(0, 0, 1.12, 0, TAU);
    ctx.lineWidth = visible(ctx, 0.015);
    ctx.strokeStyle = look.faint;
    ctx.stroke();
    ctx.setLineDash([]);
    line(ctx, [[0, 1.17], [0, 1.32]], 0.03, look.faint);
  },
  thing(ctx, [cos, sin], look) {
    const angle = Math.atan2(sin, cos);
    const tip = [-Math.sin(angle), Math.cos(angle)];
    rod(ctx, [0, 0], tip, 0.16, look, look.accent);
    disc(ctx, tip, 0.15, look);
    if (!look.dashed) disc(ctx, [0, 0], 0.07, look);
  },
  force(ctx, obs, action, look) {
    torqueArrow(ctx, [0, 0], 0.36, action[0], look.force);
  },
};

const ACROBOT = {
  width: 4.6,
  height: 4.6,
  scenery(ctx, look) {
    ctx.setLineDash([0.06, 0.1]);
    line(ctx, [[-9, 1], [9, 1]], 0.025, look.faint);
    ctx.setLineDash([]);
  },
  joints([cos1, sin1, cos2, sin2]) {
    const one = Math.atan2(sin1, cos1);
    const both = one + Math.atan2(sin2, cos2);
    const middle = [Math.sin(one), -Math.cos(one)];
    return [[0, 0], middle, [middle[0] + Math.sin(both), middle[1] - Math.cos(both)]];
  },
  thing(ctx, obs, look) {
    const [top, middle, tip] = this.joints(obs);
    rod(ctx, top, middle, 0.2, look, look.accent);
    rod(ctx, middle, tip, 0.2, look, look.accent);
    if (look.dashed) return;
    for (const [joint, radius] of [[top, 0.1], [middle, 0.14], [tip, 0.1]]) {
      disc(ctx, joint, radius, look);
    }
  },
  force(ctx, obs, action, look) {
    torqueArrow(ctx, this.joints(obs)[1], 0.42, action[2] - action[0], look.force);
  },
};

/* LunarLander, in metres: the observation's x is in units of 10 m, its y of 6.67 m above the height
at which the lander stands on the pad. Its mountains are in no observation, so none are drawn. */
const LANDER = {
  width: 20,
  height: 15,
  place: ([x, y]) => [10 * x, 6.667 * y - 4.8],
  scenery(ctx, look) {
    line(ctx, [[-30, -5.4], [30, -5.4]], 0.08, look.faint);
    line(ctx, [[-2, -5.4], [2, -5.4]], 0.22, look.faint);
    for (const x of [-2, 2]) {
      line(ctx, [[x, -5.4], [x, -3.9]], 0.08, look.faint);
      line(ctx, [[x, -3.9], [x + 0.8, -4.2], [x, -4.5]], 0.08, look.faint);
    }
  },
  /** A point of the lander's own coordinates (pixels of the game, 30 to a metre), enlarged. */
  at(obs, [px, py]) {
    const [x, y] = this.place(obs);
    const [cos, sin] = [Math.cos(obs[4]), Math.sin(obs[4])];
    const [u, v] = [px / 17, py / 17];
    return [x + cos * u - sin * v, y + sin * u + cos * v + 1]; // its feet stand on the ground
  },
  thing(ctx, obs, look) {
    const all = (points) => points.map((point) => this.at(obs, point));
    const body = [[-14, 17], [-17, 0], [-17, -10], [17, -10], [17, 0], [14, 17]];
    shape(ctx, all(body), { ...look, ink: look.accent });
    [-1, 1].forEach((side, i) => {
      const [hip, foot] = all([[side * 13, -10], [side * 23, -22]]);
      line(ctx, [hip, foot], look.dashed || 0.14, look.ink);
      const touches = obs[6 + i] > 0.5; // a leg that stands has a full foot
      disc(ctx, foot, 0.32, { ...look, dashed: !touches && look.dashed });
      if (!touches && !look.dashed) disc(ctx, foot, 0.18, { ...look, ink: look.card });
    });
  },
  force(ctx, obs, action, look) {
    const all = (points) => points.map((point) => this.at(obs, point));
    const flame = { ...look, ink: look.force };
    if (action[2]) shape(ctx, all([[-7, -11], [7, -11], [0, -36]]), flame);
    if (action[1]) shape(ctx, all([[18, 8], [18, 14], [36, 11]]), flame);
    if (action[3]) shape(ctx, all([[-18, 8], [-18, 14], [-36, 11]]), flame);
  },
};

// ------------------------------------------------------------ tasks that are seen as pictures

/** Pixels (SIDE * SIDE * 3) from 0 to 255, as something that drawImage takes. */
const pixelsOf = (() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const ctx = canvas.getContext("2d");
  const data = ctx.createImageData(SIDE, SIDE);
  return (pixels) => {
    for (let i = 0, k = 0; i < data.data.length; i++) data.data[i] = i % 4 === 3 ? 255 : pixels[k++];
    ctx.putImageData(data, 0, 0);
    return canvas;
  };
})();

/** The observation itself, enlarged: what the agent sees, and what its decoder paints. */
const PICTURE = {
  width: 2.2,
  height: 2.2,
  scenery() {},
  thing(ctx, obs, look) {
    if (look.dashed) return; // a picture has no outline
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(pixelsOf(obs), -1, -1, 2, 2);
  },
  force() {},
};

/** Where the dream is lighter than reality, or darker: grey is no difference. Without a dream that can
 * be compared there is none to show. */
function drawDifference(canvas, dream, real) {
  const ctx = prepare(canvas, PICTURE);
  if (!dream) return;
  const grey = (i) => dream[i] + dream[i + 1] + dream[i + 2] - real[i] - real[i + 1] - real[i + 2];
  PICTURE.thing(ctx, real.map((_, i) => 127.5 + grey(i - (i % 3)) / 6), {});
}

// ------------------------------------------------------------ a whole picture

/** Numbers between two observations: what is shown moves smoothly from one step to the next. */
const blend = (before, now, share) => now.map((x, i) => before[i] + share * (x - before[i]));

/** Set up a canvas for a scene: cleared, scaled to its units and to the screen's pixels. */
function prepare(canvas, scene) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.setTransform(1, 0, 0, 1, 0, 0);
  ctx.clearRect(0, 0, canvas.width, canvas.height);
  ctx.translate(canvas.width / 2, canvas.height / 2);
  const unit = Math.min(canvas.width / scene.width, canvas.height / scene.height);
  ctx.scale(unit, unit);
  return ctx;
}

function drawThing(ctx, scene, obs, look) {
  ctx.save();
  ctx.globalAlpha = look.alpha ?? 1;
  if (look.dashed) ctx.setLineDash([4 * look.dashed, 4 * look.dashed]);
  scene.thing(ctx, obs, look);
  ctx.restore();
}
