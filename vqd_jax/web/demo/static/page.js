// The page: reads the form, streams the events of a request from the server and shows the images as they form.
import { Editor } from "./editor.js";

const $ = (id) => document.getElementById(id);
// jupyter-server-proxy passes events on as they come only if exactly this is accepted
const HEADERS = { "Content-Type": "application/json", Accept: "text/event-stream" };
const editor = new Editor();
let model = null;
let running = null; // AbortController of the current request
let stopping = null; // address that cancels it

function randomSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

function showError(message) {
  $("error").textContent = message;
}

function settings() {
  const number = (id) => ($(id).value === "" ? NaN : Number($(id).value));
  const values = { prompts: model.kind === "none" ? [] : [$("prompt").value], negative_prompt: $("negative").value, sampler: $("sampler").value };
  for (const id of ["num", "seed", "calls", "guidance", "temperature"]) {
    values[id] = number(id);
    if (Number.isNaN(values[id])) throw new Error(`${$(id).labels[0].textContent} must be a number.`);
  }
  return values;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

async function draw(change) {
  if (running) return;
  showError("");
  let request;
  try {
    request = { ...settings(), ...change };
  } catch (error) {
    return showError(error.message);
  }
  running = new AbortController();
  $("draw").disabled = true;
  $("stop").disabled = false;
  $("progress").value = 0;
  document.body.dataset.state = "running";
  $("status").scrollIntoView({ block: "nearest" }); // below the form on a phone
  let done = false;
  try {
    const response = await fetch("api/draw", {
      method: "POST", headers: HEADERS, body: JSON.stringify(request), signal: running.signal });
    if (!response.ok) throw new Error(await reason(response));
    stopping = response.headers.get("X-Stop");
    const gallery = new Gallery(request);
    for await (const event of lines(response.body)) {
      if (event.error) throw new Error(event.error);
      gallery.show(event);
      done = done || Boolean(event.done);
    }
    if (!done) throw new Error("the connection ended before the images were finished");
  } catch (error) {
    const stopped = error.name === "AbortError";
    $("status").textContent = stopped ? "Stopped." : "";
    if (!stopped) showError(sentence(error instanceof TypeError ? "the server does not respond: is it still running?" : error.message));
  } finally {
    running = stopping = null;
    $("draw").disabled = false;
    $("stop").disabled = true;
    document.body.dataset.state = done ? "done" : "ended";
  }
}

function stop() {
  if (stopping) fetch(stopping, { method: "POST", keepalive: true }).catch(() => {}); // proxies may not pass on that one left
  running?.abort();
}

async function reason(response) {
  const proxy = `a proxy in front of the server refuses the request (${response.status} ${response.statusText})`;
  return response.json().then((content) => content.error || proxy, () => proxy);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    for (const part of parts) yield JSON.parse(part);
  }
}

class Gallery {
  constructor(request) {
    this.request = request;
    this.title = request.prompts[0] || "an image";
    this.figures = null;
  }

  show(event) {
    if (event.waiting !== undefined) {
      const n = event.waiting;
      $("status").textContent = n ? `Queued: ${n} ${n === 1 ? "request" : "requests"} ahead of this one.`
        : "Starting; a first request with new settings takes longer …";
      return;
    }
    this.figures ??= this.empty(event.pictures.length);
    event.pictures.forEach((source, i) => {
      const image = this.figures[i].querySelector("img");
      image.src = source;
      image.alt = `${this.title}, image ${i + 1} of ${event.pictures.length}` + (event.done ? "" : `, after step ${event.call} of ${event.calls}`);
    });
    $("progress").max = event.calls;
    $("progress").value = event.call;
    const seconds = event.seconds.toFixed(1);
    $("status").textContent = event.done ? `Done: ${event.calls} steps, ${seconds} s.` : `Step ${event.call} of ${event.calls}, ${seconds} s.`;
    $("tip").hidden = !(event.done && model.edits);
    if (event.done) this.figures.forEach((figure, i) => this.finish(figure, i, event.pictures[i]));
  }

  empty(count) {
    const figures = Array.from({ length: count }, () => {
      const figure = document.createElement("figure");
      figure.append(document.createElement("img"));
      return figure;
    });
    $("images").replaceChildren(...figures);
    return figures;
  }

  finish(figure, i, source) {
    const image = figure.querySelector("img");
    const row = document.createElement("div");
    row.className = "row";
    const save = document.createElement("a");
    save.className = "button";
    save.textContent = "Save";
    save.setAttribute("aria-label", `Save: ${image.alt}`);
    save.href = source;
    save.download = `${this.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${this.request.seed}-${i + 1}.png`;
    row.append(save);
    if (model.edits) {
      const vary = this.button("Make variations of", image, () => {
        if (running) return;
        randomSeed();
        draw({ prompts: this.request.prompts, init_image: source, strength: editor.variationStrength });
      });
      vary.className = "vary";
      vary.title = "Make variations";
      const edit = this.button("Edit", image, () => editor.open(image, image.alt, image.src));
      edit.textContent = "Edit";
      row.prepend(edit);
      figure.append(vary);
      vary.append(image);
    }
    figure.append(row);
  }

  button(what, image, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `${what}: ${image.alt}`);
    button.onclick = action;
    return button;
  }
}

async function start() {
  model = await (await fetch("api/model")).json();
  $("model").textContent = `${model.name}: ${model.size} × ${model.size} pixels, weights ${model.model.slice(0, 8)}`;
  if (model.kind !== "text") {
    $("prompt-label").textContent = model.kind === "class" ? "Class (number or name)" : "Prompt (this model takes none)";
    $("prompt").disabled = model.kind === "none";
  }
  $("prompt").value = model.example;
  $("num").max = model.pictures;
  $("num").value = Math.min(4, model.pictures);
  for (const name of ["calls", "guidance", "temperature"]) $(name).value = model.sampling[name];
  $("calls").max = model.calls;
  $("sampler").replaceChildren(...model.samplers.map((name) => new Option(name, name, false, name === model.sampling.sampler)));
  $("start").hidden = !model.edits;
  editor.size = model.size;
  document.body.dataset.state = "ready";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw(editor.change());
});
$("stop").onclick = stop;
addEventListener("pagehide", stop);
$("another").onclick = randomSeed;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
editor.showError = showError;
$("form").noValidate = true; // the server's messages are clearer
start().catch(() => showError("The server does not respond: is it still running?"));
