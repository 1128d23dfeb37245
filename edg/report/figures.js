// Elements and pictures as SVG. Text goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const HUES = ["#4a7dfc", "#e0662f", "#1a9f83", "#c2479f", "#a98b00", "#8460ea", "#2798c9", "#94705a"];

/** What a run is drawn in: eight colours by hand, then round the circle. */
function hueOf(run) {
  return run < HUES.length ? HUES[run] : `hsl(${(run * 137.5) % 360} 55% 52%)`;
}

/** An element: el("a.record", {href: "x"}, "text", child, ...). */
function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name.split(".")[0]), name, attributes, children);
}

function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name.split(".")[0]), name, attributes, children);
}

function filled(node, name, attributes, children) {
  const classes = name.split(".").slice(1);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** A number as people write it: three figures, no more. */
function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.001 || size >= 1e5)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

/** Round values that span low to high, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return { values: found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

/** Motion of one request: a line for each run over time, from 0 to the largest, and where the clock stands. */
function curves(cells, seconds) {
  const lines = cells.map((cell, run) => ({ cell, run })).filter(({ cell }) => cell && cell.curve?.length);
  if (!lines.length) return null;
  const top = Math.max(...lines.flatMap(({ cell }) => cell.curve)) || 1;
  const paths = lines.map(({ cell, run }) => {
    const points = cell.curve.map(
      (value, pair) => `${((1000 * (pair + 1.5)) / cell.fps / seconds).toFixed(1)},${(100 - (98 * value) / top).toFixed(1)}`
    );
    const path = svg("polyline", { points: points.join(" "), "data-run": run });
    path.style.stroke = hueOf(run);
    return path;
  });
  const said = lines.map(({ cell, run }) => `${data.runs[run].name} ${number(cell.scores.motion_degree)}`).join(", ");
  const hand = el("i.hand");
  const box = el("div.curves", {},
    svg("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img",
      "aria-label": `motion in px/frame over time; means: ${said}` }, ...paths),
    hand, el("span.top", {}, `${Number(top.toPrecision(2))} px/frame`), el("span.bottom", {}, "0"));
  return { box, move: (time) => { hand.style.left = `${Math.min(100, (100 * time) / seconds)}%`; } };
}

/** Mean and interval on the scale of its column; zero: with a line where 0 is. */
function whisker(score, low, high, run, zero = false) {
  const at = (value) => (high > low ? 4 + (72 * (value - low)) / (high - low) : 40);
  const line = svg("line", { x1: at(score.low ?? score.mean), x2: at(score.high ?? score.mean), y1: 6, y2: 6 });
  const dot = svg("circle", { cx: at(score.mean), cy: 6, r: 3.2 });
  line.style.stroke = dot.style.fill = hueOf(run);
  const none = zero ? [svg("line.zero", { x1: at(0), x2: at(0), y1: 0, y2: 12 })] : [];
  return svg("svg.whisker", { viewBox: "0 0 80 12", width: 80, height: 12, "aria-hidden": "true" }, ...none, line, dot);
}

/** Points on the border of an ellipse, mean + root (cos a, sin a). */
function border({ mean, root }, count = 72) {
  return Array.from({ length: count }, (_, k) => {
    const c = Math.cos((2 * Math.PI * k) / count), s = Math.sin((2 * Math.PI * k) / count);
    return [mean[0] + root[0][0] * c + root[0][1] * s, mean[1] + root[1][0] * c + root[1][1] * s];
  });
}

/** The part of a convex polygon between the limits of both axes, [low, high] or null where there is none
 *  (Sutherland and Hodgman 1974). */
function between(points, limits) {
  const cut = (corners, axis, limit, sign) => corners.flatMap((b, k) => {
    const a = corners.at(k - 1), [da, db] = [a, b].map((corner) => sign * (corner[axis] - limit));
    const crossing = da < 0 !== db < 0 ? [[0, 1].map((i) => a[i] + ((b[i] - a[i]) * da) / (da - db))] : [];
    return db < 0 ? crossing : [...crossing, b];
  });
  return limits.reduce((left, ends, axis) => ends.reduce((kept, limit, end) =>
    (limit === null ? kept : cut(kept, axis, limit, end ? -1 : 1)), left), points);
}

/** One metric against another: every run's mean with its ellipse and its name; those in `others` are marked. */
function tradeOff(plot, others) {
  const W = 560, H = 400, left = 62, right = 18, above = 18, below = 48;
  const metrics = [plot.x, plot.y].map((name) => data.metrics.find((metric) => metric.name === name));
  const limits = metrics.map((metric) => metric.range);
  const there = plot.runs.map((at, run) => ({ at, run, ring: at?.root ? between(border(at), limits) : [] })).filter(({ at }) => at);
  const all = there.flatMap(({ at, ring }) => [at.mean, ...ring]);
  const range = (axis) => {
    const values = all.map((point) => point[axis]), low = Math.min(...values), high = Math.max(...values);
    const pad = (high - low) * 0.08 || Math.abs(low) * 0.1 || 1;
    const [least, most] = limits[axis];
    return [Math.max(low - pad, least !== null && low >= least ? least : -Infinity), Math.min(high + pad, most !== null && high <= most ? most : Infinity)];
  };
  const [x0, x1] = range(0), [y0, y1] = range(1);
  const X = (v) => left + ((v - x0) / (x1 - x0)) * (W - left - right);
  const Y = (v) => H - below - ((v - y0) / (y1 - y0)) * (H - above - below);
  const parts = [];
  const xs = ticks(x0, x1, 6), ys = ticks(y0, y1, 5);
  for (const v of xs.values) {
    parts.push(svg("line.grid", { x1: X(v), x2: X(v), y1: above, y2: H - below }),
      svg("text.tick", { x: X(v), y: H - below + 18, "text-anchor": "middle" }, v.toFixed(xs.digits)));
  }
  for (const v of ys.values) {
    parts.push(svg("line.grid", { x1: left, x2: W - right, y1: Y(v), y2: Y(v) }),
      svg("text.tick", { x: left - 8, y: Y(v) + 4, "text-anchor": "end" }, v.toFixed(ys.digits)));
  }
  for (const { ring: corners, run } of there) {
    if (!corners.length) continue;
    const ring = svg("polygon.ellipse", { points: corners.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join(" ") });
    ring.style.stroke = ring.style.fill = hueOf(run);
    parts.push(ring);
  }
  const placed = [];
  for (const { at, run } of [...there].sort((a, b) => a.at.mean[1] - b.at.mean[1])) {
    const x = X(at.mean[0]), name = shorten(data.runs[run].name, 28) + (others.includes(run) ? " *" : ""), width = name.length * 7;
    const end = x + width > W - right, from = end ? x - 9 - width : x + 9;
    let y = Y(at.mean[1]) + 4;
    while (placed.some((other) => Math.abs(other.y - y) < 14 && from < other.to && from + width > other.from)) y -= 2;
    placed.push({ y, from, to: from + width });
    const dot = svg("circle", { cx: x, cy: Y(at.mean[1]), r: 4.5 });
    dot.style.fill = hueOf(run);
    parts.push(dot, svg("text.name", { x: end ? x - 9 : x + 9, y, "text-anchor": end ? "end" : "start" }, name));
  }
  const [mx, my] = metrics, marked = there.some(({ run }) => others.includes(run));
  parts.push(svg("text.axis", { x: (left + W - right) / 2, y: H - 8, "text-anchor": "middle" }, titleOf(mx)),
    svg("text.axis", { transform: `translate(15 ${(above + H - below) / 2}) rotate(-90)`, "text-anchor": "middle" }, titleOf(my)));
  return el("figure.plot", {},
    svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${plot.x} against ${plot.y}, values as in the table` }, ...parts),
    el("figcaption", {}, "Mean of each run with its 95 % confidence ellipse over prompts, clipped to the range of the metrics.",
      marked ? " * other or unknown settings, see the table." : ""));
}

function titleOf(metric) {
  return metric.name.replaceAll("_", " ") + (metric.unit ? `, ${metric.unit}` : "");
}

function shorten(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

/** The colour key of the flow: a disc whose places have the colour of motion towards them. */
function flowKey() {
  const cell = data.requests.flatMap((request) => request.cells).find((one) => one && one.w);
  const side = cell ? Math.min(cell.w, cell.h) : 0, floor = data.key.floor * Math.max(1, side / data.key.side);
  const rim = cell ? ` (${Number((data.key.limit * side).toPrecision(2))} px at ${cell.w}×${cell.h})` : "";
  return [el("img", { src: data.key.wheel, width: 64, height: 64, alt: "colour wheel: red right, green down left, blue up left" }),
    el("figcaption", {}, el("b", {}, "Optical flow. "), "The colour shows the direction and speed: a point on the disc has the colour of motion from the ",
      `centre to it. The rim stands for ${100 * data.key.limit} % of the shorter side per frame${rim} or more. Motion below `,
      `${Number(floor.toPrecision(2))} px per frame is black: it is noise, which compression adds even to a still clip.`)];
}
