// The page of the server: sends a picture to the API and draws the reply. Needs nothing but the API.

const $ = (id) => document.getElementById(id);
const MOST = 1600; // longest side of the stage's canvas; a larger picture is drawn smaller
const LEAST = 512; // a smaller picture is drawn larger
const WAIT = 150; // milliseconds after the last move of a slider
const MANY = 12; // classes from which a filter helps
const NEXT = 5; // absent classes whose scores are named
const SMALL = "(max-width: 50rem)"; // as in page.css
const UNDECIDED = 255;
const CREAM = [224, 224, 192];
// Anchors of the colour map inferno, as in the server's overlays.
const HEAT = [
  [0, 0, 4], [22, 11, 57], [66, 10, 104], [106, 23, 110], [147, 38, 103], [188, 55, 84],
  [221, 81, 58], [243, 120, 25], [252, 165, 10], [246, 215, 70], [252, 255, 164],
];
const SLIDERS = { score_threshold: "score", background_threshold: "ground", confidence_threshold: "sure" };
const KEY = "wsss-token";

const state = {
  models: [],
  latest: null, // the picture that was chosen last, decoded or not
  blob: null, // the picture on the stage, as it was chosen
  photo: null, // decoded, or null where the browser cannot
  replies: [null, null], // of the model and of the one it is compared with
  moved: new Set(), // options whose slider was moved
  shown: "", // class of the map on the stage
  request: null, // aborts what is under way
  timer: 0,
};

// ---------------------------------------------------------------------------------------- server

async function call(path, options = {}) {
  const token = sessionStorage.getItem(KEY);
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const reply = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  if (reply.ok) return reply;
  const problem = await reply.json().catch(() => ({ detail: `status ${reply.status}` }));
  if (reply.status === 401) askForToken();
  const lines = [problem.detail];
  if (problem.expected) lines.push(`expected: ${problem.expected}`);
  if (reply.status !== 401 && problem.hint) lines.push(`try: ${problem.hint}`);
  throw new Error(lines.join("\n"));
}

function tell(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

function fail(error) {
  if (error.name !== "AbortError") tell(error.message, true);
}

function askForToken() {
  $("access").hidden = false;
  $("token").focus();
}

function path(model, what) {
  return `v1/models/${encodeURIComponent(model.name)}/${what}`;
}

function query(model, more) {
  const options = new URLSearchParams(more);
  for (const box of document.querySelectorAll("#tags input:checked")) {
    if (classes(model).includes(box.value)) options.append("tags", box.value);
  }
  for (const name of state.moved) {
    if (takes(model, name)) options.set(name, $(SLIDERS[name]).value);
  }
  return options;
}

const classes = (model) => model.labels.slice(1).map((label) => label.name);
const takes = (model, option) => option !== "background_threshold" || model.kind === "cam";

function ask(model, format) {
  const more = { format };
  if (format === "json") Object.assign(more, { encoding: "label_runs", confidence: true });
  if (format === "json" && model.kind === "cam") more.cam = true;
  const body = { method: "POST", body: state.blob, signal: state.request?.signal };
  // A picture of an unknown kind has no type; the server looks into it.
  body.headers = { "content-type": "application/octet-stream" };
  return call(`${path(model, "segment")}?${query(model, more)}`, body);
}

// --------------------------------------------------------------------------------------- picture

async function choose(blob) {
  state.latest = blob;
  const photo = await createImageBitmap(blob).catch(() => null);
  // Another picture may have been chosen while this one was decoded.
  if (blob !== state.latest) return;
  Object.assign(state, { blob, photo });
  await segment();
  // The controls fill a small screen.
  if (matchMedia(SMALL).matches && state.replies[0]) $("result").scrollIntoView();
}

async function segment() {
  if (!state.blob) return;
  state.request?.abort();
  const request = (state.request = new AbortController());
  const chosen = [pick("model"), pick("other")];
  const began = performance.now();
  $("stage").setAttribute("aria-busy", "true");
  tell("Segmenting.");
  try {
    const replies = await Promise.all(chosen.map((model) => model && ask(model, "json")));
    const times = replies.map((reply) => reply && serverTime(reply));
    const bodies = await Promise.all(replies.map((reply) => reply && reply.json()));
    const unpacked = await Promise.all(bodies.map((body, i) => body && unpack(body, chosen[i])));
    // A later request may have begun while this reply was unpacked.
    if (request !== state.request) return;
    state.replies = unpacked;
    show();
    const total = Math.round(performance.now() - began);
    $("stage").dataset.milliseconds = total;
    $("stage").dataset.server = times[0];
    const names = chosen.map((model, i) => model && `${model.name} ${times[i]} ms`);
    tell(`Shown after ${total} ms. On the server: ${names.filter(Boolean).join(", ")}.`);
  } catch (error) {
    if (request !== state.request) return;
    fail(error);
    // What is shown belongs to another picture.
    if (state.replies[0]?.blob !== state.blob) state.replies = [null, null];
    show();
  } finally {
    if (request === state.request) $("stage").removeAttribute("aria-busy");
  }
}

function serverTime(reply) {
  const match = /total;dur=([\d.]+)/.exec(reply.headers.get("server-timing") ?? "");
  return match ? Math.round(Number(match[1])) : "?";
}

async function unpack(body, model) {
  const { labels, lengths } = body.mask.label_runs;
  const mask = new Uint8Array(body.mask.height * body.mask.width);
  let at = 0;
  for (let i = 0; i < labels.length; i++) {
    mask.fill(labels[i], at, at + lengths[i]);
    at += lengths[i];
  }
  const grey = new Blob([bytes(body.confidence.png)], { type: "image/png" });
  const confidence = await createImageBitmap(grey);
  return { blob: state.blob, body, model, mask, confidence, cells: body.cam ? bytes(body.cam.uint8) : null };
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// --------------------------------------------------------------------------------------- drawing

function show() {
  const [one, two] = state.replies;
  const names = one?.body.cam?.classes ?? [];
  if (!names.includes(state.shown)) state.shown = names[0] ?? "";
  draw($("one"), one);
  draw($("two"), two);
  $("one").hidden = $("classes").hidden = $("maps").hidden = !one;
  $("two").hidden = $("compare").hidden = !two;
  $("names").textContent = one ? caption(one, two) : "The mask appears here.";
  for (const id of ["png", "json", "look"]) $(id).disabled = !one;
  const mapless = Boolean(one) && !one.body.cam && !two?.body.cam;
  document.querySelector("[name=view][value=map]").disabled = mapless;
  if (mapless && view() === "map") return choice("mask");
  if (!one) return;
  list(one);
  gallery(one);
}

const view = () => document.querySelector("[name=view]:checked").value;

function choice(name) {
  document.querySelector(`[name=view][value=${name}]`).checked = true;
  show();
}

function caption(one, two) {
  const sides = two ? [`Left: ${one.model.name}. Right: ${two.model.name}.`] : [];
  if (view() === "map") {
    sides.push(state.shown ? `Map of ${state.shown}.` : "No class reaches its score, so there is no map.");
  }
  if (view() === "confidence") sides.push("The brighter, the surer.");
  if (!state.photo) sides.push("This browser cannot show the photograph.");
  return sides.join(" ");
}

function draw(canvas, reply) {
  if (!reply) return;
  const { height, width } = reply.body.mask;
  const longest = Math.max(height, width);
  const scale = Math.min(Math.max(1, LEAST / longest), MOST / longest);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  const whole = [0, 0, canvas.width, canvas.height];
  if (state.photo) context.drawImage(state.photo, ...whole);
  const what = view();
  const place = reply.body.cam?.classes.indexOf(state.shown) ?? -1;
  context.globalAlpha = Number($("opacity").value);
  if (what === "mask") context.drawImage(coloured(reply, canvas.width, canvas.height), ...whole);
  if (what === "confidence") context.drawImage(reply.confidence, ...whole);
  if (what === "map" && place >= 0) context.drawImage(heat(reply, place), ...whole);
  const present = reply.body.classes.filter((one) => one.present).map((one) => one.name);
  const title = what === "map" ? `map of ${state.shown}` : what;
  canvas.setAttribute("aria-label", `${title} of ${reply.model.name}: ${present.join(", ") || "background"}`);
}

function coloured({ mask, model, body }, width, height) {
  const colours = model.labels.map((label) => [label.red, label.green, label.blue]);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0, to = 0; y < height; y++) {
    const row = Math.floor((y * body.mask.height) / height) * body.mask.width;
    for (let x = 0; x < width; x++, to += 4) {
      const label = mask[row + Math.floor((x * body.mask.width) / width)];
      if (!label) continue;
      // Undecided pixels are hatched, which no class is.
      if (label === UNDECIDED && (x + y) % 6 > 1) continue;
      image.data.set(label === UNDECIDED ? CREAM : colours[label], to);
      image.data[to + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function heat({ cells, body }, place) {
  const { height, width } = body.cam;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const first = place * height * width;
  for (let i = 0; i < height * width; i++) {
    const position = (cells[first + i] / 255) * (HEAT.length - 1);
    const low = Math.min(Math.floor(position), HEAT.length - 2);
    const share = position - low;
    for (let c = 0; c < 3; c++) {
      image.data[4 * i + c] = HEAT[low][c] * (1 - share) + HEAT[low + 1][c] * share;
    }
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function list({ body, model }) {
  const pixels = body.mask.height * body.mask.width;
  const rows = body.classes.filter((one) => one.present || one.area).map((one) => {
    const { red, green, blue } = model.labels[one.label];
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = `rgb(${red} ${green} ${blue})`;
    const area = `${((100 * one.area) / pixels).toFixed(1)} %`;
    return row([[swatch, one.name], [one.score.toFixed(2)], [area]]);
  });
  if (!rows.length) rows.push(row([["background only"], [""], ["100 %"]]));
  const absent = body.classes.filter((one) => !one.present && !one.area).sort((a, b) => b.score - a.score);
  const scores = absent.slice(0, NEXT).map((one) => `${one.name} ${one.score.toFixed(2)}`);
  $("absent").textContent = scores.length ? `Not present: ${scores.join(", ")}` : "";
  $("classes").tBodies[0].replaceChildren(...rows);
  const doubt = typeof body.doubt === "number" ? `, doubt ${body.doubt.toFixed(2)}` : "";
  $("classes").caption.textContent =
    `${model.name} version ${model.version}, ${body.mask.width} × ${body.mask.height} pixels${doubt}`;
}

function row(cells) {
  const line = document.createElement("tr");
  for (const parts of cells) {
    const cell = document.createElement("td");
    cell.append(...parts);
    line.append(cell);
  }
  return line;
}

function gallery(reply) {
  const names = reply.body.cam?.classes ?? [];
  const buttons = names.map((name, place) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    const canvas = Object.assign(document.createElement("canvas"), { width: 144 });
    canvas.height = Math.round((144 * reply.body.mask.height) / reply.body.mask.width);
    const context = canvas.getContext("2d");
    if (state.photo) context.drawImage(state.photo, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 0.75;
    context.drawImage(heat(reply, place), 0, 0, canvas.width, canvas.height);
    button.append(canvas, name);
    button.setAttribute("aria-pressed", String(view() === "map" && name === state.shown));
    button.addEventListener("click", () => {
      state.shown = name;
      choice("map");
      $("maps").children[place].focus();
    });
    return button;
  });
  $("maps").replaceChildren(...buttons);
}

// -------------------------------------------------------------------------------------- controls

const pick = (id) => state.models.find((model) => model.name === $(id).value);

async function loadModels() {
  try {
    const { models } = await (await call("v1/models")).json();
    state.models = models.filter((model) => model.kind !== "tensor");
  } catch (error) {
    return fail(error);
  }
  $("access").hidden = true;
  for (const id of ["model", "other"]) {
    const options = state.models.map((model) => new Option(model.name, model.name));
    if (id === "other") options.unshift(new Option("nothing", ""));
    $(id).replaceChildren(...options);
  }
  if (!state.models.length) return tell("This server has no model for pictures yet.", true);
  tell("Choose a picture.");
  fit();
  await segment();
}

/** Fit the controls to the chosen models. */
function fit() {
  const models = [pick("model"), pick("other")].filter(Boolean);
  const checked = new Set([...document.querySelectorAll("#tags input:checked")].map((box) => box.value));
  const names = [...new Set(models.flatMap(classes))];
  $("tags").replaceChildren(...names.map((name) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: name });
    box.checked = checked.has(name);
    label.append(box, ` ${name}`);
    return label;
  }));
  $("filter").hidden = names.length < MANY;
  for (const part of document.querySelectorAll("[data-option]")) {
    part.hidden = !models.some((model) => takes(model, part.dataset.option));
  }
  reset();
  $("sample").hidden = false;
}

/** Put the sliders back to the model's own thresholds. */
function reset() {
  state.moved.clear();
  const models = [pick("model"), pick("other")].filter(Boolean);
  for (const [option, id] of Object.entries(SLIDERS)) {
    const own = models.find((model) => takes(model, option))?.[option];
    $(id).value = option === "confidence_threshold" ? 0 : own ?? 0.5;
    say(id);
  }
}

function say(id) {
  document.querySelector(`output[for=${id}]`).textContent = Number($(id).value).toFixed(2);
}

function later() {
  clearTimeout(state.timer);
  state.timer = setTimeout(segment, WAIT);
}

function save(data, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(data), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function download(format, name) {
  try {
    save(await (await ask(pick("model"), format)).blob(), name);
  } catch (error) {
    fail(error);
  }
}

async function sample() {
  try {
    await choose(await (await call(path(pick("model"), "sample"))).blob());
  } catch (error) {
    fail(error);
  }
}

function listen() {
  $("file").addEventListener("change", () => $("file").files[0] && choose($("file").files[0]));
  $("sample").addEventListener("click", sample);
  $("enter").addEventListener("click", () => {
    sessionStorage.setItem(KEY, $("token").value.trim());
    loadModels();
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["model", "other"]) $(id).addEventListener("change", () => (fit(), segment()));
  $("tags").addEventListener("change", segment);
  $("filter").addEventListener("input", () => {
    const text = $("filter").value.toLowerCase();
    for (const label of $("tags").children) label.hidden = !label.textContent.toLowerCase().includes(text);
  });
  for (const [option, id] of Object.entries(SLIDERS)) {
    $(id).addEventListener("input", () => (state.moved.add(option), say(id), later()));
  }
  $("reset").addEventListener("click", () => (reset(), segment()));
  $("views").addEventListener("input", show);
  $("slider").addEventListener("input", () => $("stage").style.setProperty("--from", `${$("slider").value}%`));
  $("png").addEventListener("click", () => download("png", "mask.png"));
  $("look").addEventListener("click", () => download("overlay", "picture.png"));
  $("json").addEventListener("click", () => {
    const text = JSON.stringify(state.replies[0].body, null, 1);
    save(new Blob([text], { type: "application/json" }), "reply.json");
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files[0]) choose(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files[0]) choose(event.clipboardData.files[0]);
  });
}

listen();
loadModels();
