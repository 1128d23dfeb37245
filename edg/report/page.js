// The page: one block for each request, filled when it comes near the screen; a table; recipes.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const at = (name) => (data.media ? data.media[name] : `${data.folder}/${name}`);
const near = new Set(); // blocks that are near the screen
const STRETCH = 1.55, BESIDE = 310; // of .cells in page.css; px beside the clips
const STRIP = 8; // frames in a strip, as in flow_pictures.py
let player, tellBar;

function start() {
  const clips = data.requests.flatMap((request) => request.cells).filter((cell) => cell && cell.video);
  legend();
  problems();
  byId("key").append(...flowKey());
  player = makePlayer(clips, changed);
  tellBar = makeBar(player);
  const blocks = data.requests.map(makeBlock);
  byId("rows").append(...blocks.map((block) => block.box));
  tools(blocks);
  scoresPart();
  recipes();
  tabs();
  watch(blocks);
  player.seek(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) player.play(true);
}

function changed(state) {
  tellBar?.(state);
  for (const block of near) block.move?.(state.time);
}

function nameOf(run) {
  const dot = el("i.dot");
  dot.style.background = hueOf(run);
  return el("span.run", { title: data.runs[run].name }, dot, el("span", {}, data.runs[run].name));
}

function legend() {
  byId("legend").append(...data.runs.map((_, run) => el("li", {}, nameOf(run))));
}

function problems() {
  const box = byId("problems");
  if (!data.problems.length) return;
  box.hidden = false;
  const count = data.problems.length;
  box.append(el("summary", {}, `${count} ${count === 1 ? "file" : "files"} could not be shown`),
    el("ul", {}, ...data.problems.map((text) => el("li", {}, text))));
}

// ---- clips -------------------------------------------------------------------------------------------------

function makeBlock(request, index) {
  const box = el("article.request", { "aria-label": request.prompt || request.id },
    el("header", {}, el("h2", {}, request.prompt || request.id), request.prompt ? el("p.id", {}, request.id) : null));
  const shown = request.cells.find((cell) => cell?.w);
  if (shown) box.style.setProperty("--shape", shown.w / shown.h);
  return { box, request, index, text: `${request.prompt}\n${request.id}`.toLowerCase(), filled: false };
}

function fillBlock(block) {
  block.filled = true;
  block.box.classList.add("filled");
  const { request } = block;
  const cells = request.cells.map(makeCell);
  block.cells = cells.filter((cell) => cell.video);
  const lines = curves(request.cells, player.seconds);
  const picture = request.image
    ? el("img.input", { src: at(request.image), alt: "input image", decoding: "async" })
    : request.image_error ? el("p.empty", {}, request.image_error) : null;
  if (picture) block.box.firstChild.prepend(el("figure.source", {}, picture, el("figcaption", {}, "input image")));
  if (request.image) picture.addEventListener("load", () => byPixels(picture, picture.naturalWidth, picture.naturalHeight));
  block.box.append(el("div.body", {}, el("div.cells", {}, ...cells.map((cell) => cell.box)),
    ...(lines ? [lines.box] : []), sheet(request)));
  block.move = (time) => {
    lines?.move(time);
    for (const cell of block.cells) cell.move(time);
  };
  block.box.addEventListener("pointerover", (event) => light(block.box, event.target.closest(".cell")?.dataset.run));
  block.box.addEventListener("pointerleave", () => light(block.box, undefined));
}

function light(box, run) {
  for (const line of box.querySelectorAll("polyline")) line.classList.toggle("on", line.dataset.run === run);
}

/** A small picture is shown by whole pixels, in a box as wide as so many of these as fit (page.css). */
function byPixels(box, width, height, count = 1) {
  if (Math.min(width, height) >= data.small) return;
  box.classList.add("pixels");
  box.style.setProperty("--own", `${(count * width) / devicePixelRatio}px`);
}

function makeCell(cell, run) {
  const box = el("figure.cell", { "data-run": run }, nameOf(run));
  const caption = el("figcaption");
  if (!cell || !cell.video) {
    box.append(el("div.empty", {}, cell ? cell.error || "no video" : "no clip in this run"), caption);
    if (cell?.record) caption.append(recordLink(cell));
    return { box };
  }
  byPixels(box, cell.w, cell.h);
  const video = el("video", { muted: true, playsinline: true, preload: "auto", tabindex: "-1",
    "aria-label": `clip of ${data.runs[run].name}`, disablepictureinpicture: true });
  video.muted = true;
  const frame = el("div.frame", {}, video);
  frame.style.aspectRatio = `${cell.w} / ${cell.h}`;
  const poster = background(frame, cell.strip, Math.min(cell.n, STRIP));
  poster(0);
  video.addEventListener("loadeddata", () => video.classList.add("ready"));
  video.addEventListener("error", () => video.hasAttribute("src") && frame.replaceChildren(el("div.empty", {}, "this browser cannot play this clip")));
  const flow = el("div.flow", { role: "img", "aria-label": "optical flow" });
  flow.style.aspectRatio = `${cell.w} / ${cell.h}`;
  const paint = cell.flow ? background(flow, cell.flow, cell.cells) : () => {};
  const now = el("span.now", { title: "mean motion from the previous frame to this one" });
  caption.append(now);
  if (cell.record) caption.append(recordLink(cell));
  box.append(frame, ...(cell.flow ? [flow] : []), caption, ...(cell.note ? [el("p.note", {}, cell.note)] : []));
  let pair = -1;
  const move = (time) => {
    const next = Math.max(0, Math.min(cell.curve.length, Math.floor(time * cell.fps + 1e-6)) - 1);
    if (next === pair || !cell.curve.length) return;
    pair = next;
    now.textContent = `${cell.curve[pair].toFixed(2)} px`;
    paint(cellOf(cell, pair));
  };
  return { box, video, cell, move };
}

/** Show one picture of a strip behind a box. */
function background(box, name, count) {
  box.style.backgroundImage = `url("${at(name)}")`;
  box.style.backgroundSize = `${100 * count}% 100%`;
  return (index) => { box.style.backgroundPosition = `${count > 1 ? (100 * index) / (count - 1) : 0}% 0`; };
}

function recordLink(cell) {
  const link = el("a.record", { href: at(cell.record), title: "all settings, to make this clip again" }, "record");
  if (data.media) link.download = "record.json";
  else link.target = "_blank";
  return link;
}

function sheet(request) {
  const rows = request.cells.flatMap((cell, run) => {
    if (!cell || !cell.video) return [];
    const frames = el("img", { src: at(cell.strip), loading: "lazy", decoding: "async", alt: "frames from left to right" });
    const strip = el("div.strip", {}, nameOf(run), frames, cell.flow ? flowStrip(cell) : null);
    byPixels(strip, cell.w, cell.h, Math.min(cell.n, STRIP));
    return [strip];
  });
  return el("div.sheet", {}, ...rows);
}

/** Under each frame of the strip the flow that led into it. */
function flowStrip(cell) {
  const count = Math.min(cell.n, STRIP);
  const boxes = Array.from({ length: count }, (_, k) => {
    const box = el("i"), pair = Math.round((k * (cell.n - 1)) / Math.max(1, count - 1)) - 1;
    box.style.aspectRatio = `${cell.w} / ${cell.h}`;
    if (pair >= 0) background(box, cell.flow, cell.cells)(cellOf(cell, pair));
    return box;
  });
  return el("div.flowstrip", { role: "img", "aria-label": "optical flow from left to right" }, ...boxes);
}

/** Which picture of the flow strip shows a pair of frames: long clips have fewer pictures than pairs. */
function cellOf(cell, pair) {
  return cell.curve.length > 1 ? Math.round((pair * (cell.cells - 1)) / (cell.curve.length - 1)) : 0;
}

/** Videos of blocks near the screen are loaded and follow the clock; the others are let go. */
function watch(blocks) {
  const of = new Map(blocks.map((block) => [block.box, block]));
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) (entry.isIntersecting ? enter : leave)(of.get(entry.target));
    changed(player.state);
  }, { rootMargin: "300px 0px" });
  for (const block of blocks) observer.observe(block.box);
}

function enter(block) {
  if (!block.filled) fillBlock(block);
  near.add(block);
  for (const { video, cell } of block.cells) {
    player.add(video, cell);
    video.src = at(cell.video);
  }
}

function leave(block) {
  near.delete(block);
  for (const { video } of block.cells ?? []) {
    player.remove(video);
    video.classList.remove("ready");
    video.removeAttribute("src");
    video.load();
  }
}

/** Filter, order, layers and size. */
function tools(blocks) {
  const filter = byId("filter"), order = byId("order"), rows = byId("rows");
  const none = el("p", { hidden: true }, "No prompt or ID contains all these words.");
  rows.after(none);
  const count = () => {
    const shown = blocks.filter((block) => !block.box.hidden).length;
    byId("count").textContent = shown === blocks.length ? `${shown} ${shown === 1 ? "prompt" : "prompts"}` : `${shown} of ${blocks.length}`;
  };
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    for (const block of blocks) block.box.hidden = !words.every((word) => block.text.includes(word));
    none.hidden = blocks.some((block) => !block.box.hidden);
    count();
  });
  const kinds = [["highest", (v) => v.reduce((a, b) => a + b, 0) / v.length]];
  if (data.runs.length > 1) kinds.push(["largest difference between runs in", (v) => Math.max(...v) - Math.min(...v)]);
  order.append(el("option", { value: "" }, "default order"));
  kinds.forEach(([word], kind) => order.append(...data.metrics.map((metric, m) =>
    el("option", { value: `${kind}/${m}` }, `${word} ${metric.name.replaceAll("_", " ")}`))));
  order.addEventListener("change", () => {
    const [kind, m] = order.value.split("/").map(Number);
    const key = ({ request }) => {
      const values = request.cells.map((cell) => cell?.scores[data.metrics[m].name]).filter(Number.isFinite);
      return values.length ? kinds[kind][1](values) : -Infinity;
    };
    const keys = order.value ? new Map(blocks.map((block) => [block, key(block)])) : null;
    rows.append(...[...blocks].sort((a, b) => (keys && keys.get(b) - keys.get(a)) || a.index - b.index).map((block) => block.box));
  });
  for (const button of document.querySelectorAll("[data-layer]")) {
    const set = (on) => {
      button.setAttribute("aria-pressed", on);
      document.body.classList.toggle(`with-${button.dataset.layer}`, on);
    };
    button.addEventListener("click", () => set(button.getAttribute("aria-pressed") !== "true"));
    set(button.getAttribute("aria-pressed") === "true");
  }
  sizes(rows);
  count();
}

/** The size of the clips: until somebody sets it, one or two runs have the width of the page, as far as a clip is not too high
 *  for the screen (--most in page.css). */
function sizes(rows) {
  const size = byId("size"), runs = data.runs.length, set = (name, value) => rows.style.setProperty(name, value);
  const one = data.requests.flatMap((request) => request.cells).find((cell) => cell?.w) ?? { w: 1, h: 1 };
  const least = one.w < 1.2 * one.h ? 160 : 190;
  const fit = () => {
    const width = Math.min(1500, document.body.clientWidth) - BESIDE;
    size.value = runs > 2 ? least : Math.max(least, width / runs / STRETCH);
    set("--cell", `${size.value}px`);
  };
  set("--runs", runs);
  set("--least", `${least}px`);
  size.addEventListener("input", () => {
    removeEventListener("resize", fit);
    set("--most", "9999px");
    set("--cell", `${size.value}px`);
  });
  addEventListener("resize", fit);
  fit();
}

// ---- recipes -----------------------------------------------------------------------------------------------

function recipes() {
  const parts = data.runs.map((run) => [points(run.point), sets(run.sets), run.settings ?? {}]);
  const names = [...new Set([0, 1, 2].flatMap((k) => parts.flatMap((one) => Object.keys(one[k]))))];
  const flat = parts.map((one) => Object.assign({}, ...one));
  const text = (one, name) => (name in one ? words(one[name]) : "–");
  const different = names.filter((name) => new Set(flat.map((one) => text(one, name))).size > 1);
  const box = byId("recipes-part");
  if (data.runs.length > 1) {
    box.append(el("h2", {}, "What differs"), different.length
      ? el("div.wide", {}, el("table.settings", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "setting"), ...data.runs.map((_, r) => el("th", { scope: "col" }, nameOf(r))))),
        el("tbody", {}, ...different.map((name) => el("tr", {}, el("th", { scope: "row" }, name), ...flat.map((one) => el("td", {}, text(one, name))))))))
      : el("p.quiet", {}, "The records show no difference."));
  }
  box.append(el("h2", {}, "All settings"), ...data.runs.map(recipe));
}

function recipe(run, r) {
  const part = (title, value) => (value && Object.keys(value).length
    ? [el("h3", {}, title), el("pre", { tabindex: 0 }, JSON.stringify(value, null, 2))] : []);
  const settings = Object.entries(run.settings ?? {});
  return el("details", { open: data.runs.length === 1 }, el("summary", {}, nameOf(r)),
    el("p.quiet", {}, `${run.folder}, ${run.clips} clips; page made ${data.made}`),
    ...(settings.length ? [] : [el("p.quiet", {}, "No records: it is not known how these clips were made.")]),
    ...part("Point of the sweep", run.point),
    ...(settings.length ? [el("h3", {}, "Settings"), el("dl", {}, ...settings.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, words(value))]))] : []),
    ...part("Parameter sets and how they were merged", run.sets),
    ...part("Command, files and versions", run.notes));
}

function words(value) {
  if (Array.isArray(value) && value.every((one) => typeof one !== "object")) return value.join(", ") || "none";
  return typeof value === "string" ? value || "empty" : JSON.stringify(value);
}

function points(point) {
  return Object.fromEntries(Object.entries(point?.options ?? {}).map(([name, value]) => [`point ${name}`, value]));
}

/** Every parameter set in a few words: the steps of the merge that it names and their inputs, or its file's hash, and the hash
 *  of its numbers, which tells sets of one recipe apart. */
function sets(all) {
  const start = (hash) => String(hash).slice(0, 8);
  const step = ({ op, ...rest }) => [op, ...Object.entries(rest).filter(([, v]) => v !== "").map(([k, v]) => `${k} ${words(v)}`)].join(" ");
  return Object.fromEntries(Object.entries(all ?? {}).map(([name, set]) => {
    const steps = set?.recipe?.outputs?.[set.output];
    const from = Object.entries(set?.inputs ?? {}).map(([key, hash]) => `${key} ${start(hash)}`).join(", ");
    const numbers = set?.numbers_sha256 ? [`numbers ${start(set.numbers_sha256)}, ${words(set.dtypes)}`] : [];
    const shown = Array.isArray(steps) ? [...steps.map(step), `seed ${set.recipe.seed}, of ${from}`, ...numbers].join("\n")
      : Array.isArray(set?.sha256) ? `file ${set.sha256.map(start).join(", ")}` : numbers[0] ?? words(set);
    return [`set ${name}`, shown];
  }));
}

// ---- parts of the page -------------------------------------------------------------------------------------

function tabs() {
  const links = [...document.querySelectorAll("nav a")];
  const show = () => {
    if (location.hash === "#rows") return;
    const wanted = links.some((link) => link.hash === location.hash) ? location.hash : "#clips";
    for (const link of links) {
      byId(`${link.hash.slice(1)}-part`).hidden = link.hash !== wanted;
      if (link.hash === wanted) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.body.dataset.part = wanted.slice(1);
    scrollTo(0, 0);
  };
  addEventListener("hashchange", show);
  show();
}
