// The images of all requests, newest first, and the dialog in which one is enlarged and compared with the others.
const $ = (id) => document.getElementById(id);
const MOST = 50; // requests that are kept
const ENLARGED = 512; // pixels, at least, of the shorter side of an enlarged file

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export class Gallery {
  edits = false; // whether the model can start from an image
  names = {}; // of the models, by the checksum of their weights, where there are several

  // actions: vary(request, source), edit(image) and reuse(request)
  constructor(actions) {
    this.actions = actions;
    this.viewer = new Viewer();
  }

  // A place for the images of a request, above the others.
  entry(request) {
    return new Entry(this, request);
  }

  add(node) {
    $("images").prepend(node);
    while ($("images").children.length > MOST) $("images").lastChild.remove();
  }
}

class Entry {
  constructor(gallery, request) {
    this.gallery = gallery;
    this.request = request;
    this.prompts = request.prompts;
    this.title = request.prompts[0] || "an image";
  }

  get text() {
    const { seed, calls, guidance, sampler, model, negative_prompt: negative } = this.request;
    const by = this.gallery.names[model] ? `, ${this.gallery.names[model]}` : "";
    const without = negative ? `, without ${negative}` : "";
    return `${this.title}${without} (seed ${seed}, ${calls} steps, guidance ${guidance}, ${sampler}${by})`;
  }

  show(event) {
    if (!this.figures) this.begin(event.pictures.length);
    event.pictures.forEach((source, i) => {
      const image = this.figures[i].querySelector("img");
      image.src = source;
      image.alt = `${this.title}, image ${i + 1} of ${event.pictures.length}` + (event.done ? "" : `, after step ${event.call} of ${event.calls}`);
    });
    if (event.done) this.figures.forEach((figure, i) => this.finish(figure, i, event.pictures[i]));
  }

  begin(count) {
    this.figures = Array.from({ length: count }, () => element("figure", {}, element("img")));
    const again = element("button", { type: "button", textContent: "Use again", onclick: () => this.gallery.actions.reuse(this.request) });
    const remove = element("button", { type: "button", textContent: "Remove", onclick: () => this.node.remove() });
    for (const button of [again, remove]) button.setAttribute("aria-label", `${button.textContent}: ${this.text}`);
    const head = element("div", { className: "head" }, element("p", { textContent: this.text }), again, remove);
    this.node = element("article", { className: "entry" }, head, element("div", { className: "grid" }, ...this.figures));
    this.gallery.add(this.node);
  }

  finish(figure, i, source) {
    const image = figure.querySelector("img"), { actions, viewer, edits } = this.gallery;
    const name = `${this.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${this.request.seed}-${i + 1}`;
    image.dataset.name = name;
    image.dataset.about = this.text;
    const open = this.button("Enlarge", image, () => viewer.open(image));
    open.className = "open";
    const save = element("a", { className: "button", textContent: "Save", href: source, download: `${name}.png` });
    save.setAttribute("aria-label", `Save: ${image.alt}`);
    const row = element("div", { className: "row" }, save);
    if (edits) {
      const vary = this.button("Vary", image, () => actions.vary(this.request, source));
      vary.classList.add("vary");
      row.prepend(vary, this.button("Edit", image, () => actions.edit(image)));
    }
    figure.prepend(open);
    open.replaceChildren(image);
    figure.append(row);
  }

  button(text, image, action) {
    const button = element("button", { type: "button", textContent: text, onclick: action });
    button.setAttribute("aria-label", `${text}: ${image.alt}`);
    return button;
  }
}

class Viewer {
  constructor() {
    $("enlarged").onclick = () => this.save();
    $("close").onclick = () => $("viewer").close();
    $("previous").onclick = () => this.move(-1);
    $("next").onclick = () => this.move(1);
    $("viewer").onclick = (event) => event.target === $("viewer") && $("viewer").close();
    $("viewer").onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) this.move(step);
      if (event.key === "Escape") $("viewer").close();
    };
  }

  open(image) {
    this.image = image;
    $("large").src = image.src;
    $("large").alt = image.alt;
    $("about").textContent = image.dataset.about;
    if (!$("viewer").open) $("viewer").showModal();
  }

  save() {
    const { naturalWidth: width, naturalHeight: height } = this.image;
    const scale = Math.max(1, Math.ceil(ENLARGED / Math.min(width, height)));
    const sheet = element("canvas", { width: width * scale, height: height * scale }), context = sheet.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, sheet.width, sheet.height);
    // a link outside of the dialog: Chromium downloads nothing by one in it
    element("a", { href: sheet.toDataURL("image/png"), download: `${this.image.dataset.name}-enlarged.png` }).click();
  }

  move(step) {
    const images = [...document.querySelectorAll("button.open img")];
    const place = images.indexOf(this.image) + step;
    if (images.length) this.open(images[(place + images.length) % images.length]);
  }
}
