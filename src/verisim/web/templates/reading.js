"use strict";
// Shows one item after the other, takes an answer by key or click, and goes on only when it is kept.

const study = JSON.parse(document.getElementById("study").textContent);
const element = (id) => document.getElementById(id);
const keys = { ArrowLeft: "left", ArrowRight: "right" };
const PAUSE = 250; // ms after a new item during which a key is still meant for the one before

let reader = "";
let answers = {}; // item -> answer
let position = 0; // index of the item on the screen
let ready = false; // its images can be seen
let watched = 0; // ms for which the item was visible
let since = 0; // start of the visible stretch, 0 = hidden
let last = -1; // index of the item answered last, which may be corrected

// --- where answers are kept ---------------------------------------------------------------------

const server = {
  async load(name) {
    const reply = await fetch("answers?reader=" + encodeURIComponent(name));
    const found = await reply.json();
    if (!reply.ok) throw new Error(found.error);
    return found;
  },
  async save(row) {
    for (;;) {
      let reply = null;
      try {
        reply = await fetch("answers", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(row),
        });
      } catch (lost) {
        message("Not saved yet: the program behind this page does not answer. Trying again. Leave this page open.");
        await new Promise((resolve) => setTimeout(resolve, 1500));
        continue;
      }
      message("");
      if (reply.ok) return row.answer;
      const found = await reply.json();
      if (reply.status !== 409) throw new Error(found.error);
      message("This item was answered before, perhaps in another window. The first answer stays.");
      answers = (await server.load(reader)).answers;
      return answers[row.item];
    }
  },
};

const file = {
  place: (name) => "verisim " + study.id + " " + name.toLowerCase(),
  rows: {}, // item -> row
  async load(name) {
    if (!/^[\p{L}\p{N}][\p{L}\p{N} ._-]{0,39}$/u.test(name)) {
      throw new Error("A name has 1 to 40 letters, digits, spaces, dots, hyphens or underscores.");
    }
    try {
      file.rows = JSON.parse(localStorage.getItem(file.place(name)) || "{}");
    } catch (refused) {
      file.rows = {};
      message("This browser keeps nothing: do not close the page before you have saved your answers.");
    }
    const known = Object.entries(file.rows).map(([item, row]) => [item, row.answer]);
    return { reader: name, answers: Object.fromEntries(known) };
  },
  async save(row) {
    const old = file.rows[row.item];
    const changes = old ? old.changes + (old.answer === row.answer ? 0 : 1) : 0;
    file.rows[row.item] = { answer: row.answer, seconds: old ? old.seconds : row.seconds, changes };
    try {
      localStorage.setItem(file.place(reader), JSON.stringify(file.rows));
    } catch (refused) {
      message("This browser keeps nothing: do not close the page before you have saved your answers.");
    }
    return row.answer;
  },
  csv() {
    const quoted = (v) => '"' + String(v).replaceAll('"', '""') + '"';
    const lines = [["study", "reader", "item", "answer", "seconds", "changes"]];
    for (const item of study.items) {
      const r = file.rows[item.id];
      if (r) lines.push([study.id, reader, item.id, r.answer, r.seconds, r.changes]);
    }
    return lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n";
  },
  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([file.csv()], { type: "text/csv" }));
    link.download = "answers-" + reader.replaceAll(" ", "_") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  },
};

const store = study.served ? server : file;

// --- showing ------------------------------------------------------------------------------------

function message(text) {
  element("message").textContent = text;
}

function show(id) {
  for (const part of ["start", "pair", "rating", "end"]) element(part).hidden = part !== id;
  element("top").hidden = id === "start";
}

function address(name) {
  return study.served ? "images/" + name : study.images[name];
}

async function load(image, name) {
  image.src = address(name);
  await image.decode();
}

async function present() {
  const item = study.items[position];
  const same = study.items.filter((i) => i.form === item.form);
  const number = same.indexOf(item) + 1;
  const what = item.form === "pair" ? "Pair" : "Image";
  ready = false;
  progress();
  element("count").textContent = what + " " + number + " of " + same.length;
  const places = item.form === "pair" ? ["left", "right"] : ["single"];
  for (const place of places) element(place).style.visibility = "hidden";
  for (const button of document.querySelectorAll(".chosen")) button.classList.remove("chosen");
  show(item.form);
  try {
    await Promise.all(places.map((place, i) => load(element(place), item.images[i])));
  } catch (broken) {
    message("The images of this item cannot be loaded. Reload this page; your answers are kept.");
    return;
  }
  for (const place of places) element(place).style.visibility = "visible";
  watched = 0;
  since = document.hidden ? 0 : performance.now();
  setTimeout(() => { ready = true; }, PAUSE);
  for (const next of study.items.slice(position + 1, position + 3)) {
    for (const name of next.images) new Image().src = address(name);
  }
}

function progress() {
  const done = study.items.filter((i) => i.id in answers).length;
  element("bar").max = study.items.length;
  element("bar").value = done;
  element("back").hidden = last < 0 || last === position;
  element("save").hidden = study.served;
  return done;
}

function proceed() {
  position = study.items.findIndex((i) => !(i.id in answers));
  if (position >= 0) return present();
  progress();
  element("count").textContent = "All " + study.items.length + " items";
  show("end");
}

// --- answering ----------------------------------------------------------------------------------

async function answer(value) {
  const item = study.items[position];
  if (!ready || !item) return;
  ready = false;
  if (since) watched += performance.now() - since;
  const chosen = document.querySelector(`#${item.form} [data-answer="${value}"]`);
  chosen.classList.add("chosen");
  const row = { reader, item: item.id, answer: value, seconds: Math.round(watched) / 1000 };
  try {
    answers[item.id] = await store.save({ ...row, replace: item.id in answers });
  } catch (refused) {
    message("Not saved: " + refused.message);
    chosen.classList.remove("chosen");
    ready = true;
    return;
  }
  last = position;
  proceed();
}

function correct() {
  if (last < 0 || last === position || (!ready && element("end").hidden)) return;
  position = last;
  present();
}

async function begin(event) {
  event.preventDefault();
  try {
    const found = await store.load(element("name").value.trim().replace(/\s+/g, " "));
    reader = found.reader;
    answers = found.answers;
  } catch (refused) {
    element("refused").textContent = refused.message;
    return;
  }
  element("who").textContent = reader;
  proceed();
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey || !reader) return;
  const item = study.items[position];
  if (event.key === "Backspace") {
    event.preventDefault();
    correct();
  } else if (item && item.form === "pair" && keys[event.key]) {
    event.preventDefault();
    answer(keys[event.key]);
  } else if (item && item.form === "rating" && /^[1-5]$/.test(event.key)) {
    answer(event.key);
  }
});

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since) watched += performance.now() - since;
  since = document.hidden ? 0 : performance.now();
});

for (const button of document.querySelectorAll("[data-answer]")) {
  button.addEventListener("click", () => { button.blur(); answer(button.dataset.answer); });
}
element("form").addEventListener("submit", begin);
element("back").addEventListener("click", correct);
element("save").addEventListener("click", file.download);
element("save-end").addEventListener("click", file.download);
element("save-end").hidden = study.served;
element("ready").hidden = false;
element("no-script").hidden = true;
