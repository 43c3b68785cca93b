"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const count = new Intl.NumberFormat("en");
const LOG_FROM = 10;  // ratio of largest to smallest value from which a panel starts with a log scale
const names = [...new Set((data.curves ?? []).flatMap(stage => stage.panels.flatMap(panel => panel.lines.map(line => line.name))))];
const color = name => `var(--line-${names.indexOf(name) % 4})`;  // the same for a name in all panels

function number(value, digits = 3) {
  const size = Math.abs(value);
  if (size >= 1e5) return new Intl.NumberFormat("en", {notation: "compact", maximumSignificantDigits: digits}).format(value);
  if (size > 0 && size < 1e-3) return Number(value.toPrecision(digits)).toExponential();
  if (size >= 1000) return new Intl.NumberFormat("en", {maximumSignificantDigits: Math.max(digits, 4 + (size >= 1e4))}).format(value);
  return String(Number(value.toPrecision(digits)));
}

/** The texts of ticks, with as many digits as the longest of them has. */
function labels(values) {
  let digits = 3;
  while (digits < 15 && values.some(value => Math.abs(value.toPrecision(digits) - value) > 1e-12 * Math.abs(value))) digits++;
  return values.map(value => number(value, digits));
}

// ---- numbers

/** Gaussian average with a standard deviation of `width` points, renormalised at the ends. */
function smooth(values, width) {
  const reach = Math.floor(3 * width);
  const kernel = Array.from({length: 2 * reach + 1}, (_, i) => Math.exp(-0.5 * ((i - reach) / width) ** 2));
  return values.map((_, i) => {
    let sum = 0, weight = 0;
    for (let j = Math.max(i - reach, 0); j <= Math.min(i + reach, values.length - 1); j++) {
      const k = kernel[j - i + reach];
      sum += k * values[j];
      weight += k;
    }
    return sum / weight;
  });
}

/** Multiples of 1, 2 or 5 times a power of ten that is at least `least`. */
function ticks(low, high, wanted, least = 0) {
  const rough = Math.max((high - low) / wanted, least), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-12) + 1e-300; i++) out.push(i * step);
  return out.length === 1 && step > least ? ticks(low, high, 2 * wanted, least) : out;
}

function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), every = Math.ceil((to - from) / 6);
  const subs = Math.log10(high / low) < 2.5 ? [1, 2, 5] : [1];
  const out = [];
  for (let power = from; power <= to; power += every) for (const sub of subs) out.push(sub * 10 ** power);
  const inside = out.filter(value => value >= low && value <= high);
  return inside.length > 1 ? inside : ticks(low, high, 4);
}

// ---- charts

function element(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Draws `lines` ({xs, ys, color, kind}; with `between`, the area from ys to those values) into `plot`. Returns the x scale in pixels and a function that marks an x. */
function draw(plot, lines, logarithmic) {
  const width = plot.clientWidth, height = plot.clientHeight;
  const right = 8, top = 6, bottom = 20;
  const xs = lines.flatMap(line => [line.xs[0], line.xs.at(-1)]);
  let low = Infinity, high = -Infinity;
  for (const line of lines) for (const y of line.ys) if (!logarithmic || y > 0) { low = Math.min(low, y); high = Math.max(high, y); }
  if (low === high) { low -= Math.abs(low) / 10 || 1; high += Math.abs(high) / 10 || 1; }
  if (!logarithmic) { const pad = (high - low) * 0.04; low = low >= 0 && low < pad * 4 ? 0 : low - pad; high += pad; }
  const first = Math.min(...xs), last = Math.max(...xs) > first ? Math.max(...xs) : first + 1;
  const scale = logarithmic ? Math.log : value => value;
  const rows = logarithmic ? logTicks(low, high) : ticks(low, high, 4), texts = labels(rows);
  const left = Math.max(46, 10 + 6.5 * Math.max(...texts.map(text => text.length)));
  const x = value => left + (value - first) / (last - first) * (width - left - right);
  const y = value => top + (scale(high) - scale(Math.max(value, logarithmic ? low : -Infinity))) / (scale(high) - scale(low)) * (height - top - bottom);
  const root = element("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"});
  rows.forEach((value, i) => root.append(
    element("line", {class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value)}),
    element("text", {x: left - 5, y: y(value) + 4, "text-anchor": "end"}, texts[i])));
  const columns = ticks(first, last, Math.min(5, width / 70), 1), places = labels(columns);  // steps and tokens are whole numbers
  columns.forEach((value, i) => root.append(
    element("text", {x: x(value), y: height - 5, "text-anchor": x(value) > width - 30 ? "end" : x(value) < left + 10 ? "start" : "middle"}, places[i])));
  for (const line of lines) {
    const points = ys => line.xs.map((at, i) => `${x(at).toFixed(1)},${y(ys[i]).toFixed(1)}`);
    if (line.between)
      root.append(element("path", {class: "between", fill: line.color, style: `fill: ${line.color}`,
        d: `M${points(line.ys).join("L")}L${points(line.between).reverse().join("L")}Z`}));
    else if (line.xs.length > 1)
      root.append(element("path", {class: line.kind, stroke: line.color, d: `M${points(line.ys).join("L")}`}));
    if (line.xs.length < 20 && line.kind === "curve")
      line.xs.forEach((at, i) => root.append(element("circle", {cx: x(at), cy: y(line.ys[i]), r: 2.5, fill: line.color})));
  }
  plot.replaceChildren(root);
  return {x, mark(at) {
    all(".at", root).forEach(node => node.remove());
    if (at !== null) root.append(element("line", {class: "at", x1: x(at), x2: x(at), y1: top, y2: height - bottom}));
  }};
}

/** Draws a figure once visible and after each resize; shows the values at an x chosen by pointer or arrow keys. Returns the redraw function. */
function chart(figure, positions, lines, describe) {
  const plot = figure.querySelector(".plot"), readout = figure.querySelector(".readout");
  let drawn = null, at = null;
  const update = () => { readout.innerHTML = ""; readout.append(...describe(at)); };
  const point = next => { at = next; drawn?.mark(at); update(); };
  const nearest = pixel => positions().reduce((best, x) => Math.abs(drawn.x(x) - pixel) < Math.abs(drawn.x(best) - pixel) ? x : best);
  const redraw = () => {
    if (!plot.clientWidth) return;
    const {shown, logarithmic} = lines();
    drawn = draw(plot, shown, logarithmic);
    if (at !== null && !positions().includes(at)) at = null;
    drawn.mark(at);
    update();
  };
  plot.addEventListener("pointermove", event => point(nearest(event.clientX - plot.getBoundingClientRect().left)));
  plot.addEventListener("pointerdown", event => point(nearest(event.clientX - plot.getBoundingClientRect().left)));
  plot.addEventListener("pointerleave", () => { if (document.activeElement !== plot) point(null); });
  plot.addEventListener("blur", () => point(null));
  plot.addEventListener("keydown", event => {
    const all = positions(), i = at === null ? -1 : all.indexOf(at), far = Math.max(Math.round(all.length / 20), 1);
    const next = {ArrowRight: i + 1, ArrowLeft: i < 0 ? all.length - 1 : i - 1, PageUp: i + far, PageDown: i - far, Home: 0, End: all.length - 1}[event.key];
    if (next === undefined) return;
    event.preventDefault();
    point(all[Math.min(Math.max(next, 0), all.length - 1)]);
  });
  new ResizeObserver(redraw).observe(plot);
  return redraw;
}

function bold(text, color) {
  const node = document.createElement("b");
  node.textContent = text;
  if (color) node.style.color = color;
  return node;
}

function panel(figure) {
  const [i, j] = figure.dataset.panel.split(",").map(Number), found = data.curves[i].panels[j];
  const box = figure.querySelector(".log"), slider = document.getElementById("smoothing");
  const values = found.lines.flatMap(line => line.values);
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  box.disabled = low <= 0;
  box.checked = low > 0 && high / low > LOG_FROM;
  const positions = [...new Set(found.lines.flatMap(line => line.steps))].sort((a, b) => a - b);
  const width = line => line.values.length * slider.value / 1000;
  const smoothed = line => width(line) >= 0.5 ? smooth(line.values, width(line)) : line.values;
  let now = found.lines.map(smoothed), used = slider.value;
  const lines = () => {
    if (used !== slider.value) [now, used] = [found.lines.map(smoothed), slider.value];
    return {logarithmic: box.checked, shown: found.lines.flatMap((line, k) => [
      ...(now[k] === line.values ? [] : [{xs: line.steps, ys: line.values, color: color(line.name), kind: "raw"}]),
      {xs: line.steps, ys: now[k], color: color(line.name), kind: "curve"}])};
  };
  const describe = at => {
    const out = at === null ? [] : [`step ${count.format(at)}: `];
    found.lines.forEach((line, k) => {
      const index = line.steps.indexOf(at), name = line.name.replaceAll("_", " ");
      if (at === null && line.name) out.push(bold(name, color(line.name)), " ");
      if (at !== null && index >= 0) {
        out.push(bold(name || found.name, color(line.name)), ` ${number(line.values[index])}`);
        out.push(now[k] === line.values ? " " : ` (smoothed ${number(now[k][index])}) `);
      }
    });
    return out;
  };
  const redraw = chart(figure, () => positions, lines, describe);
  box.addEventListener("change", redraw);
  return redraw;
}

function planned(figure) {
  const found = data.plans[figure.dataset.plan], choice = figure.querySelector(".steps");
  const plan = () => choice && found.plans[choice.value];
  if (choice) choice.value = found.plans.findIndex(p => p.calls >= 16) < 0 ? found.plans.length - 1 : found.plans.findIndex(p => p.calls >= 16);
  const lines = () => ({logarithmic: false, shown: [
    ...(plan() ? [{xs: found.known, ys: plan().at_draw, between: found.curve, color: "var(--line-1)"},
                  {xs: found.known, ys: plan().at_draw, color: "var(--line-1)", kind: "raw"}] : []),
    {xs: found.known, ys: found.curve, color: "var(--line-0)", kind: "curve"}]});
  const describe = at => {
    const out = [];
    if (at !== null) out.push(`${at} of ${found.tokens} tokens known: ${number(found.curve[found.known.indexOf(at)])} nats`);
    if (at === null && plan()) {
      out.push(bold("nats per token", "var(--line-0)"), " by the number of known tokens; ");
      out.push(bold(`${plan().calls} steps`, "var(--line-1)"), ` of ${plan().counts.join(", ")} tokens: KL gap ${number(plan().kl_gap)} nats`);
    }
    return out;
  };
  const redraw = chart(figure, () => found.known, lines, describe);
  choice?.addEventListener("change", redraw);
}

// ---- images and codes

function slide(figure, steps, show) {
  const slider = figure.querySelector("input[type=range]");
  slider?.addEventListener("input", () => {
    figure.querySelector("output").textContent = count.format(steps[slider.value]);
    slider.setAttribute("aria-valuetext", `step ${count.format(steps[slider.value])}`);
    show(Number(slider.value));
  });
}

function codes(figure) {
  const canvas = figure.querySelector("canvas"), readout = figure.querySelector(".readout"), {steps, counts} = data.codes;
  let shown = counts.length - 1, columns = 1, cell = 1, at = null;
  const paint = () => {
    const now = counts[shown], width = canvas.clientWidth, ratio = devicePixelRatio || 1;
    columns = Math.max(Math.min(Math.ceil(Math.sqrt(2 * now.length)), Math.floor(width / 7)), 1);
    cell = width / columns;
    const rows = Math.ceil(now.length / columns);
    canvas.style.height = `${rows * cell}px`;
    [canvas.width, canvas.height] = [width * ratio, rows * cell * ratio];
    const context = canvas.getContext("2d"), style = name => getComputedStyle(canvas).getPropertyValue(name), most = Math.max(...now, 2);
    context.scale(ratio, ratio);
    now.forEach((n, i) => {
      const share = Math.round(8 + 92 * Math.log(n || 1) / Math.log(most));
      canvas.style.color = n ? `color-mix(in srgb, var(--accent) ${share}%, var(--paper))` : "var(--unused)";
      context.fillStyle = style("color");
      context.fillRect(i % columns * cell, Math.floor(i / columns) * cell, cell - 1, cell - 1);
    });
    if (at === null) return;
    canvas.style.color = "var(--ink)";
    context.strokeStyle = style("color");
    context.lineWidth = 2;
    context.strokeRect(at % columns * cell, Math.floor(at / columns) * cell, cell - 1, cell - 1);
  };
  const total = () => counts[shown].reduce((a, b) => a + b, 0);
  const point = code => {
    at = code >= 0 && code < counts[shown].length ? code : null;
    readout.textContent = at === null ? "" :
      `code ${at}: used ${count.format(counts[shown][at])} times, ${(100 * counts[shown][at] / Math.max(total(), 1)).toFixed(2)} % of the tokens`;
    paint();
  };
  const under = event => {
    const box = canvas.getBoundingClientRect(), column = Math.floor((event.clientX - box.left) / cell);
    point(Math.floor((event.clientY - box.top) / cell) * columns + Math.min(Math.max(column, 0), columns - 1));
  };
  canvas.addEventListener("pointermove", under);
  canvas.addEventListener("pointerdown", under);
  canvas.addEventListener("pointerleave", () => point(-1));
  canvas.addEventListener("keydown", event => {
    const by = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
    if (!by) return;
    event.preventDefault();
    point(at === null ? 0 : Math.min(Math.max(at + by, 0), counts[shown].length - 1));
  });
  slide(figure, steps, i => {
    shown = i;
    const used = counts[i].filter(n => n > 0).length / counts[i].length;
    figure.querySelector(".summary").textContent = `${count.format(counts[i].length)} codes, ${(100 * used).toFixed(1)}% of them in use ` +
      `on held-out images after step ${count.format(steps[i])}; the most frequent one makes up ` +
      `${(100 * Math.max(...counts[i]) / Math.max(total(), 1)).toFixed(1)}% of all tokens.`;
    canvas.setAttribute("aria-label", figure.querySelector(".summary").textContent);
    point(at ?? -1);
  });
  new ResizeObserver(paint).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
}

const redraws = all("[data-panel]").map(panel), smoothing = document.getElementById("smoothing");
const smoothness = () => {
  document.querySelector("output[for=smoothing]").textContent = smoothing.value === "0" ? "none" : `over ${smoothing.value / 10} % of a curve`;
  redraws.forEach(redraw => redraw());
};
if (smoothing) {
  smoothing.addEventListener("input", smoothness);
  smoothness();
}
all("[data-plan]").forEach(planned);
all("[data-images]").forEach(figure => {
  const {steps, images} = data.images[figure.dataset.images], image = figure.querySelector("img");
  slide(figure, steps, i => {
    image.src = images[i];
    image.alt = `${figure.dataset.title}, after step ${count.format(steps[i])}`;
  });
});
all("#codes").forEach(codes);
document.body.dataset.state = "ready";
