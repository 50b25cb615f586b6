"use strict";
/* The page: what the visitor does, and when time passes. */

const agents = {}; // task -> what its file gave
const panel = new Panel();
const settings = { driver: "greedy", speed: 1, paused: false };
Object.assign(settings, { ghosts: false, outline: true, letters: true });
let task = null; // the entry of TASKS that is shown
let session = null; // none while an agent is loading
let horizon = 15;
let held = []; // controls that are pressed, the last one counts
let touched = null; // the control that went down since the last step, however briefly
let news = ""; // why there is a new episode
let afterimage = null; // where the dream was when it woke up: { obs, since }
let clock = { last: 0, due: 0, rest: 0 }; // milliseconds; due: of a step; rest: after an end

// ------------------------------------------------------------ loading

/** Called by agents/<task>.js. */
function dreamAgent(name, packed) {
  agents[name] = packed;
}

function load(name) {
  if (agents[name]) return Promise.resolve(agents[name]);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `agents/${name}.js`;
    script.onload = () => resolve(agents[name]);
    script.onerror = () => reject(new Error(`agents/${name}.js is missing`));
    document.head.append(script);
  });
}

async function choose(name, wanted = {}) {
  press("button[data-task]", (button) => button.dataset.task === name);
  task = TASKS[name];
  document.querySelector(".stage").dataset.task = name;
  session = null;
  held = [];
  touched = afterimage = null;
  news = "";
  byId("goal").textContent = task.goal;
  byId("try").textContent = task.try;
  buildSteering();
  say("real-note", "Loading …");
  say("dream-note", "");
  let packed;
  try {
    packed = await load(name);
  } catch (error) {
    say("real-note", `${error.message}: run python -m lab.dream_page`);
    return;
  }
  if (task !== TASKS[name]) return; // another one was chosen meanwhile
  const world = WORLDS[name]
    ? new Held(new WORLDS[name](), packed.repeat, task.limit)
    : new Recorded(packed.episodes, packed.repeat);
  horizon = packed.horizon;
  const seen = task.picture ? new Pictured(world, task.picture) : world;
  session = new Session(new Model(packed), seen, !WORLDS[name]);
  panel.curves.error.high = task.picture ? 20 : 0.5;
  session.showGhosts(settings.ghosts);
  byId("horizon").textContent = horizon;
  const { repeat } = packed;
  byId("repeat").textContent = repeat > 1 ? `, held for ${repeat} frames of the game` : "";
  document.querySelector("[data-driver=recording]").hidden = !session.recorded;
  panel.clear();
  panel.add(session);
  tally.clear();
  film.pictures = [];
  clock.due = -(task.ready ?? 0);
  clock.rest = 0;
  setDriver(wanted.driver ?? (session.recorded ? "recording" : "greedy"));
  setSpeed(Number(wanted.speed ?? task.speed));
  toggleGhosts(Boolean(Number(wanted.ghosts ?? settings.ghosts)));
}

/** The address says what is shown, for whoever shares it: #pendulum&driver=greedy&speed=1&ghosts=0 */
function remember() {
  const { driver, speed, ghosts } = settings;
  const hash = `#${task.name}&driver=${driver}&speed=${speed}&ghosts=${Number(ghosts)}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
}

function visit() {
  const [name, ...words] = location.hash.slice(1).split("&");
  const wanted = Object.fromEntries(words.map((word) => word.split("=")));
  opening.on = !TASKS[name];
  if (opening.on) choose("pendulum").then(() => opening.start());
  else choose(name, wanted);
}

// ------------------------------------------------------------ time

const stepTime = () => (1000 * task.seconds * session.world.repeat) / settings.speed;

function frame(now) {
  requestAnimationFrame(frame);
  const passed = Math.min(100, now - clock.last); // a hidden page does not catch up
  clock.last = now;
  if (!session) return;
  if (!settings.paused) advance(passed);
  paintAll(now);
}

function advance(passed) {
  if (session.finished(settings.driver)) {
    clock.rest += passed; // an end is shown for a while
    if (clock.rest > 1800) opening.on ? opening.begin() : begin();
    return;
  }
  if (opening.on) opening.pass(passed);
  clock.due += passed;
  while (clock.due >= stepTime() && !session.finished(settings.driver)) {
    clock.due -= stepTime();
    step();
  }
}

function step() {
  film.add();
  const control = held.at(-1) ?? touched;
  touched = null;
  session.step(settings.driver, actionOf(task, control, session.steps, session.model.action));
  tally.add();
  panel.add(session);
  show();
}

function begin() {
  const looks = session.asleep ? `: ${CONTEXT} steps awake, then asleep again` : "";
  news = `${whyFinished()} New episode${looks}. `;
  session.begin();
  clock.due = -(task.ready ?? 0);
  clock.rest = 0;
  panel.add(session);
  show();
}

// ------------------------------------------------------------ pictures

function paintAll(now) {
  const still = task.picture || session.finished(settings.driver); // no picture between two pictures
  const share = still ? 1 : clip(clock.due / stepTime(), 0, 1);
  const { real, dream, ghosts, asleep, comparable } = session;
  const shown = blend(real.before, real.obs, real.over ? 1 : share);
  const { scene } = task;

  const figure = byId("real");
  let look = colours(figure);
  let ctx = prepare(figure.querySelector("canvas"), scene);
  scene.scenery(ctx, look);
  drawThing(ctx, scene, shown, look);
  if (!real.over && session.taken) scene.force(ctx, shown, session.taken, look);

  look = colours(byId("dream"));
  ctx = prepare(byId("dream").querySelector("canvas"), scene);
  scene.scenery(ctx, look);
  for (const ghost of ghosts) {
    drawThing(ctx, scene, blend(ghost.before, ghost.obs, share), { ...look, alpha: 0.5 });
  }
  if (afterimage) drawAfterimage(ctx, now, look);
  const dreamed = blend(dream.before, dream.obs, share);
  drawThing(ctx, scene, dreamed, look);
  scene.force(ctx, dreamed, session.action, look);
  if (task.picture) drawDifference(document.querySelector("#apart canvas"), comparable && dream.obs, real.obs);
  if (settings.outline && asleep && comparable) {
    drawThing(ctx, scene, shown, { ...look, dashed: scene.width / 270, alpha: 0.9 });
  }
}

/** The dream that was left fades, for the eye to see how far reality is from it. */
function drawAfterimage(ctx, now, look) {
  const alpha = 0.55 * (1 - (now - afterimage.since) / 1200);
  if (alpha <= 0) afterimage = null;
  else drawThing(ctx, task.scene, afterimage.obs, { ...look, alpha });
}

// ------------------------------------------------------------ words

function say(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** How reality has ended, in words; nothing where it goes on. */
function realEnd() {
  const { over } = session.real;
  return over === "time" ? "Time is up." : over ? task.ended(session.real) : "";
}

/** Why nothing goes on any more, if so. */
function whyFinished() {
  if (!session.finished(settings.driver)) return "";
  if (!session.dream.over) return realEnd();
  return session.real.over ? "Reality ended, then the dream." : "The dream ended before reality did.";
}

function status() {
  const ready = task.ready && !session.steps ? "Get ready. " : "";
  const now = opening.on ? news : `${news}${ready}The model is ${session.asleep ? "asleep" : "awake"}.`;
  const story = whyFinished() || (session.real.over ? `${realEnd()} The dream goes on.` : now);
  const how = matchMedia("(max-width: 640px)").matches ? "" : ": press P"; // phones have no keys
  return settings.paused ? `${story} Paused${how}.` : story;
}

function show() {
  const { real, dream, asleep, age } = session;
  byId("dream").classList.toggle("asleep", asleep);
  byId("sleep-text").textContent = asleep ? "Wake up" : "Fall asleep";
  byId("real-state").textContent = `step ${real.steps} · return ${short(real.total, 0)}`;
  const awake = settings.ghosts ? "awake, no ghosts yet" : "awake, sees reality";
  byId("dream-state").textContent = asleep ? `asleep for ${age} step${age === 1 ? "" : "s"}` : awake;
  byId("dream-return").textContent = asleep ? ` · return ${short(dream.total, 0)}` : "";
  say("status", status());
  say("tally", tally.text(agents[task.name].score));
  byId("play").hidden = !settings.paused;
  say("real-note", realEnd());
  const { cont, reward } = session.heads;
  const end = `The dream ends: P(continue) ${percent(cont)}, reward ${short(reward, 0)}.`;
  say("dream-note", dream.over ? end : asleep && real.over ? "Wake up to begin anew." : "");
  byId("error-note").textContent = asleep && session.apart
    ? "The recording took other actions than this dream: nothing can be compared."
    : task.error ?? "Between the decoded and the real observation, in standard deviations of what it has seen.";
  panel.show(session, task, horizon);
  if (!opening.on) remember();
}

// ------------------------------------------------------------ what the visitor does

/** Mark those buttons as pressed for which `is` holds. */
function press(selector, is) {
  for (const button of document.querySelectorAll(selector)) {
    button.setAttribute("aria-pressed", is(button));
  }
}

function setDriver(driver) {
  settings.driver = driver;
  press("[data-driver]", (button) => button.dataset.driver === driver);
}

function setSpeed(speed) {
  settings.speed = speed;
  press("[data-speed]", (button) => Number(button.dataset.speed) === speed);
}

function toggle(name, on = !settings[name]) {
  settings[name] = on;
  byId(name).setAttribute("aria-pressed", on);
  if (session) show();
}

function toggleSleep() {
  if (!session) return;
  if (session.asleep) {
    afterimage = { obs: session.dream.obs, since: clock.last };
    news = session.real.over ? "Reality had ended: new episode. " : "";
    session.wake();
    if (session.recorded) setDriver("recording"); // which cannot be steered
    byId("dream").classList.remove("snap");
    void byId("dream").offsetWidth; // so that the animation starts again
    byId("dream").classList.add("snap");
    clock.rest = 0;
    panel.add(session);
  } else {
    news = "";
    session.sleep();
  }
  show();
}

/** Somebody else drives. A recording cannot be steered, but the dream of it can. */
function takeOver(driver) {
  if (!session) return;
  setDriver(driver);
  if (session.recorded && driver !== "recording" && !session.asleep) toggleSleep();
  show();
}

/** A control goes down: the visitor takes over. */
function grab(control) {
  if (!session) return;
  held = [...held.filter((other) => other !== control), control];
  touched = control;
  takeOver("visitor");
  showHeld();
}

function release(control) {
  held = held.filter((other) => other !== control);
  showHeld();
}

function showHeld() {
  [...byId("steer").children].forEach((button, i) => {
    button.classList.toggle("held", held.includes(task.controls[i]));
  });
}

function buildSteering() {
  byId("steer").replaceChildren(
    ...task.controls.map((control) => {
      const button = document.createElement("button");
      button.textContent = control.sign;
      button.setAttribute("aria-label", control.name);
      button.title = `${control.name} (${control.letter.toUpperCase()})`;
      button.addEventListener("pointerdown", (event) => {
        button.setPointerCapture(event.pointerId);
        grab(control);
      });
      button.addEventListener("click", (event) => {
        if (event.detail) return; // of a pointer, which has been down
        grab(control); // the key Enter, or a tool that presses buttons: for one step
        release(control);
      });
      for (const end of ["pointerup", "pointercancel", "lostpointercapture", "blur"]) {
        button.addEventListener(end, () => release(control));
      }
      button.addEventListener("contextmenu", (event) => event.preventDefault());
      return button;
    }),
  );
}

/** The mouse on a picture: its left or right part, and the middle where there are three controls. A
 * finger scrolls the page there. */
function steerOn(canvas) {
  let control = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button || event.pointerType === "touch") return; // not the main one
    canvas.setPointerCapture(event.pointerId);
    const { controls } = task;
    const share = clip(event.offsetX / canvas.clientWidth, 0, 0.99);
    control = controls[Math.floor(share * controls.length)];
    grab(control);
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
    canvas.addEventListener(end, () => release(control));
  }
}

const SHORTCUTS = {
  z: toggleSleep,
  p: () => toggle("paused"),
  r: () => session && begin(),
  g: () => toggleGhosts(),
  o: () => toggle("outline"),
};

function toggleGhosts(on = !settings.ghosts) {
  on &&= !task.picture; // pictures would hide each other
  if (session && on !== settings.ghosts) session.showGhosts(on);
  toggle("ghosts", on);
}

function controlOf(event) {
  const same = (c) => c.key === event.key || c.letter === event.key.toLowerCase();
  return task && task.controls.find(same);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key.length === 1 && !settings.letters) return;
  const control = controlOf(event);
  const onButton = event.target.closest("button, a"); // which the space bar presses
  const shortcut = event.key === " " && !onButton ? toggleSleep : SHORTCUTS[event.key.toLowerCase()];
  if (!control && !shortcut) return;
  event.preventDefault(); // arrows do not scroll
  if (event.repeat) return;
  if (control) grab(control);
  else shortcut();
});
document.addEventListener("keyup", (event) => {
  const control = controlOf(event);
  if (control) release(control);
});
window.addEventListener("blur", () => {
  held = [];
  if (task) showHeld();
});

const onClick = (selector, act) => {
  for (const button of document.querySelectorAll(selector)) {
    button.addEventListener("click", (event) => {
      act(button);
      if (event.detail) button.blur(); // a pointer's: the space bar is not for this button now
    });
  }
};
onClick("button[data-task]", (button) => choose(button.dataset.task));
onClick("[data-driver]", (button) => takeOver(button.dataset.driver));
onClick("[data-speed]", (button) => setSpeed(Number(button.dataset.speed)));
onClick("#sleep", toggleSleep);
onClick("#paused", () => toggle("paused"));
onClick("#again", () => session && begin());
onClick("#ghosts", () => toggleGhosts());
onClick("#play", () => toggle("paused"));
onClick("#outline", () => toggle("outline"));
onClick("#letters", () => toggle("letters"));
onClick("#save", () => film.save(task.name, 1000 * task.seconds * session.world.repeat));
for (const canvas of document.querySelectorAll(".view canvas")) steerOn(canvas);
if (matchMedia("(prefers-reduced-motion: reduce)").matches) toggle("paused", true);

for (const name of ["pointerdown", "keydown", "click"]) {
  document.addEventListener(name, (event) => opening.stop(event), true);
}
window.addEventListener("hashchange", visit);
visit();
requestAnimationFrame(frame);
