// The page: reads the form, streams the events of a request from the server and shows the images as they form.
import { Editor } from "./editor.js";
import { Gallery } from "./gallery.js";

const $ = (id) => document.getElementById(id);
// jupyter-server-proxy passes events on as they come only if exactly this is accepted
const HEADERS = { "Content-Type": "application/json", Accept: "text/event-stream" };
const NUMBERS = ["num", "seed", "calls", "guidance", "temperature", "top_p"];
const SUGGESTIONS = 6;
const editor = new Editor();
const gallery = new Gallery({
  vary: (entry, source) => {
    if (running) return;
    randomSeed();
    draw({ prompts: entry.prompts, init_image: source, mask: undefined, extend: undefined, strength: editor.variationStrength });
  },
  edit: (image) => editor.open(image, image.alt, image.src),
  reuse,
});
let models = [];
let model = null; // the one that draws
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
  const values = { model: model.model, prompts: model.kind === "none" ? [] : [$("prompt").value], negative_prompt: $("negative").value, sampler: $("sampler").value };
  for (const id of NUMBERS) {
    values[id] = number(id);
    if (Number.isNaN(values[id])) throw new Error(`${$(id).labels[0].textContent} must be a number.`);
  }
  return values;
}

function reuse(request) {
  const same = models.find((one) => one.model === request.model);
  if (same !== model) choose(same);
  if (request.prompts.length) $("prompt").value = request.prompts[0];
  $("negative").value = request.negative_prompt;
  $("sampler").value = request.sampler;
  for (const id of NUMBERS) $(id).value = request[id];
  $("prompt").focus();
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
    const entry = gallery.entry(request);
    for await (const event of lines(response.body)) {
      if (event.error) throw new Error(event.error);
      progress(event);
      if (event.pictures) entry.show(event);
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

function progress(event) {
  if (event.waiting !== undefined) {
    const n = event.waiting;
    $("status").textContent = n ? `Queued: ${n} ${n === 1 ? "request" : "requests"} ahead of this one.`
      : "Starting; a first request with new settings takes longer …";
    return;
  }
  $("progress").max = event.calls;
  $("progress").value = event.call;
  const seconds = event.seconds.toFixed(1);
  $("status").textContent = event.done ? `Done: ${event.calls} steps, ${seconds} s.` : `Step ${event.call} of ${event.calls}, ${seconds} s.`;
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

// shows training captions with all words of the prompt, else the examples
function suggest() {
  const words = $("prompt").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = model.captions.filter((text) => words.every((word) => text.toLowerCase().includes(word)) && text !== $("prompt").value);
  const shown = words.length && found.length ? found.slice(0, SUGGESTIONS) : model.examples;
  $("examples").replaceChildren(...shown.map((text) => {
    const chip = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    chip.onclick = () => { $("prompt").value = text; $("prompt").focus(); };
    return chip;
  }));
}

// Shows what the model takes, and its settings.
function choose(next) {
  const sameKind = model?.kind === next.kind;
  model = next;
  $("models").value = model.model;
  $("model").textContent = `${model.name}: ${model.size} × ${model.size} pixels, weights ${model.model.slice(0, 8)}`;
  $("prompt-label").textContent = { text: "Prompt", class: "Class (number or name)", none: "Prompt (this model takes none)" }[model.kind];
  $("prompt").disabled = model.kind === "none";
  if (!sameKind) $("prompt").value = model.kind === "class" ? "0" : model.examples[0] ?? "";
  $("num").max = model.pictures;
  for (const name of ["calls", "guidance", "temperature", "top_p"]) $(name).value = model.sampling[name];
  suggest();
  gallery.edits = model.edits;
  $("calls").max = model.calls;
  $("sampler").replaceChildren(...model.samplers.map((name) => new Option(name, name, false, name === model.sampling.sampler)));
  $("start").hidden = !model.edits;
  editor.resize(model.edits ? model.size : 0);
}

async function start() {
  ({ models } = await (await fetch("api/models")).json());
  $("models").replaceChildren(...models.map((one) => new Option(one.name, one.model)));
  $("choice").hidden = models.length < 2;
  if (models.length > 1) gallery.names = Object.fromEntries(models.map((one) => [one.model, one.name]));
  choose(models[0]);
  $("num").value = Math.min(4, model.pictures);
  document.body.dataset.state = "ready";
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw(editor.change());
});
$("stop").onclick = stop;
addEventListener("pagehide", stop);
$("another").onclick = randomSeed;
$("prompt").oninput = suggest;
$("models").onchange = () => choose(models.find((one) => one.model === $("models").value));
$("help").onclick = () => $("manual").showModal();
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
editor.showError = showError;
$("form").noValidate = true; // the server's messages are clearer
start().catch(() => showError("The server does not respond: is it still running?"));
