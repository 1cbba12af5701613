"use strict";
// One picture at a time: send it, draw what comes back, and show the distributions of the box that is clicked.
// All text that comes from files or models is put in as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const COLOURS = ["#e8590c", "#1971c2", "#2f9e44", "#9c36b5", "#e03131", "#0c8599", "#f08c00", "#6741d9", "#c2255c",
  "#5c940d", "#1864ab", "#a61e4d"];
const at = (id) => document.getElementById(id);
let shown = null; // the last answer
let chosen = -1;
let latest = 0; // number of the last request: an answer that another one has overtaken is dropped
let most = Infinity;

function draw(name, attributes, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

function say(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

async function ask(address, options) {
  const response = await fetch(address, options).catch(() => {
    throw new Error("the server does not answer; is `gflv2 view` still running?");
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function send(file) {
  const number = ++latest;
  say("");
  if (file.size > most * 2 ** 20) {
    say(`${file.name}: expected a file of at most ${most} MB, got ${(file.size / 2 ** 20).toFixed(1)} MB`);
    return;
  }
  at("drop").classList.add("busy");
  try {
    const answer = await ask("detect", {method: "POST", headers: {"X-Gflv2": "view"}, body: file});
    if (number !== latest) return;
    shown = answer;
    chosen = -1;
    at("picture").src = answer.picture;
    at("picture").alt = file.name;
    // A small picture is enlarged.
    at("picture").width = answer.width * Math.max(1, 640 / Math.max(answer.width, answer.height));
    at("picture").removeAttribute("height");
    at("stage").hidden = false;
    at("threshold").min = Math.floor(answer.least * 100) / 100;
    redraw();
    detail();
  } catch (error) {
    if (number === latest) say(`${file.name}: ${error.message}`);
  } finally {
    if (number === latest) at("drop").classList.remove("busy");
  }
}

const threshold = () => Number(at("threshold").value);

function redraw() {
  at("value").textContent = threshold().toFixed(2);
  if (!shown) return;
  const boxes = at("boxes");
  boxes.setAttribute("viewBox", `0 0 ${shown.width} ${shown.height}`);
  // Text keeps its size on the screen, whatever that of the picture.
  const unit = shown.width / (at("picture").clientWidth || shown.width);
  const visible = shown.detections.map((_, n) => n).filter((n) => shown.detections[n].score >= threshold());
  at("count").textContent = `${visible.length} of ${shown.detections.length} boxes`;
  if (!visible.includes(chosen) && chosen >= 0) { chosen = -1; detail(); }
  // Small boxes last, so that they can be clicked inside large ones.
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  visible.sort((a, b) => area(shown.detections[b].box) - area(shown.detections[a].box));
  boxes.replaceChildren(...visible.map(box));
  if (chosen >= 0) boxes.append(...bins(shown.detections[chosen]));
  // The names last: no frame covers them.
  const best = [...visible].sort((a, b) => a - b);
  if (chosen >= 0) best.unshift(...best.splice(best.indexOf(chosen), 1));
  const taken = [];
  for (const n of best) name(n, unit, taken);
}

const title = (found) => `${found.name} ${found.score.toFixed(2)}`;
const colour = (found) => COLOURS[found.label % COLOURS.length];

function box(n) {
  const found = shown.detections[n];
  const [x1, y1, x2, y2] = found.box;
  const size = {x: x1, y: y1, width: x2 - x1, height: y2 - y1};
  const group = draw("g", {class: n === chosen ? "chosen" : "", tabindex: 0, role: "button",
    "aria-label": title(found)}, draw("rect", {...size, class: "hit"}, draw("title", {}, title(found))),
    draw("rect", {...size, class: "frame halo"}), draw("rect", {...size, class: "frame edge", stroke: colour(found)}));
  group.dataset.number = n;
  const choose = () => { chosen = n; redraw(); detail(); };
  group.addEventListener("click", choose);
  group.addEventListener("keydown", (event) => { if (event.key === "Enter") choose(); });
  return group;
}

// A box's name goes to the first place that nothing has yet; in a crowd some get none. The places, and their order, are
// those of gflv2/data/label_places.py. Names come in the order of the scores, the chosen one first.
function name(n, unit, taken) {
  const found = shown.detections[n];
  const [x1, y1, x2, y2] = found.box;
  const height = 17 * unit;
  const label = draw("text", {x: 4 * unit, y: 13 * unit, "font-size": 12 * unit}, title(found));
  const back = draw("rect", {height, fill: colour(found)});
  const tag = draw("g", {class: "tag"}, back, label);
  at("boxes").append(tag);
  const width = label.getComputedTextLength() + 8 * unit;
  const within = (value, most) => Math.max(0, Math.min(value, most));
  const inside = ([x, y]) => [within(x, shown.width - width), within(y, shown.height - height)];
  const rows = [y1 - height, y1, y2, y2 - height];
  const place = [
    ...[x1, x2 - width].flatMap((x) => rows.map((y) => [x, y])),
    [x2, y1], [x1 - width, y1], [x2, y2 - height], [x1 - width, y2 - height],
    ...[y1 - 2 * height, y1 + height, y2 + height, y2 - 2 * height].map((y) => [x1, y]),
  ].map(inside).find(([x, y]) => !taken.some((other) => x < other.x + other.width && other.x < x + width
    && y < other.y + height && other.y < y + height));
  if (!place) {
    tag.remove();
    return;
  }
  const [x, y] = place;
  taken.push({x, y, width});
  back.setAttribute("width", width);
  tag.setAttribute("transform", `translate(${x} ${y})`);
}

// The bins of the chosen box over the picture: a line for each, as opaque as it is probable.
function bins(found) {
  const [x1, y1, x2, y2] = found.box;
  return (found.sides || []).flatMap((side) => side.positions.map((position, bin) => {
    const share = side.probabilities[bin] / Math.max(...side.probabilities);
    const upright = side.side === "left" || side.side === "right";
    const ends = upright ? {x1: position, x2: position, y1, y2} : {x1, x2, y1: position, y2: position};
    return share < 0.02 ? null : draw("line", {...ends, class: "bin", opacity: 0.1 + 0.7 * share});
  })).filter((line) => line);
}

function detail() {
  if (chosen < 0) {
    at("detail").replaceChildren(make("p", "faint", "Click a box to see where the model puts its four sides."));
    return;
  }
  const found = shown.detections[chosen];
  const parts = [make("h2", "", found.name), make("p", "", `score ${found.score.toFixed(3)}`)];
  if (typeof found.quality === "number") {
    const classes = found.score / Math.max(found.quality, 1e-9);
    const text = `quality ${found.quality.toFixed(3)}, read from the statistics below; class ${classes.toFixed(3)}; `
      + "score = class × quality";
    parts.push(make("p", "quality", text));
  }
  if (!found.sides) parts.push(make("p", "faint", "This model predicts no distributions."));
  at("detail").replaceChildren(...parts, ...(found.sides || []).map(chart));
}

function chart(side) {
  const width = 380, height = 64;
  const order = side.positions.map((_, bin) => bin).sort((a, b) => side.positions[a] - side.positions[b]);
  const step = width / order.length;
  const highest = Math.max(...side.probabilities);
  const least = side.top[side.top.length - 1];
  const picture = draw("svg", {viewBox: `0 0 ${width} ${height + 16}`, role: "img",
    "aria-label": `distribution of the ${side.side} side`});
  order.forEach((bin, number) => {
    const share = side.probabilities[bin];
    const length = share / highest * (height - 4);
    const tip = draw("title", {}, `${side.positions[bin].toFixed(1)} px: ${share.toFixed(3)}`);
    picture.append(draw("rect", {x: number * step + 1, y: height - length, width: step - 2, height: length,
      class: share >= least ? "bar top" : "bar"}, tip));
  });
  const first = side.positions[order[0]], last = side.positions[order[order.length - 1]];
  const x = step / 2 + (side.expectation - first) / (last - first || 1) * (width - step);
  picture.append(draw("line", {x1: x, x2: x, y1: 0, y2: height, class: "mark"}),
    draw("text", {x: 0, y: height + 13}, `${first.toFixed(0)} px`),
    draw("text", {x: width, y: height + 13, "text-anchor": "end"}, `${last.toFixed(0)} px`));
  const top = side.top.map((value) => value.toFixed(3)).join(", ");
  const head = make("h3", "", side.side, make("span", "", `${side.expectation.toFixed(1)} ± ${side.spread.toFixed(1)} px, `
    + `${side.entropy.toFixed(2)} bits`));
  const statistics = make("p", "", `top ${side.top.length}: ${top}; mean ${side.mean.toFixed(3)}`);
  return make("div", "side", head, picture, statistics);
}

function take(files) {
  if (files && files.length) send(files[0]);
}

at("file").addEventListener("change", (event) => { take(event.target.files); event.target.value = ""; });
at("drop").addEventListener("keydown", (event) => { if (event.key === "Enter") at("file").click(); });
at("threshold").addEventListener("input", redraw);
window.addEventListener("resize", redraw);
at("picture").addEventListener("load", redraw);
// The whole window takes the picture: beside the field the browser would open it and leave the page.
for (const name of ["dragenter", "dragover"]) window.addEventListener(name, (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});

ask("about").then((model) => {
  most = model.most_megabytes;
  at("model").textContent = `${model.name}, ${model.classes} classes`;
  at("note").textContent = model.note;
  at("note").hidden = !model.note;
}).catch((error) => say(error.message));
