// The initial image of a request, shown as a square, and a brush that paints the mask of the area to repaint.
const $ = (id) => document.getElementById(id);
const READ = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/avif"]; // by the server
const LARGEST_FILE = 4e6; // bytes; in base64 it fits in a request
const SIDES = ["left", "top", "right", "bottom"];
const MOST_STROKES = 30; // that can be undone
const LARGEST_SIDE = 1024; // pixels of the square that stands for other files

const dataURL = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = reject;
  reader.readAsDataURL(file);
});

export class Editor {
  size = 32;
  showError = () => {};
  image = null; // canvas of size x size
  sent = ""; // the initial image as a data URL: the file itself if the server reads it, which then makes the square
  mask = null; // canvas of the same size, white where the brush was
  cursor = null; // position of the keyboard brush, in image pixels
  strengthSet = false; // whether the user moved the strength slider
  erasing = false;
  strokes = []; // the masks before each of the last strokes

  constructor() {
    this.canvas = $("canvas");
    $("file").onchange = () => this.read($("file").files[0]);
    $("remove").onclick = () => { this.close(); $("file").focus(); };
    $("unbrush").onclick = () => { this.remember(); this.clear(); };
    $("undo").onclick = () => this.undo();
    $("erase").onclick = () => this.setErasing(!this.erasing);
    $("brush").oninput = () => this.paint();
    $("strength").oninput = () => { this.strengthSet = true; this.paint(); };
    document.addEventListener("dragover", (event) => { event.preventDefault(); $("start").classList.add("over"); });
    document.addEventListener("dragleave", () => $("start").classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      $("start").classList.remove("over");
      this.read(event.dataTransfer.files[0]);
    });
    document.addEventListener("keydown", (event) => {
      const typing = ["TEXTAREA", "INPUT"].includes(event.target.tagName);
      if (event.key === "z" && (event.ctrlKey || event.metaKey) && !typing && !$("undo").disabled) {
        event.preventDefault();
        this.undo();
      }
    });
    this.canvas.onpointerdown = (event) => {
      this.canvas.setPointerCapture(event.pointerId);
      this.remember();
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

  get variationStrength() {
    return this.strengthSet ? this.strength : 0.6;
  }

  async read(file) {
    if (!file || $("start").hidden) return; // hidden: this model cannot edit images
    this.showError("");
    try {
      const fits = READ.includes(file.type) && file.size <= LARGEST_FILE;
      this.open(await createImageBitmap(file), file.name, fits && await dataURL(file));
    } catch {
      this.showError(`${file.name} is not an image that can be read.`);
    }
    $("file").value = "";
  }

  // The size of the model's images, 0 if it cannot edit any; another one closes the editor.
  resize(size) {
    if (this.image && size !== this.size) this.close();
    this.size = size;
  }

  // source: a bitmap or an image element; sent: its file as a data URL, if the server shall read it
  open(source, name, sent) {
    const [width, height] = [source.naturalWidth ?? source.width, source.naturalHeight ?? source.height];
    const side = Math.min(width, height); // centre crop
    const square = (pixels) => {
      const sheet = this.sheet(pixels), context = sheet.getContext("2d");
      context.fillStyle = "white";
      context.fillRect(0, 0, pixels, pixels);
      context.imageSmoothingQuality = "high";
      context.drawImage(source, (width - side) / 2, (height - side) / 2, side, side, 0, 0, pixels, pixels);
      return sheet;
    };
    this.image = square(this.size);
    this.sent = sent || square(Math.min(side, LARGEST_SIDE)).toDataURL("image/png");
    this.mask = this.sheet();
    this.zoom = Math.max(1, Math.round(320 / this.size));
    this.canvas.width = this.canvas.height = this.size * this.zoom;
    this.canvas.setAttribute("aria-label", `Initial image: ${name}`);
    $("brush").max = Math.max(2, this.size / 2);
    $("brush").value = Math.max(2, this.size / 8);
    this.strengthSet = false;
    this.strokes = [];
    $("undo").disabled = true;
    this.setErasing(false);
    for (const side of SIDES) $(side).value = 0;
    $("editor").hidden = false;
    this.clear();
    this.canvas.scrollIntoView({ block: "nearest" });
    this.canvas.focus({ preventScroll: true });
  }

  sheet(pixels = this.size) {
    return Object.assign(document.createElement("canvas"), { width: pixels, height: pixels });
  }

  close() {
    this.image = this.mask = null;
    $("editor").hidden = true;
  }

  clear() {
    this.brushed = false;
    this.mask.getContext("2d").clearRect(0, 0, this.size, this.size);
    if (!this.strengthSet) $("strength").value = 0.6;
    this.paint();
  }

  setErasing(erasing) {
    this.erasing = erasing;
    $("erase").setAttribute("aria-pressed", erasing);
  }

  // Keeps the mask, which `undo` brings back.
  remember() {
    this.strokes.push(this.mask.getContext("2d").getImageData(0, 0, this.size, this.size));
    if (this.strokes.length > MOST_STROKES) this.strokes.shift();
    $("undo").disabled = false;
  }

  undo() {
    this.mask.getContext("2d").putImageData(this.strokes.pop(), 0, 0);
    $("undo").disabled = !this.strokes.length;
    this.brushed = this.painted();
    this.paint();
  }

  painted() {
    return this.mask.getContext("2d").getImageData(0, 0, this.size, this.size).data.some(Boolean);
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
      this.remember();
      this.dab(this.cursor, this.cursor);
    }
  }

  dab(from, to) {
    const context = this.mask.getContext("2d");
    const radius = Math.max(0.75, $("brush").value / 2);
    context.fillStyle = "white";
    context.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])) + 1;
    for (let i = 0; i < steps; i++) {
      const part = steps > 1 ? i / (steps - 1) : 0;
      context.beginPath();
      context.arc(from[0] + (to[0] - from[0]) * part, from[1] + (to[1] - from[1]) * part, radius, 0, 7);
      context.fill();
    }
    context.globalCompositeOperation = "source-over";
    const before = this.brushed;
    this.brushed = this.erasing ? this.painted() : true;
    if (!before && this.brushed && !this.strengthSet) $("strength").value = 1;
    this.paint();
  }

  paint() {
    $("brush-value").textContent = `${$("brush").value} pixels`;
    $("strength-value").textContent = this.strength.toFixed(2);
    if (!this.image) return;
    const context = this.canvas.getContext("2d");
    const side = this.canvas.width;
    context.imageSmoothingEnabled = false;
    context.globalAlpha = 1;
    context.drawImage(this.image, 0, 0, side, side);
    const tinted = this.sheet();
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
    if (!this.image) return {};
    const change = { init_image: this.sent, strength: this.strength };
    const extend = SIDES.map((side) => Number($(side).value));
    if (extend.some(Boolean)) Object.assign(change, { extend, strength: this.strengthSet ? this.strength : 1 });
    if (!this.brushed) return change;
    const flat = this.sheet();
    const context = flat.getContext("2d");
    context.fillRect(0, 0, this.size, this.size);
    context.drawImage(this.mask, 0, 0);
    return { ...change, mask: flat.toDataURL("image/png") };
  }
}
