"use strict";
/* What the page must know of each task: how it is steered, shown and told.

controls: keys, the button's sign and name, and the action that they give (the index of a one-hot
action, or the number of a continuous one). idle: the action without any key; for CartPole, which
knows no such thing, left and right in turn. */

const WORLDS = { cartpole: CartPole, pendulum: Pendulum, acrobot: Acrobot }; // lunar_lander: recorded
Object.assign(WORLDS, { pixel_pendulum: Pendulum, pixel_cartpole: CartPole });

const TASKS = {
  cartpole: {
    goal: "Push the cart left or right so that the pole stays up. At 12° it has fallen, and between the two marks the track ends.",
    scene: CART,
    limit: 500, // steps of the world
    seconds: 0.02, // that one of them takes
    speed: 0.5,
    endures: true, // to last is all
    controls: [
      { key: "ArrowLeft", letter: "a", sign: "◀", name: "Push left", index: 0 },
      { key: "ArrowRight", letter: "d", sign: "▶", name: "Push right", index: 1 },
    ],
    idle: (step) => step % 2,
    actions: ["left", "right"],
    ended: ({ obs }) => (Math.abs(obs[0]) > 2.4 ? "The cart has left its track." : "The pole fell."),
    try: "Let the agent balance, then put it to sleep. It now steers by its dream alone. How long does the real pole stand, and what becomes of the dreamed one? Wake it up in time.",
  },
  pendulum: {
    goal: "The motor is too weak to lift the pendulum in one go: swing it up, and hold it there.",
    scene: PENDULUM,
    limit: 200,
    seconds: 0.05,
    speed: 1,
    controls: [
      { key: "ArrowLeft", letter: "a", sign: "↺", name: "Torque to the left", number: 1 },
      { key: "ArrowRight", letter: "d", sign: "↻", name: "Torque to the right", number: -1 },
    ],
    idle: () => 0,
    ended: () => "",
    try: "Put it to sleep while the pendulum swings up. Does the dream arrive at the top when the real one does? Switch the ghosts on: where do they part?",
  },
  acrobot: {
    goal: "Only the middle joint has a motor. Swing the tip above the dotted line.",
    scene: ACROBOT,
    limit: 500,
    seconds: 1 / 15, // Gymnasium shows 15 steps a second; the world itself takes 0.2 s for each
    speed: 1,
    controls: [
      { key: "ArrowLeft", letter: "a", sign: "↻", name: "Torque to the left", index: 0 },
      { key: "ArrowRight", letter: "d", sign: "↺", name: "Torque to the right", index: 2 },
    ],
    idle: () => 1,
    actions: ["left", "none", "right"],
    ended: () => "The tip is above the line.",
    try: "Take over, put it to sleep, and swing up inside the dream. The real one gets the same torques: does it get there too?",
  },
  lunar_lander: {
    goal: "Land between the flags. Left is a recording of a real flight; your keys fly the dream.",
    scene: LANDER,
    seconds: 0.02,
    speed: 0.25,
    ready: 1500, // milliseconds before the first step
    controls: [
      { key: "ArrowLeft", letter: "a", sign: "◀", name: "Lean left", index: 1 },
      { key: "ArrowUp", letter: "w", sign: "▲", name: "Main engine", index: 2 },
      { key: "ArrowRight", letter: "d", sign: "▶", name: "Lean right", index: 3 },
    ],
    idle: () => 0,
    actions: ["none", "left", "main", "right"],
    ended: ({ reward }) => (reward < 0 ? "It crashed." : "It has come to rest."),
    try: "Put it to sleep in mid-flight, with the recording at the controls: the dream gets the recorded actions and no look at the lander. Then fly it yourself.",
  },
};

/* The same tasks for agents that have never seen anything but pictures of them. */
const SEEN = { scene: PICTURE, error: "Root mean square difference of the decoded and the real pixels, of 255. In the third picture, grey is none." };
TASKS.pixel_pendulum = {
  ...TASKS.pendulum, ...SEEN,
  picture: drawPendulum,
  goal: "The same pendulum, but 64 × 64 pixels are all that this agent has ever seen of it. No picture shows how fast it turns: the memory must know. The arrow is the last torque.",
  try: "Put it to sleep while the pendulum swings up. The model paints every pixel on the right from its memory alone. Which part does it get wrong first, the rod or the arrow?",
};
TASKS.pixel_cartpole = {
  ...TASKS.cartpole, ...SEEN,
  picture: drawCartPole,
  goal: "The same cart and pole, but 64 × 64 pixels are all that this agent has ever seen of them: the whole track, squeezed. The pole falls at 12°.",
  ended: () => "The pole fell, or the cart has left its track.",
  try: "Put it to sleep while it balances. It steers by the pictures that it paints itself: how long does the real pole stand?",
};

for (const [name, task] of Object.entries(TASKS)) task.name = name;

/** The visitor's action as the agent would give it; control: the one that is held, or none. */
function actionOf(task, control, step, size) {
  if (!task.actions) return Float32Array.of(control ? control.number : task.idle(step));
  const onehot = new Float32Array(size);
  onehot[control ? control.index : task.idle(step)] = 1;
  return onehot;
}
