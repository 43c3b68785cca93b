// The picture that a request starts from, at the model's size, and a brush over the part of it that is to be repainted.
const $ = (id) => document.getElementById(id);

export class Editor {
  size = 32;
  complain = () => {};
  picture = null; // a canvas of size x size
  mask = null; // the same, black, with white where the brush was
  cursor = null; // of the keyboard's brush, in pixels of the picture
  chosen = false; // whether someone moved the strength

  constructor() {
    this.canvas = $("canvas");
    $("file").onchange = () => this.read($("file").files[0]);
    $("remove").onclick = () => this.close();
    $("unbrush").onclick = () => this.clear();
    $("brush").oninput = () => this.paint();
    $("strength").oninput = () => { this.chosen = true; this.paint(); };
    document.addEventListener("dragover", (event) => { event.preventDefault(); $("start").classList.add("over"); });
    document.addEventListener("dragleave", () => $("start").classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      $("start").classList.remove("over");
      this.read(event.dataTransfer.files[0]);
    });
    this.canvas.onpointerdown = (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.last = null;
      this.stroke(event);
    };
    this.canvas.onpointermove = (event) => event.buttons && this.stroke(event);
    this.canvas.onkeydown = (event) => this.key(event);
    this.canvas.onblur = () => { this.cursor = null; this.paint(); };
  }

  get strength() {
    return Number($("strength").value);
  }

  get varying() {
    return this.chosen ? this.strength : 0.6;
  }

  async read(file) {
    if (!file || $("start").hidden) return; // hidden: this model changes no pictures
    this.complain("");
    try {
      this.open(await createImageBitmap(file), file.name);
    } catch {
      this.complain(`${file.name} is not a picture that can be read.`);
    }
    $("file").value = "";
  }

  open(source, name) {
    const sheet = () => Object.assign(document.createElement("canvas"), { width: this.size, height: this.size });
    const [width, height] = [source.naturalWidth ?? source.width, source.naturalHeight ?? source.height];
    const side = Math.min(width, height); // the square in the middle
    this.picture = sheet();
    const context = this.picture.getContext("2d");
    context.fillStyle = "white";
    context.fillRect(0, 0, this.size, this.size);
    context.imageSmoothingQuality = "high";
    context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, this.size, this.size);
    this.mask = sheet();
    this.zoom = Math.max(1, Math.round(320 / this.size));
    this.canvas.width = this.canvas.height = this.size * this.zoom;
    this.canvas.setAttribute("aria-label", `The picture to start from: ${name}`);
    $("brush").max = Math.max(2, this.size / 2);
    $("brush").value = Math.max(2, this.size / 8);
    this.chosen = false;
    $("editor").hidden = false;
    this.clear();
    this.canvas.scrollIntoView({ block: "nearest" });
    this.canvas.focus({ preventScroll: true });
  }

  close() {
    this.picture = this.mask = null;
    $("editor").hidden = true;
    $("file").focus();
  }

  clear() {
    this.brushed = false;
    this.mask.getContext("2d").clearRect(0, 0, this.size, this.size);
    if (!this.chosen) $("strength").value = 0.6;
    this.paint();
  }

  stroke(event) {
    const box = this.canvas.getBoundingClientRect();
    const to = [(event.clientX - box.left) / box.width * this.size, (event.clientY - box.top) / box.height * this.size];
    this.dab(this.last ?? to, to);
    this.last = to;
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move && event.key !== " ") return;
    event.preventDefault();
    this.cursor ??= [this.size / 2, this.size / 2];
    if (move) {
      const step = Math.max(1, $("brush").value / 2);
      this.cursor = this.cursor.map((x, i) => Math.min(this.size, Math.max(0, x + step * move[i])));
      this.paint();
    } else {
      this.dab(this.cursor, this.cursor);
    }
  }

  dab(from, to) {
    const context = this.mask.getContext("2d");
    const radius = Math.max(0.75, $("brush").value / 2);
    context.fillStyle = "white";
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) + 1;
    for (let i = 0; i < steps; i++) {
      const part = steps > 1 ? i / (steps - 1) : 0;
      context.beginPath();
      context.arc(from[0] + (to[0] - from[0]) * part, from[1] + (to[1] - from[1]) * part, radius, 0, 7);
      context.fill();
    }
    if (!this.brushed && !this.chosen) $("strength").value = 1;
    this.brushed = true;
    this.paint();
  }

  paint() {
    $("brush-value").textContent = `${$("brush").value} pixels`;
    $("strength-value").textContent = this.strength.toFixed(2);
    if (!this.picture) return;
    const context = this.canvas.getContext("2d");
    const side = this.canvas.width;
    context.imageSmoothingEnabled = false;
    context.globalAlpha = 1;
    context.drawImage(this.picture, 0, 0, side, side);
    const tinted = Object.assign(document.createElement("canvas"), { width: this.size, height: this.size });
    const tint = tinted.getContext("2d");
    tint.drawImage(this.mask, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = "#e0247a";
    tint.fillRect(0, 0, this.size, this.size);
    context.globalAlpha = 0.6;
    context.drawImage(tinted, 0, 0, side, side);
    if (this.cursor) {
      context.globalAlpha = 1;
      context.lineWidth = 2;
      for (const [colour, wider] of [["black", 1], ["white", -1]]) {
        context.strokeStyle = colour;
        context.beginPath();
        context.arc(...this.cursor.map((x) => x * this.zoom), $("brush").value / 2 * this.zoom + wider, 0, 7);
        context.stroke();
      }
    }
  }

  change() {
    if (!this.picture) return {};
    const change = { init_image: this.picture.toDataURL("image/png"), strength: this.strength };
    if (!this.brushed) return change;
    const flat = Object.assign(document.createElement("canvas"), { width: this.size, height: this.size });
    const context = flat.getContext("2d");
    context.fillRect(0, 0, this.size, this.size);
    context.drawImage(this.mask, 0, 0);
    return { ...change, mask: flat.toDataURL("image/png") };
  }
}
