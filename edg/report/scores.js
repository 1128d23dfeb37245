// The scores: a table of means, the differences of paired clips, and the settings that are not the same.

/** Means of every run; and, of two runs or more, what each differs in from the one that is chosen. */
function scoresPart() {
  const runs = data.runs.map((_, run) => run), choice = byId("reference");
  byId("differences").hidden = runs.length < 2;
  choice.append(...runs.map((run) => el("option", { value: run }, data.runs[run].name)));
  const marks = table();
  const compare = () => {
    const reference = Number(choice.value);
    for (const run of runs) marks[run].replaceChildren(...unlike(run, reference));
    byId("paired").replaceChildren(pairedTable(reference));
    byId("plots").replaceChildren(...data.plots.map((plot) => tradeOff(plot, runs.filter((run) => unlike(run, reference).length))));
    if (!data.plots.length) byId("plots").append(el("p.quiet", {}, "The trade-off plot needs scores of consistency or alignment. Run ", el("code", {}, "edg score RUN"), " and make the report again."));
  };
  choice.addEventListener("change", compare);
  compare();
}

function table() {
  const marks = data.runs.map(() => el("div"));
  const scores = data.metrics.map(({ name }) => data.runs.map((run) => run.scores[name] ?? null));
  const ranges = scores.map((column) => {
    const there = column.filter((score) => score && score.mean !== null);
    return [Math.min(...there.map((score) => score.low ?? score.mean)), Math.max(...there.map((score) => score.high ?? score.mean))];
  });
  const columns = [
    { title: "run", keys: data.runs.map((run) => run.name.toLowerCase()) },
    { title: "clips", keys: data.runs.map((run) => run.clips) },
    ...data.metrics.map((metric, m) => ({ metric, title: metric.name.replaceAll("_", " "), keys: scores[m].map((score) => score?.mean ?? null) })),
  ];
  const rows = data.runs.map((run, r) => el("tr", {}, el("th", { scope: "row" }, nameOf(r), marks[r]), el("td", {}, String(run.clips)),
    ...scores.map((column, m) => scoreCell(column[r], ...ranges[m], r))));
  const body = el("tbody", {}, ...rows);
  const heads = columns.map((column) => {
    const button = el("button", { type: "button" }, el("span", {}, column.title));
    const head = el("th", { scope: "col", "aria-sort": "none", title: column.metric?.what || null }, button);
    if (column.metric) button.append(about(column.metric));
    button.addEventListener("click", () => {
      const first = column.metric ? "descending" : "ascending", other = column.metric ? "ascending" : "descending";
      const way = head.getAttribute("aria-sort") === first ? other : first;
      for (const one of heads) one.setAttribute("aria-sort", one === head ? way : "none");
      body.append(...sorted(column.keys, way).map((r) => rows[r]));
    });
    return head;
  });
  byId("table").append(el("table", { "aria-describedby": "caption" },
    el("thead", {}, el("tr", {}, ...heads)), body));
  return marks;
}

function about(metric) {
  const better = { higher: "higher is better", lower: "lower is better" }[metric.better];
  return el("small", {}, [metric.unit, better].filter(Boolean).join(", ") || "\u00a0");
}

/** Indices in the order of their keys; those without one come last. */
function sorted(keys, way) {
  const sign = way === "ascending" ? 1 : -1;
  return keys.map((_, r) => r).sort((a, b) => {
    if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
    return sign * (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0) || a - b;
  });
}

function scoreCell(score, low, high, run) {
  if (!score || score.mean === null) return el("td.none", {}, "–");
  return el("td", {}, el("b", {}, number(score.mean)), el("small", {}, score.low === null ? "one prompt" : `${number(score.low)} to ${number(score.high)}`), whisker(score, low, high, run));
}

// ---- differences -------------------------------------------------------------------------------------------

/** The entry of run against reference; the data have each pair of runs once, the later one against the earlier. */
function differenceOf(run, reference) {
  const [one, other] = [Math.max(run, reference), Math.min(run, reference)].map((r) => data.runs[r].name);
  const found = data.differences.find((entry) => entry.run === one && entry.reference === other);
  if (run > reference) return found;
  const turn = (value) => (value === null ? null : 0 - value);
  const metrics = Object.entries(found.metrics).map(([name, score]) =>
    [name, { ...score, mean: turn(score.mean), low: turn(score.high), high: turn(score.low) }]);
  const settings = found.settings && Object.entries(found.settings).map(([name, [ours, theirs]]) => [name, [theirs, ours]]);
  return { ...found, metrics: Object.fromEntries(metrics), settings: settings && Object.fromEntries(settings) };
}

/** A mark on a run that was made with other settings than the reference. */
function unlike(run, reference) {
  if (run === reference) return [];
  const { settings } = differenceOf(run, reference);
  if (!settings) return [el("small.unlike", {}, "unknown settings: no records")];
  const plain = (value) => (value === null ? "–" : shorten(words(value), 24));
  const all = Object.entries(settings).map(([name, [ours, theirs]]) => `${name.replace(/^options\./, "")} ${plain(ours)}, not ${plain(theirs)}`);
  if (!all.length) return [];
  const shown = [...all.slice(0, 3), ...(all.length > 3 ? [`and ${all.length - 3} more, see Recipes`] : [])];
  return [el("small.unlike", { title: all.join("\n") }, `differs from ${data.runs[reference].name} in:`, ...shown.map((text) => el("span", {}, text)))];
}

function pairedTable(reference) {
  const rows = data.runs.map((_, run) => run).filter((run) => run !== reference).map((run) => ({ run, entry: differenceOf(run, reference) }));
  const cells = data.metrics.map(({ name, better }) => {
    const ends = rows.flatMap(({ entry }) => [entry.metrics[name].mean, entry.metrics[name].low, entry.metrics[name].high]).filter((v) => v !== null);
    return ({ run, entry }) => pairedCell(entry, entry.metrics[name], better, Math.min(0, ...ends), Math.max(0, ...ends), run);
  });
  const heads = [el("th", { scope: "col" }, "run"), el("th", { scope: "col" }, "pairs"),
    ...data.metrics.map((metric) => el("th", { scope: "col", title: metric.what || null }, metric.name.replaceAll("_", " "), about(metric)))];
  return el("table", { "aria-describedby": "paired-caption" }, el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, ...rows.map((row) => el("tr", {}, el("th", { scope: "row" }, nameOf(row.run), ...unlike(row.run, reference)),
      el("td", {}, String(row.entry.pairs), row.entry.pairs ? null : el("small.none", {}, "no clip has the same ID, prompt, image and seed")), ...cells.map((cell) => cell(row))))));
}

function pairedCell(entry, score, better, low, high, run) {
  if (score.mean === null) return el("td.none", {}, "–");
  const sign = score.mean > 0 ? "+" : score.mean < 0 ? "−" : "", minus = (value) => (value < 0 ? "−" : "") + number(Math.abs(value));
  const between = score.low !== null ? `${minus(score.low)} to ${minus(score.high)}` : score.prompts < 2 ? "one prompt" : "no interval: all equal";
  const up = score.mean > 0, good = { higher: up, lower: !up }[better];
  const said = !score.sure ? "" : good === undefined ? (up ? "higher" : "lower") : good ? "better" : "worse";
  return el(score.sure ? "td.sure" : "td", {}, el("b", {}, sign + number(Math.abs(score.mean)), ...(said ? [el("mark", {}, said)] : [])),
    el("small", {}, between), whisker(score, low, high, run, true),
    ...(score.pairs < entry.pairs ? [el("small", {}, `${score.pairs} of ${entry.pairs} pairs`)] : []));
}
