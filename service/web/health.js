// Health: what is served, how good it was when it was exported, and how it fares now.

import { about, ask, readiness } from "./api.js";
import { el, hidden, number, percent, plural } from "./dom.js";

const EVERY_MS = 2000;
const KEPT = 60; // readings of the curve
const PROBES = ["/metrics", "/health/ready", "/health/live"];
const BUCKETS = [["overall", "All"], ["head", "Head"], ["tail", "Tail"], ["cold", "Cold"]];
const FEW = 30; // fewer users than these tell nothing

/** Prometheus' text as [{name, labels, value}]. */
export function parse(text) {
  return text.split("\n").filter((line) => line && !line.startsWith("#")).map((line) => {
    const [, name, inside, value] = line.match(/^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/) ?? [];
    const labels = Object.fromEntries([...(inside ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((each) => [each[1], each[2]]));
    return { name, labels, value: Number(value) };
  });
}

function reading(text) {
  const all = parse(text);
  const sum = (name, which = () => true) => all.filter((each) => each.name === name && which(each.labels)).reduce((total, each) => total + each.value, 0);
  const asked = (labels) => !PROBES.includes(labels.route) && !labels.route.startsWith("/web/") && labels.route !== "/";
  const requests = "http_server_request_duration_seconds";
  return {
    at: performance.now(),
    requests: sum(`${requests}_count`, asked),
    seconds: sum(`${requests}_sum`, asked),
    failed: sum(`${requests}_count`, (labels) => asked(labels) && labels.status.startsWith("5")),
    hits: sum("llmemb_cache_requests_total", (labels) => labels.result === "hit"),
    looked: sum("llmemb_cache_requests_total"),
    queue: sum("llmemb_queue_tokens"),
    index: sum("llmemb_index_items"),
    searches: sum("llmemb_index_search_seconds_count"),
    searching: sum("llmemb_index_search_seconds_sum"),
    refused: sum("llmemb_rejected_total"),
  };
}

const fact = (name, value, told = null) => [el("dt", { text: name }), el("dd", {}, value, told && el("small", { text: told }))];
const tile = (name, id, told) => el("div", { class: "tile" }, el("h2", { text: name }), el("p", { class: "big", id: `now-${id}`, text: "…" }), el("p", { class: "hint", id: `now-${id}-told`, text: told }));

export async function start(root) {
  const now = el("div", { class: "tiles" },
    tile("Requests per second", "rate", "from two reads of /metrics"),
    tile("Cache hit rate", "cache", "of LLM vectors"),
    tile("Queue", "queue", "tokens that wait for the LLM"),
    tile("Index", "index", "items that can be recommended"),
    tile("Answer time", "time", "mean, lately"),
    tile("Refused", "refused", "since the start"));
  const ready = el("p", { class: "ready", id: "now-ready", role: "status" });
  const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  curve.setAttribute("class", "curve");
  curve.setAttribute("viewBox", `0 0 ${KEPT - 1} 20`);
  curve.setAttribute("preserveAspectRatio", "none");
  curve.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  curve.append(line);
  now.firstChild.append(curve);
  const told = el("div", { class: "cards" });
  root.replaceChildren(el("div", { class: "hero" }, el("h1", { text: "Health" }), ready), now, told);

  const rates = [];
  let before = null;
  const put = (id, text, hint) => {
    document.getElementById(`now-${id}`).textContent = text;
    if (hint) document.getElementById(`now-${id}-told`).textContent = hint;
  };

  async function read() {
    const { ready: well, told: phase, degraded } = await readiness();
    const words = well ? (degraded.length ? `Ready, without: ${degraded.join(", ")}.` : "Ready, and nothing is missing.") : `Not ready: ${phase ?? "the service does not answer"}.`;
    if (ready.textContent !== words) ready.textContent = words;
    ready.className = `ready ${well ? (degraded.length ? "warn" : "good") : "bad"}`;
    if (phase === null) { before = null; return; }
    const last = reading(await ask("GET", "metrics", { raw: true }));
    put("cache", last.looked ? percent(last.hits / last.looked) : "–", last.looked ? `${number(last.hits)} of ${number(last.looked)} LLM vectors` : "nothing was looked up yet");
    put("queue", number(last.queue));
    put("index", number(last.index), last.searches ? `searched in ${number((1000 * last.searching) / last.searches, 1)} ms on average` : null);
    put("refused", number(last.refused), `since the start; ${plural(last.failed, "answer")} of 5xx`);
    if (before && last.requests >= before.requests) {
      const more = last.requests - before.requests;
      const rate = (1000 * more) / (last.at - before.at);
      put("rate", number(rate, rate < 10 ? 1 : 0), "over the last two reads of /metrics, without probes");
      if (more) put("time", `${number((1000 * (last.seconds - before.seconds)) / more, 0)} ms`, `mean of the last ${plural(more, "request")}`);
      else if (last.requests) put("time", `${number((1000 * last.seconds) / last.requests, 0)} ms`, "mean since the start");
      rates.push(rate);
      if (rates.length > KEPT) rates.shift();
      const most = Math.max(1, ...rates);
      line.setAttribute("points", rates.map((each, at) => `${KEPT - rates.length + at},${(19 - (18 * each) / most).toFixed(2)}`).join(" "));
    }
    before = last;
  }

  async function again() {
    if (!ready.isConnected) return; // this part has begun anew
    if (!root.hidden && !document.hidden) {
      try { await read(); } catch { before = null; }
    }
    setTimeout(again, EVERY_MS);
  }
  again();
  const info = await about(true);
  told.replaceChildren(bundleCard(info), dataCard(info), qualityCard(info));
}

const short = (hash) => el("code", { title: hash, text: hash.slice(0, 12) });

const bundleCard = (info) => el("section", { class: "card", "aria-labelledby": "health-bundle" },
  el("h2", { id: "health-bundle", text: "Bundle" }),
  el("dl", { class: "facts" },
    fact("name", info.name), fact("bundle", short(info.bundle)), fact("encoder", short(info.encoder)),
    fact("LLM", info.llm, `${number(info.llm_dim)} numbers a vector, in ${info.dtype}`),
    fact("self-test", number(info.parity, 5), "least cosine, at start, with the vectors at export"),
    fact("views", el("ul", { class: "plain", role: "list" }, info.views.map((view) => el("li", {}, el("b", { text: view.name }), ` ${plural(view.width, "number")}, weight ${number(view.weight, 2)}`)))),
    fact("exported by", info.bundle_version), fact("service", info.version)));

const dataCard = (info) => el("section", { class: "card", "aria-labelledby": "health-data" },
  el("h2", { id: "health-data", text: "Catalogue" }),
  el("dl", { class: "facts" },
    fact("items now", number(info.items)), fact("in training", number(info.training_items)),
    fact("hidden", number(info.catalogue.hidden)), fact("changes", number(info.catalogue.version))),
  el("h3", { text: "Attributes" }),
  el("ul", { class: "shares", role: "list" }, info.catalogue.attributes.slice(0, 12).map(({ name, share, kinds }) => el("li", {},
    el("span", { class: "grow", text: name }), el("small", { class: "muted", text: Object.keys(kinds).join(", ") }),
    el("span", { class: "bar", "aria-hidden": "true" }, el("span", { style: { width: `${100 * share}%` } })), el("span", { class: "digits", text: percent(share) })))));

function qualityCard({ metrics, template }) {
  const card = el("section", { class: "card whole", "aria-labelledby": "health-quality" }, el("h2", { id: "health-quality", text: "How good it was at export" }));
  const full = metrics.full;
  const ours = full?.ours;
  if (!ours) {
    card.append(el("p", { class: "muted", text: "Nothing was measured when this bundle was exported." }));
    return card;
  }
  const ids = full["id-only"];
  const users = metrics.targets?.overall;
  const hit = (model, bucket) => model?.[bucket]?.hr?.mean;
  const whom = users ? plural(users, "user") : "the users";
  const kept = metrics.protocol?.startsWith("split by time")
    ? `All that came after one moment was kept aside; asked for is the first ${template.noun} after it, of ${whom} known from before. `
    : `Of ${whom} the latest ${template.noun} was kept aside. `;
  const said = kept +
    `Among the whole catalogue, it was within the first ${metrics.k} for ${percent(hit(ours, "overall"), 1)} of them` +
    (ids ? `; a model of ids alone reaches ${percent(hit(ids, "overall"), 1)}.` : ".") +
    (ids && hit(ours, "tail") !== undefined ? ` Where it was from the tail: ${percent(hit(ours, "tail"), 1)}, and ${percent(hit(ids, "tail"), 1)} by ids alone.` : "");
  card.append(el("p", { class: "lead", text: said }));
  const rows = BUCKETS.filter(([bucket]) => ours[bucket] && (metrics.targets?.[bucket] ?? 1) > 0);
  const most = Math.max(...rows.flatMap(([bucket]) => [hit(ours, bucket) ?? 0, hit(ids, bucket) ?? 0]), 0.01);
  const cell = (model, bucket, kind) => {
    const figure = model?.[bucket]?.hr;
    if (!figure) return el("td", { text: "–" });
    const range = figure.low === undefined ? null : el("small", { text: `${percent(figure.low, 1)} to ${percent(figure.high, 1)}` });
    return el("td", {}, el("span", { class: `bar ${kind}`, "aria-hidden": "true" }, el("span", { style: { width: `${(100 * figure.mean) / most}%` } })), el("span", { class: "digits", text: percent(figure.mean, 1) }), range);
  };
  card.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Measured at export" }, el("table", {},
    el("caption", {}, hidden("Measured at export: "), `Held-out ${template.noun} within the first ${metrics.k} (HR@${metrics.k}), with 95 % intervals`),
    el("thead", {}, el("tr", {}, ["Target", "Users", "This bundle", ids && "Ids only"].filter(Boolean).map((text) => el("th", { scope: "col", text })))),
    el("tbody", {}, rows.map(([bucket, label]) => el("tr", {},
      el("th", { scope: "row" }, label), el("td", {}, number(metrics.targets?.[bucket] ?? NaN), (metrics.targets?.[bucket] ?? FEW) < FEW && el("small", { text: "too few to tell" })),
      cell(ours, bucket, "ours"), ids && cell(ids, bucket, "ids")))))),
    metrics.protocol && el("p", { class: "hint", text: `Protocol: ${metrics.protocol}.` }));
  return card;
}
