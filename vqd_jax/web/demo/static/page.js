// The page: reads the form, follows what the server says of a request line by line, and shows the pictures as they come.
import { Editor } from "./editor.js";

const $ = (id) => document.getElementById(id);
const editor = new Editor();
let model = null;
let running = null; // the AbortController of the request that is being drawn

function anotherSeed() {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
}

function complain(sentence) {
  $("error").textContent = sentence;
}

function asked() {
  const number = (id) => ($(id).value === "" ? NaN : Number($(id).value));
  const out = { prompts: model.kind === "none" ? [] : [$("prompt").value], negative_prompt: $("negative").value, sampler: $("sampler").value };
  for (const id of ["num", "seed", "calls", "guidance", "temperature"]) {
    out[id] = number(id);
    if (Number.isNaN(out[id])) throw new Error(`${$(id).labels[0].textContent} must be a number.`);
  }
  return out;
}

function whole(sentence) {
  return sentence[0].toUpperCase() + sentence.slice(1) + (/[.!?]$/.test(sentence) ? "" : ".");
}

async function draw(change) {
  if (running) return;
  complain("");
  let request;
  try {
    request = { ...asked(), ...change };
  } catch (error) {
    return complain(error.message);
  }
  running = new AbortController();
  $("draw").disabled = true;
  $("stop").disabled = false;
  $("progress").value = 0;
  document.body.dataset.state = "running";
  $("status").scrollIntoView({ block: "nearest" }); // on a phone it is below the form
  let done = false;
  try {
    const response = await fetch("api/draw", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error);
    const pictures = new Pictures(request);
    for await (const event of lines(response.body)) {
      if (event.error) throw new Error(event.error);
      pictures.show(event);
      done = done || Boolean(event.done);
    }
    if (!done) throw new Error("the server ended before the pictures were done");
  } catch (error) {
    const stopped = error.name === "AbortError";
    $("status").textContent = stopped ? "Stopped." : "";
    if (!stopped) complain(whole(error instanceof TypeError ? "the server does not answer: is it still running?" : error.message));
  } finally {
    running = null;
    $("draw").disabled = false;
    $("stop").disabled = true;
    document.body.dataset.state = done ? "done" : "ended";
  }
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

class Pictures {
  constructor(request) {
    this.request = request;
    this.title = request.prompts[0] || "a picture";
    this.figures = null;
  }

  show(event) {
    if (event.waiting !== undefined) {
      const n = event.waiting;
      $("status").textContent = n ? `Waiting: ${n} ${n === 1 ? "request is" : "requests are"} before this one.`
        : "Starting; the first request of a kind takes longer …";
      return;
    }
    this.figures ??= this.empty(event.pictures.length);
    event.pictures.forEach((source, i) => {
      const image = this.figures[i].querySelector("img");
      image.src = source;
      image.alt = `${this.title}, picture ${i + 1} of ${event.pictures.length}` + (event.done ? "" : `, after call ${event.call} of ${event.calls}`);
    });
    $("progress").max = event.calls;
    $("progress").value = event.call;
    const seconds = event.seconds.toFixed(1);
    $("status").textContent = event.done ? `Done: ${event.calls} calls, ${seconds} s.` : `Call ${event.call} of ${event.calls}, ${seconds} s.`;
    $("tip").hidden = !(event.done && model.edits);
    if (event.done) this.figures.forEach((figure, i) => this.finish(figure, i, event.pictures[i]));
  }

  empty(count) {
    const figures = Array.from({ length: count }, () => {
      const figure = document.createElement("figure");
      figure.append(document.createElement("img"));
      return figure;
    });
    $("pictures").replaceChildren(...figures);
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
        anotherSeed();
        draw({ prompts: this.request.prompts, init_image: source, strength: editor.varying });
      });
      vary.className = "picture";
      vary.title = "Make variations";
      const edit = this.button("Edit", image, () => editor.open(image, image.alt));
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

async function begin() {
  model = await (await fetch("api/model")).json();
  $("model").textContent = `${model.name}: ${model.size} × ${model.size} pixels, weights ${model.model.slice(0, 8)}`;
  if (model.kind !== "text") {
    $("prompt-label").textContent = model.kind === "class" ? "Class: its number or name" : "This model draws without a prompt";
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
$("stop").onclick = () => running?.abort();
$("another").onclick = anotherSeed;
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
editor.complain = complain;
$("form").noValidate = true; // the server's sentences are clearer
begin().catch(() => complain("The server does not answer: is it still running?"));
