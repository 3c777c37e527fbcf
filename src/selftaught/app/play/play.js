"use strict";
// Names come from files and people: they reach the page as text only, never as markup.

const $ = (id) => document.getElementById(id);
const percent = (p) => `${Math.round(100 * p)} %`;
const MAP = { width: 860, height: 560, picture: 38 }; // at most, in pixels
let now = null; // what /state said last
let measure = "margin";
let asked = 0; // to drop answers that are late
let mine = false; // whether the saved classifier is of this page
let drawing = false; // while the page is drawn anew nothing was left by the user
let drawn = ""; // the numbers of the pictures on the map

function h(tag, props, ...children) {
  const svg = ["svg", "g", "image", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(props || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (svg || key.includes("-") || key === "for") node.setAttribute(key, value);
    else if (key === "class") node.className = value;
    else node[key] = value;
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  return node;
}

const thumb = (picture, extra = "") => h("img", {
  src: `picture/${picture.id}`, alt: picture.name, title: picture.name, class: extra, draggable: false,
});
const colour = (name) => `c${Math.max(0, now.classes.findIndex((c) => c.name === name)) % 8}`;
const named = (id) => now.unlabelled.find((p) => p.id === id)
  || now.classes.flatMap((c) => c.pictures).find((p) => p.id === id) || { id, name: "" };

// Talking to the program

async function call(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The program does not answer. If it has ended, start selftaught play again.");
  }
  let content = {};
  try { content = await answer.json(); } catch { /* below */ }
  if (!answer.ok) throw new Error((content && content.error) || `The program answered ${answer.status}.`);
  return content;
}
const post = (action, values = {}) => call(`do/${action}`, {
  method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(values),
});

async function act(action, values, then) {
  try {
    const found = await post(action, values);
    await refresh();
    if (then) then(found);
  } catch (error) {
    notice(error.message, { bad: true });
    await refresh().catch(() => {});
  }
}

async function upload(files, to) {
  const skipped = [];
  let count = 0;
  for (const file of files) {
    count += 1;
    working(`Reading ${count} of ${files.length}`);
    const where = new URLSearchParams({ name: file.name, ...(to === null ? {} : { to }) });
    try {
      if (file.size > now.limits.file_bytes) {
        throw new Error(`${file.name}: larger than ${now.limits.file_bytes >> 20} MiB; scale it down first`);
      }
      const body = await file.arrayBuffer().catch(() => { throw new Error(`${file.name}: not a file that can be read`); });
      await call(`pictures?${where}`, { method: "POST", headers: { "Content-Type": "application/octet-stream" }, body });
    } catch (error) {
      skipped.push(error.message);
    }
  }
  if (skipped.length) notice(`${skipped.length} of ${files.length} skipped`, { bad: true, list: skipped });
  $("working").textContent = `${files.length - skipped.length} pictures read`;
  await refresh().catch((error) => notice(error.message, { bad: true }));
}

function working(text) {
  $("working").textContent = text; // for those who listen
  $("state").textContent = text; // for those who look, until drawHead
}

function notice(text, { bad = false, list = [], more = null } = {}) {
  const one = h("div", { class: bad ? "notice bad" : "notice" },
    h("div", {}, h("p", {}, text), list.length ? h("ul", {}, list.slice(0, 8).map((t) => h("li", {}, t))) : null,
      list.length > 8 ? h("p", {}, `and ${list.length - 8} more`) : null, more),
    h("button", { type: "button", class: "icon", "aria-label": "Dismiss", onclick: () => one.remove() }, "×"));
  $("notices").replaceChildren(...[...$("notices").children].slice(-2), one);
}

function confirmed(text, yes) {
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask").returnValue = "no";
  $("ask").showModal();
  return new Promise((done) => $("ask").addEventListener("close", () => done($("ask").returnValue === "yes"), { once: true }));
}

// Dropping: files from outside, or a picture of the page by its number

function droppable(node, files, picture) {
  let depth = 0;
  const off = () => { depth = 0; node.classList.remove("over"); };
  node.addEventListener("dragenter", (e) => { e.preventDefault(); depth += 1; node.classList.add("over"); });
  node.addEventListener("dragover", (e) => e.preventDefault());
  node.addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) off(); });
  node.addEventListener("drop", (e) => {
    e.preventDefault();
    e.stopPropagation();
    off();
    const id = Number(e.dataTransfer.getData("application/x-selftaught"));
    if (id) picture(id);
    else if (e.dataTransfer.files.length) files([...e.dataTransfer.files]);
  });
  return node;
}
const grip = (node, id) => {
  node.draggable = true;
  node.addEventListener("dragstart", (e) => e.dataTransfer.setData("application/x-selftaught", String(id)));
  return node;
};
const label = (id, to) => act("label", { id, to }, (change) => told(id, change));

function told(id, change) {
  if (!change.moves.length) return;
  notice(`${named(id).name} is now in ${change.label}: ${counted(change)}.`, { more: flips(change) });
}
const counted = (change) => change.flipped
  ? `${change.flipped} of ${change.moves.length} other guesses ${change.flipped === 1 ? "changes" : "change"}`
  : `none of ${change.moves.length} other guesses ${change.moves.length === 1 ? "changes" : "change"}`;

function flips(change) {
  const shown = change.moves.filter((m) => m.flipped);
  if (!shown.length) {
    const most = change.moves[0];
    return h("p", { class: "soft small" },
      `Most moved: ${named(most.id).name}, ${most.after} ${percent(most.was)} → ${percent(most.is)}`);
  }
  return h("ul", { class: "plain flip" }, shown.slice(0, 6).map((m) => h("li", {}, thumb(named(m.id)),
    `${m.before} → ${m.after} (${percent(m.is)})`)), shown.length > 6 ? h("li", {}, `and ${shown.length - 6} more`) : null);
}

// Drawing

async function refresh() {
  now = await call("state");
  const active = document.activeElement;
  const focus = active && active.dataset ? active.dataset.key : null;
  const typed = focus && active.classList.contains("class-name") ? active.value : null;
  drawing = true;
  drawHead();
  $("class-list").replaceChildren(...now.classes.map(classCard));
  $("asked").replaceChildren(...now.unlabelled.map(askedCard));
  $("hint").textContent = hint();
  $("steps").hidden = now.classes.length + now.unlabelled.length > 0;
  drawNext();
  if (focus) {
    const again = document.querySelector(`[data-key="${CSS.escape(focus)}"]`) || $("asked").querySelector("select");
    again?.focus();
    if (typed !== null && again && again.dataset.key === focus) again.value = typed; // a name half typed stays
  }
  drawing = false;
  await drawMap();
}

function hint() {
  const filled = now.classes.filter((c) => c.pictures.length).length;
  if (filled < 2) return "Guesses appear once two classes have a picture each.";
  if (!now.unlabelled.length) return "Drop pictures that the classifier should name.";
  return "Probabilities come from few labels and are not calibrated.";
}

function drawHead() {
  const m = now.model;
  $("model").textContent = `${m.method} · ${m.encoder} · ${m.size} px ${m.channels === 1 ? "grey" : "colour"} · ${m.width} features · head: ${m.head}`;
  const filled = now.classes.filter((c) => c.pictures.length).length;
  $("save").disabled = filled < 2;
  $("load").disabled = !now.saved;
  $("save").title = `Writes the folder ${now.out}`;
  $("load").title = now.saved ? `Classes of the classifier in ${now.out}` : `No classifier in ${now.out} yet`;
  $("state").textContent = now.unsaved ? "not saved" : now.saved && mine ? `saved in ${now.out}` : "";
}

function classCard(one, index) {
  const input = h("input", { class: "class-name", value: one.name, maxLength: 60, "aria-label": `Name of class ${one.name}`, "data-key": `name ${index}` });
  input.addEventListener("blur", () => {
    if (drawing || input.value === one.name) return;
    const to = input.value;
    input.value = one.name;
    act("rename-class", { name: one.name, to });
  });
  input.addEventListener("keydown", (e) => {
    if (e.key === "Escape") input.value = one.name;
    if (e.key === "Enter" || e.key === "Escape") input.blur();
  });
  const files = h("input", { type: "file", accept: "image/*", multiple: true, "aria-label": `Add pictures to ${one.name}`, "data-class": one.name, "data-key": `files ${one.name}` });
  files.addEventListener("change", () => upload([...files.files], one.name));
  const card = h("li", { class: `card ${colour(one.name)}` },
    h("div", { class: "row" }, input, h("span", { class: "soft small" }, String(one.pictures.length)),
      h("button", { type: "button", class: "icon", title: "Remove the class; its pictures lose their label", "aria-label": `Remove class ${one.name}`, onclick: () => act("remove-class", { name: one.name }) }, "×")),
    h("ul", { class: "plain thumbs" }, one.pictures.map((p) => h("li", {}, grip(thumb(p), p.id),
      h("button", { type: "button", class: "icon", title: "Take the label away", "aria-label": `Take ${p.name} out of ${one.name}`, onclick: () => act("unlabel", { id: p.id }) }, "×")))),
    h("label", { class: "button more" }, one.pictures.length ? "Add pictures" : "Add 1-5 pictures", files));
  return droppable(card, (f) => upload(f, one.name), (id) => label(id, one.name));
}

function bars(guess) {
  const best = Object.entries(guess.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 3);
  return h("div", { class: "bars" }, best.map(([name, p]) => {
    const fill = h("i", { class: colour(name) });
    fill.style.width = `${100 * p}%`;
    return [h("span", { class: "name", title: name }, name), h("span", { class: "track", "aria-hidden": "true" }, fill), h("span", { class: "n" }, percent(p))];
  }));
}

function chooser(picture) {
  const select = h("select", { "aria-label": `Label ${picture.name} as`, "data-key": `label ${picture.id}` },
    h("option", { value: "" }, "Label as …"), now.classes.map((c, i) => h("option", { value: String(i) }, c.name)));
  let key = null, done = false;
  const go = () => {
    if (done || select.value === "") return;
    done = true;
    label(picture.id, now.classes[Number(select.value)].name);
  };
  // Arrow keys only look through the list, as they change the value with every step; Enter decides.
  select.addEventListener("pointerdown", () => { key = null; });
  select.addEventListener("keydown", (e) => { key = e.key; if (key === "Enter") go(); });
  select.addEventListener("change", () => { if (key === null || key === "Enter" || key === " ") go(); });
  return select;
}

function askedCard(picture) {
  const guess = picture.guess;
  const first = guess && now.suggestions[measure] && now.suggestions[measure].id === picture.id;
  return h("li", { class: first ? "card asked first" : "card asked", "data-name": picture.name },
    grip(thumb(picture), picture.id),
    h("div", {},
      h("div", { class: "said" },
        h("div", {}, guess ? h("strong", { class: "label" }, guess.label) : h("strong", { class: "soft" }, "no guess yet"),
          h("p", { class: "file" }, picture.name)),
        h("button", { type: "button", class: "icon", title: "Remove the picture", "aria-label": `Remove ${picture.name}`, onclick: () => act("remove", { id: picture.id }) }, "×")),
      guess ? bars(guess) : null),
    h("div", { class: "foot" },
      guess ? h("ul", { class: "plain near", "aria-label": "Nearest labelled pictures, cosine similarity" },
        guess.neighbours.map((n) => h("li", { title: `${named(n.id).name} (${n.label})` }, thumb(named(n.id), `ring ${colour(n.label)}`), h("span", {}, n.similarity.toFixed(2))))) : h("span"),
      now.classes.length ? chooser(picture) : null));
}

function drawNext() {
  const one = now.suggestions[measure];
  $("next").hidden = !one;
  if (!one) return $("next").replaceChildren();
  const picture = named(one.id);
  const value = measure === "margin" ? `margin ${percent(one.value)}` : `entropy ${one.value.toFixed(2)} nats`;
  const radio = (name, text) => h("label", {}, h("input", { type: "radio", name: "measure", value: name, checked: measure === name, "data-key": `measure ${name}`, onchange: () => { measure = name; refresh(); } }), text);
  const likely = Object.entries(picture.guess.probabilities).sort((a, b) => b[1] - a[1]).slice(0, 4).map(([name]) => name);
  const rows = likely.map((name) => h("li", { class: colour(name) },
    h("button", { type: "button", "data-key": `next ${name}`, onclick: () => label(one.id, name) }, `It is ${name}`),
    h("div", { class: "flips soft" }, "…")));
  $("next").replaceChildren(
    h("div", { class: "top" }, h("h3", {}, "Most useful to label next"),
      h("fieldset", {}, h("legend", { class: "unseen" }, "Least certain by"), radio("margin", "smallest margin"), radio("entropy", "highest entropy"))),
    h("div", { class: "pick" }, thumb(picture), h("div", {},
      h("p", {}, h("strong", {}, picture.name), ` lies between ${one.between[0]} and ${one.between[1]} (${value}).`),
      h("ul", { class: "plain ifs" }, rows))));
  foresee(one.id, likely, rows);
}

async function foresee(id, names, rows) {
  const turn = ++asked;
  for (const [i, name] of names.entries()) {
    let change;
    try { change = await post("what-changes", { id, to: name }); } catch { return; }
    if (turn !== asked) return;
    rows[i].lastChild.replaceChildren(
      ...(change.moves.length ? [`Then ${counted(change)}.`, flips(change)] : ["There is no other picture to change."]));
  }
}

async function drawMap() {
  const all = [...now.classes.flatMap((c) => c.pictures), ...now.unlabelled];
  $("map").hidden = all.length < 3;
  if (all.length < 3) return;
  const ids = all.map((p) => p.id).sort((a, b) => a - b).join();
  if (ids !== drawn) { $("map-said").textContent = "Finding places …"; }
  let found;
  try { found = await call("map"); } catch { return; }
  drawn = ids;
  const of = new Map();
  now.classes.forEach((c) => c.pictures.forEach((p) => of.set(p.id, { name: p.name, label: c.name, open: false })));
  now.unlabelled.forEach((p) => of.set(p.id, { name: p.name, label: p.guess && p.guess.label, open: true }));
  $("map-said").textContent = `Embeddings in two dimensions (${found.kind}): pictures near each other look alike to the encoder.`;
  $("legend").replaceChildren(...now.classes.map((c) => h("li", { class: colour(c.name) }, h("span", { class: "key" }), c.name)),
    h("li", {}, h("span", { class: "key dashed" }), "unlabelled, in the colour of the guess"));
  const xs = found.points.map((p) => p[1]), ys = found.points.map((p) => p[2]);
  const span = (v) => Math.max(...v) - Math.min(...v) || 1e-9;
  const edge = MAP.picture + 24;
  const width = Math.max(300, Math.min(MAP.width, $("plane").clientWidth || MAP.width));
  const scale = Math.min((width - edge) / span(xs), (MAP.height - edge) / span(ys)); // one for both axes
  const height = Math.max(220, span(ys) * scale + edge);
  const points = found.points.filter(([id]) => of.has(id)).map(([id, x, y]) => {
    const p = of.get(id);
    const box = {
      x: width / 2 + (x - 0.5) * scale - MAP.picture / 2, y: height / 2 - (y - 0.5) * scale - MAP.picture / 2,
      width: MAP.picture, height: MAP.picture,
    };
    const frame = { x: box.x - 1, y: box.y - 1, width: MAP.picture + 2, height: MAP.picture + 2, rx: 5 };
    const said = p.open ? (p.label ? `guess ${p.label}` : "unlabelled") : p.label;
    return h("g", { class: `${p.label ? colour(p.label) : ""} ${p.open ? "open" : ""}` }, h("title", {}, `${p.name}: ${said}`),
      h("image", { href: `picture/${id}`, preserveAspectRatio: "xMidYMid slice", ...box }), h("rect", frame));
  });
  $("plane").replaceChildren(h("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${points.length} pictures by the likeness of their embeddings`,
  }, points));
}

// Starting

$("save").addEventListener("click", async () => {
  if (now.saved && !mine && !(await confirmed(`${now.out} holds a classifier already. Replace it?`, "Replace"))) return;
  act("save", {}, (found) => { mine = true; drawHead(); notice(`Saved in ${found.out}. Use it with: selftaught predict ${found.out} PICTURE`); });
});
$("load").addEventListener("click", async () => {
  if (now.unsaved && !(await confirmed(`Labels that were not saved will be replaced by those in ${now.out}.`, "Load"))) return;
  act("load", {}, () => { mine = true; drawHead(); notice(`Loaded ${now.classes.length} classes from ${now.out}.`); });
});
$("new-class").addEventListener("submit", (e) => {
  e.preventDefault();
  const name = $("new-name").value;
  act("add-class", { name }, (made) => {
    $("new-name").value = "";
    [...document.querySelectorAll("[data-class]")].find((i) => i.dataset.class === made.name)?.focus();
  });
});
async function asNewClass(then) {
  let number = now.classes.length + 1;
  while (now.classes.some((c) => c.name === `class ${number}`)) number += 1;
  try {
    const made = await post("add-class", { name: $("new-name").value.trim() || `class ${number}` });
    $("new-name").value = "";
    await refresh();
    await then(made.name);
  } catch (error) {
    notice(error.message, { bad: true });
  }
}
droppable($("new-class"), (files) => asNewClass((name) => upload(files, name)), (id) => asNewClass((name) => label(id, name)));
droppable($("asked-drop"), (files) => upload(files, null), (id) => act("unlabel", { id }));
$("asked-files").addEventListener("change", async () => {
  const files = [...$("asked-files").files];
  await upload(files, null);
  $("asked-files").value = "";
});
matchMedia("(max-width: 860px)").addEventListener("change", drawMap);
// A picture that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (e) => e.preventDefault());
refresh().catch((error) => notice(error.message, { bad: true }));
