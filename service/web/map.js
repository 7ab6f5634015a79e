// Map: the catalogue in two dimensions, on a canvas; all that it tells stands beside it as text, too.

import { about, ask, isAbort } from "./api.js";
import { announce, debounce, el, number, plural } from "./dom.js";
import { learn, recall, showItem, titleOf } from "./items.js";
import { searchBox } from "./search.js";

const MOST_GROUPS = 8;
const BINS = [1, 4, 16, 64, 256, 1024]; // interactions: 0, 1 to 3, 4 to 15, …
const POPULARITY = "\u0000popularity";
const NEAR_PX = 12;
const NEAR_TOUCH_PX = 26;
const CLOSEST = 60; // times the whole
const STEP_PX = 60; // of an arrow key
const INSTRUCTIONS = "Drag or use the arrow keys to move, the wheel, two fingers or + and − to come closer, 0 to see all. Enter opens the item in the middle.";

export async function start(root) {
  const frame = el("div", { class: "map-frame" });
  root.replaceChildren(
    el("div", { class: "hero" }, el("h1", { text: "Map" }), el("p", { text: "Items that are alike stand together. Choose one to see its neighbours." })),
    frame);
  let info, map;
  try {
    [info, map] = await Promise.all([about(), ask("GET", "map")]);
  } catch (problem) {
    frame.replaceChildren(el("p", { class: problem.passing ? "muted" : "wrong", text: problem.passing ? "Waiting for the service." : problem.message }));
    throw problem;
  }
  if (!map.ids.length) {
    frame.replaceChildren(el("div", { class: "empty" }, el("h2", { text: "The catalogue is empty" }), el("p", { text: "Add an item, and it stands here." })));
    return;
  }
  draw(frame, info, map);
}

/** What colours say: {groups: [{label, color}], of: group of each item, -1 for none}. */
function byPopularity(interactions, colors) {
  const of = interactions.map((count) => BINS.filter((least) => count >= least).length);
  const label = (at) => at === 0 ? "0, cold" : at === BINS.length ? `${number(BINS[at - 1])} and more` : `${BINS[at - 1]} to ${BINS[at] - 1}`;
  const used = [...Array(BINS.length + 1).keys()].filter((at) => of.includes(at));
  return {
    told: "interactions in training",
    groups: used.map((at) => ({ label: label(at), color: at === 0 ? colors.cold : colors.scale[at - 1], count: of.filter((each) => each === at).length })),
    of: of.map((at) => used.indexOf(at)),
  };
}

function byValue(name, values, colors) {
  const firsts = values.map((value) => [value].flat(Infinity)[0] ?? null).map((value) => (value === "" ? null : value));
  const numbers = firsts.map((value) => (value !== null && typeof value !== "boolean" && String(value).trim() !== "" ? Number(value) : NaN));
  const said = firsts.filter((value) => value !== null).length;
  const numeric = numbers.filter((value) => !Number.isNaN(value));
  if (said && numeric.length > 0.9 * said && new Set(numeric).size > MOST_GROUPS) return byNumber(name, numbers, colors);
  const counts = new Map();
  for (const value of firsts) if (value !== null) counts.set(String(value), (counts.get(String(value)) ?? 0) + 1);
  const groups = [...counts.entries()].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, MOST_GROUPS - 1)
    .map(([label, count], at) => ({ label, count, color: colors.groups[at] }));
  const place = new Map(groups.map((group, at) => [group.label, at]));
  const of = firsts.map((value) => (value === null ? -1 : place.get(String(value)) ?? -1));
  const rest = of.filter((at) => at < 0).length;
  if (rest) groups.push({ label: "others", count: rest, color: colors.rest });
  return { told: `${name}${values.some(Array.isArray) ? " (the first of each)" : ""}`, groups, of: of.map((at) => (at < 0 ? groups.length - 1 : at)) };
}

function byNumber(name, numbers, colors) {
  const sorted = numbers.filter((value) => !Number.isNaN(value)).sort((a, b) => a - b);
  const cuts = [...new Set([1, 2, 3, 4].map((at) => sorted[Math.floor((at * sorted.length) / 5)]))].filter((cut) => cut > sorted[0]);
  const bin = (value) => (Number.isNaN(value) ? cuts.length + 1 : cuts.filter((cut) => value >= cut).length);
  const edges = [sorted[0], ...cuts];
  const of = numbers.map(bin);
  const groups = edges.map((least, at) => ({ label: at === edges.length - 1 ? `from ${least}` : `${least} to below ${edges[at + 1]}`, color: colors.scale[at + 1], count: of.filter((each) => each === at).length }));
  const rest = of.filter((at) => at > cuts.length).length;
  if (rest) groups.push({ label: "not said", color: colors.rest, count: rest });
  return { told: name, groups, of };
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  const list = (name, count) => [...Array(count).keys()].map((at) => read(`--${name}-${at}`));
  return { groups: list("group", MOST_GROUPS - 1), scale: list("scale", BINS.length), cold: read("--map-cold"), rest: read("--map-rest"), ink: read("--ink"), surface: read("--map") };
}

function draw(frame, info, { ids, x, y, interactions, total }) {
  const noun = info.template.noun;
  const canvas = el("canvas", { tabindex: "0", role: "application", "aria-roledescription": "map", "aria-label": `Map of ${plural(ids.length, "item")}`, "aria-describedby": "map-told map-help" });
  const tip = el("div", { class: "tip", "aria-hidden": "true", hidden: true });
  const told = el("p", { class: "hidden", id: "map-told" });
  const legend = el("ul", { class: "legend", role: "list", "aria-label": "Legend" });
  const aside = el("div", { class: "card map-item", id: "map-item" });
  const colour = el("select", { id: "map-colour" },
    el("option", { value: POPULARITY, text: "popularity" }),
    info.catalogue.attributes.map(({ name }) => el("option", { value: name, text: name })));
  const zoom = (text, label, act) => el("button", { class: "icon", type: "button", "aria-label": label, title: label, text, on: { click: act } });
  const search = searchBox({ label: "Find an item on the map", placeholder: `A ${noun}`, pick: (item) => choose(item.item_id, true) });
  frame.replaceChildren(
    el("div", { class: "map-tools" },
      search.element,
      el("div", { class: "field inline" }, el("label", { for: "map-colour", text: "Colour by" }), colour)),
    el("div", { class: "map" },
      el("div", { class: "map-main" },
        el("div", { class: "canvas-box" }, canvas, tip,
          el("div", { class: "map-zoom" }, zoom("+", "Closer", () => zoomAt(1.6)), zoom("−", "Farther", () => zoomAt(1 / 1.6)), zoom("⤢", "See all", fit))),
        legend, told,
        total > ids.length && el("p", { class: "hint", text: `A sample of ${number(ids.length)} out of ${number(total)}.` }),
        el("p", { class: "hint", id: "map-help", text: INSTRUCTIONS })),
      aside));

  const place = new Map(ids.map((id, at) => [id, at]));
  const low = [Math.min(...x), Math.min(...y)];
  const span = Math.max(Math.max(...x) - low[0], Math.max(...y) - low[1]) || 1;
  const [wide, high] = [(Math.max(...x) - low[0]) / span, (Math.max(...y) - low[1]) / span];
  const px = x.map((each) => (each - low[0]) / span);
  const py = y.map((each) => high - (each - low[1]) / span); // up is up
  let colors = palette();
  let shown = byPopularity(interactions, colors);
  let off = new Set(); // groups that are faint
  let chosen = null;
  let near = [];
  let view = { scale: 1, left: 0, top: 0 };
  let whole = 1;
  let size = [0, 0];
  let asked = false;
  let looking = null;

  const sx = (at) => px[at] * view.scale + view.left;
  const sy = (at) => py[at] * view.scale + view.top;

  function fit() {
    const room = 28;
    whole = Math.max(1, Math.min((size[0] - 2 * room) / wide || Infinity, (size[1] - 2 * room) / high || Infinity));
    if (!Number.isFinite(whole)) whole = Math.min(...size);
    view = { scale: whole, left: (size[0] - whole * wide) / 2, top: (size[1] - whole * high) / 2 };
    paint();
  }

  function zoomAt(factor, [cx, cy] = [size[0] / 2, size[1] / 2]) {
    const scale = Math.min(whole * CLOSEST, Math.max(whole * 0.7, view.scale * factor));
    const by = scale / view.scale;
    view = { scale, left: cx - (cx - view.left) * by, top: cy - (cy - view.top) * by };
    paint();
  }

  function pan(dx, dy) {
    view = { ...view, left: view.left + dx, top: view.top + dy };
    paint();
  }

  function paint() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; paintNow(); });
  }

  function paintNow() {
    const ratio = window.devicePixelRatio || 1;
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = colors.surface;
    context.fillRect(0, 0, ...size);
    const crowd = Math.max(1.6, Math.min(4, 120 / Math.sqrt(ids.length)));
    const radius = Math.min(9, crowd * (view.scale / whole) ** 0.45);
    // The rarer groups on top.
    const order = shown.groups.map((group, at) => [group.count, at]).sort((a, b) => b[0] - a[0]).map((each) => each[1]);
    for (const group of order) {
      context.fillStyle = shown.groups[group].color;
      context.globalAlpha = off.has(group) ? 0.07 : chosen === null ? 0.85 : 0.45;
      context.beginPath();
      for (let at = 0; at < ids.length; at++) {
        if (shown.of[at] !== group) continue;
        const [left, top] = [sx(at), sy(at)];
        if (left < -9 || top < -9 || left > size[0] + 9 || top > size[1] + 9) continue;
        context.moveTo(left + radius, top);
        context.arc(left, top, radius, 0, 7);
      }
      context.fill();
    }
    context.globalAlpha = 1;
    if (chosen !== null) {
      context.strokeStyle = colors.ink;
      context.lineWidth = 1;
      for (const at of near) {
        context.globalAlpha = 0.35;
        context.beginPath();
        context.moveTo(sx(chosen), sy(chosen));
        context.lineTo(sx(at), sy(at));
        context.stroke();
        context.globalAlpha = 1;
        dot(context, at, radius + 1);
      }
      dot(context, chosen, radius + 3, 2.5);
      label(context, chosen, radius);
    }
    if (document.activeElement === canvas && canvas.matches(":focus-visible")) {
      context.strokeStyle = colors.ink;
      context.lineWidth = 1.5;
      const [cx, cy] = [size[0] / 2, size[1] / 2];
      context.beginPath();
      context.moveTo(cx - 9, cy); context.lineTo(cx + 9, cy);
      context.moveTo(cx, cy - 9); context.lineTo(cx, cy + 9);
      context.stroke();
    }
  }

  function dot(context, at, radius, line = 1.5) {
    context.fillStyle = shown.groups[shown.of[at]]?.color ?? colors.rest;
    context.strokeStyle = colors.ink;
    context.lineWidth = line;
    context.beginPath();
    context.arc(sx(at), sy(at), radius, 0, 7);
    context.fill();
    context.stroke();
  }

  function label(context, at, radius) {
    const text = titleOf(recall(ids[at])).slice(0, 48);
    context.font = "600 13px Inter, system-ui, sans-serif";
    const width = context.measureText(text).width;
    const left = Math.max(6, Math.min(size[0] - width - 14, sx(at) - width / 2));
    const top = sy(at) - radius - 30 < 0 ? sy(at) + radius + 10 : sy(at) - radius - 30;
    context.fillStyle = colors.ink;
    context.beginPath();
    context.roundRect(left - 6, top, width + 12, 22, 6);
    context.fill();
    context.fillStyle = colors.surface;
    context.fillText(text, left, top + 15.5);
  }

  /** The item nearest to a point, within `most` pixels; null if there is none. */
  function nearest([left, top], most) {
    let best = null;
    let least = most * most;
    for (let at = 0; at < ids.length; at++) {
      if (off.has(shown.of[at])) continue;
      const apart = (sx(at) - left) ** 2 + (sy(at) - top) ** 2;
      if (apart < least) [best, least] = [at, apart];
    }
    return best;
  }

  async function choose(id, centre = false) {
    chosen = place.get(id) ?? null;
    near = [];
    tip.hidden = true;
    if (chosen !== null && centre) {
      if (view.scale < whole * 3) view.scale = whole * 3;
      view = { ...view, left: size[0] / 2 - px[chosen] * view.scale, top: size[1] / 2 - py[chosen] * view.scale };
    }
    paint();
    looking?.abort();
    looking = new AbortController();
    const { signal } = looking;
    const found = await showItem(aside, id, { open: (each) => choose(each, true), signal });
    if (signal.aborted) return;
    if (!found) { chosen = null; paint(); return; }
    if (chosen === null) aside.prepend(el("p", { class: "hint", text: "It is not among the points that are shown." }));
    near = found.near.map((each) => place.get(each.item_id)).filter((at) => at !== undefined);
    announce(`${titleOf(found.item)}; nearest to it: ${found.near.slice(0, 3).map((each) => titleOf(recall(each.item_id))).join(", ")}`);
    paint();
  }

  function showLegend() {
    legend.replaceChildren(...shown.groups.map((group, at) => el("li", {},
      el("button", {
        type: "button", "aria-pressed": String(!off.has(at)), class: "key",
        on: { click: (event) => {
          if (off.has(at)) off.delete(at); else off.add(at);
          event.currentTarget.setAttribute("aria-pressed", String(!off.has(at)));
          paint();
        } },
      }, el("span", { class: "swatch", "aria-hidden": "true", style: { background: group.color } }), group.label, el("span", { class: "muted", text: ` ${number(group.count)}` })))));
    told.textContent = `${plural(ids.length, "item")}, coloured by ${shown.told}: ${shown.groups.map((group) => `${group.label} ${number(group.count)}`).join(", ")}. The list of an item's neighbours says in words what the map shows.`;
  }

  let values = null; // of the attribute that colours

  async function recolour() {
    const name = colour.value;
    if (name !== POPULARITY && values?.name !== name) {
      colour.disabled = true;
      try {
        const told = await ask("GET", "map", { query: { attribute: name } });
        // The catalogue may have changed since the points came, and with it who stands where.
        const by = new Map(told.ids.map((id, at) => [id, told.values[at]]));
        values = { name, of: ids.map((id) => by.get(id) ?? null) };
      } catch (problem) {
        colour.value = POPULARITY;
        announce(problem.message);
        return recolour();
      } finally {
        colour.disabled = false;
      }
    }
    off = new Set();
    shown = name === POPULARITY ? byPopularity(interactions, colors) : byValue(name, values.of, colors);
    showLegend();
    paint();
  }

  colour.addEventListener("change", recolour);
  const restyle = () => { if (!canvas.isConnected) return; colors = palette(); const kept = off; recolour().then(() => { off = kept; showLegend(); paint(); }); };
  document.addEventListener("theme", restyle);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);

  // Pointers: one moves, two pinch, one that hardly moved chooses.
  const down = new Map();
  let moved = 0;
  const at = (event) => [event.offsetX, event.offsetY];
  const middle = (points) => [(points[0][0] + points[1][0]) / 2, (points[0][1] + points[1][1]) / 2];
  const apart = (points) => Math.hypot(points[0][0] - points[1][0], points[0][1] - points[1][1]);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (!down.size) moved = 0;
    down.set(event.pointerId, at(event));
    tip.hidden = true;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return hover(event);
    const before = [...down.values()];
    const [left, top] = down.get(event.pointerId);
    down.set(event.pointerId, at(event));
    moved += Math.hypot(event.offsetX - left, event.offsetY - top);
    const now = [...down.values()];
    if (now.length === 1 && moved > 4) pan(event.offsetX - left, event.offsetY - top);
    if (now.length === 2) {
      const [from, to] = [middle(before), middle(now)];
      zoomAt(apart(now) / (apart(before) || 1), to);
      pan(to[0] - from[0], to[1] - from[1]);
    }
  });
  const up = (event) => {
    if (!down.delete(event.pointerId) || event.type === "pointercancel" || moved > 4 || down.size) return;
    const found = nearest(at(event), event.pointerType === "touch" ? NEAR_TOUCH_PX : NEAR_PX);
    if (found !== null) choose(ids[found]);
    else { chosen = null; near = []; paint(); }
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; name.now = null; });
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0018)), at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const keys = {
      ArrowLeft: () => pan(STEP_PX, 0), ArrowRight: () => pan(-STEP_PX, 0), ArrowUp: () => pan(0, STEP_PX), ArrowDown: () => pan(0, -STEP_PX),
      "+": () => zoomAt(1.5), "=": () => zoomAt(1.5), "-": () => zoomAt(1 / 1.5), 0: fit,
      Enter: () => { const found = nearest([size[0] / 2, size[1] / 2], Infinity); if (found !== null) choose(ids[found], true); },
    };
    if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  canvas.addEventListener("focus", paint);
  canvas.addEventListener("blur", paint);

  const name = { now: null };
  const tell = debounce(async (found) => {
    try { await learn([ids[found]]); } catch (problem) { if (!isAbort(problem)) return; }
    if (name.now !== found) return;
    tip.textContent = titleOf(recall(ids[found]));
    tip.style.setProperty("left", `${Math.min(size[0] - 150, Math.max(8, sx(found) + 12))}px`);
    tip.style.setProperty("top", `${Math.max(4, sy(found) - 34)}px`);
    tip.hidden = false;
  }, 60);
  function hover(event) {
    const found = event.pointerType === "touch" ? null : nearest(at(event), NEAR_PX);
    canvas.classList.toggle("over", found !== null);
    if (found === name.now) return;
    name.now = found;
    tip.hidden = true;
    if (found !== null) tell(found);
  }

  new ResizeObserver(() => {
    const box = canvas.parentElement.getBoundingClientRect();
    if (!box.width) return; // another tab is shown
    const first = !size[0];
    size = [Math.round(box.width), Math.round(box.height)];
    canvas.width = size[0] * (window.devicePixelRatio || 1);
    canvas.height = size[1] * (window.devicePixelRatio || 1);
    if (first || view.scale === whole) fit(); else paint();
  }).observe(canvas.parentElement);

  aside.replaceChildren(el("div", { class: "empty" },
    el("h2", { text: "Choose an item" }),
    el("p", { text: "A point of the map, or a name in the search above. Its attributes and its nearest neighbours appear here." })));
  showLegend();
}
