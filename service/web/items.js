// How an item looks, whatever its attributes are.

import { ask, itemPath } from "./api.js";
import { el, hidden, notice, number } from "./dom.js";
import { history } from "./history.js";

const NAMED = ["title", "name"];
const MOST_CHIPS = 5;
const FRESH_MS = 30_000;
const known = new Map(); // id -> {item, at}
let priority = []; // names of attributes, the ones that say most first

/** Take over the order of attributes that the service's prompts have. */
export const orderBy = (wanted) => { priority = wanted; };

/** Names of an item's attributes, the ones that say most first. */
function names(attributes) {
  const rank = (name) => (priority.includes(name) ? priority.indexOf(name) : priority.length);
  return Object.keys(attributes).sort((a, b) => rank(a) - rank(b));
}

const isText = (value) => typeof value === "string" && value.trim() !== "";

/** The name of the attribute that an item goes by: one called title or name, else the first that
 *  is a string; undefined if there is none. */
export function titleName(attributes) {
  const all = names(attributes);
  for (const wanted of NAMED) {
    const found = all.find((name) => name.toLowerCase() === wanted && isText(attributes[name]));
    if (found) return found;
  }
  return all.find((name) => isText(attributes[name]));
}

export const titleOf = (item) => {
  const name = item.attributes && titleName(item.attributes);
  return name ? String(item.attributes[name]) : item.item_id;
};

const short = (text, most = 36) => (text.length > most ? `${text.slice(0, most - 1).trimEnd()}…` : text);

/** The attributes beside the title, a few words each. */
export function chips(item, most = MOST_CHIPS) {
  const title = titleName(item.attributes);
  const all = names(item.attributes).filter((name) => name !== title).flatMap((name) => {
    const value = item.attributes[name];
    if (typeof value === "boolean") return value ? [[name, name]] : [];
    if (typeof value === "number") return [[name, `${name} ${value}`]];
    return [...new Set([value].flat(Infinity))].filter((each) => each !== null && each !== "").map((each) => [name, String(each)]);
  });
  const shown = all.slice(0, most);
  if (!shown.length) return null;
  return el("ul", { class: "chips", role: "list", "aria-label": "attributes" },
    shown.map(([name, value]) => el("li", { title: `${name}: ${value}` }, hidden(`${name}: `), short(value))),
    all.length > most && el("li", { class: "more", title: all.slice(most).map(([, value]) => value).join(", "), text: `+${all.length - most}` }));
}

export function remember(items) {
  const at = Date.now();
  for (const item of items) known.set(item.item_id, { item, at });
}

export const isKnown = (id) => known.has(id);

export const forget = (id) => known.delete(id);

/** An item as far as it is known here; with its id alone if it is not. */
export const recall = (id) => known.get(id)?.item ?? { item_id: id, attributes: {} };

/** Know the items of some ids. Returns those that the catalogue lacks.
 *  @param fresh whether to ask for those that are known, too. */
export async function learn(ids, { signal, fresh = false } = {}) {
  const old = Date.now() - FRESH_MS;
  const wanted = [...new Set(ids)].filter((id) => fresh || !(known.get(id)?.at > old));
  const gone = [];
  for (let start = 0; start < wanted.length; start += 1000) {
    const told = await ask("POST", "items:lookup", { body: { item_ids: wanted.slice(start, start + 1000) }, signal });
    remember(told.items);
    gone.push(...told.unknown);
  }
  return gone;
}

const POPULARITY = {
  head: "one of the 20 % that people used most",
  tail: "one of the many that few people used",
  cold: "nobody had used it when the model was trained",
};

/** Which part of the catalogue an item belongs to. */
export const badge = (popularity) => POPULARITY[popularity] &&
  el("span", { class: `badge ${popularity}`, title: `${popularity}: ${POPULARITY[popularity]}`, text: popularity });

/** A button that opens an item. */
export const titleButton = (id, open = openItem) =>
  el("button", { class: "title", type: "button", on: { click: () => open(id) }, text: titleOf(recall(id)) });

/** What becomes of scores in a list: their share of the best one's bar, between .04 and 1. */
export function bars(scores) {
  const most = Math.max(...scores);
  const least = Math.min(0, ...scores);
  return scores.map((score) => (most > least ? Math.max(0.04, (score - least) / (most - least)) : 1));
}

export const bar = (share, score) =>
  el("span", { class: "score" },
    el("span", { class: "bar", "aria-hidden": "true" }, el("span", { style: { width: `${(100 * share).toFixed(1)}%` } })),
    el("span", { class: "digits" }, hidden("score "), number(score, 2)));

/** A list of items that stand near one. */
function neighbourList(found, open) {
  const shares = bars(found.map((each) => each.score));
  return el("ol", { class: "neighbours", role: "list" }, found.map((each, at) =>
    el("li", {},
      el("div", { class: "grow" }, titleButton(each.item_id, open), chips(recall(each.item_id), 3)),
      bar(shares[at], each.score))));
}

/** An item with all its attributes and its neighbours, in `place`.
 *  @param open what a neighbour's button does. */
export async function showItem(place, id, { open = openItem, k = 8, signal, heading = "h2", more = [] } = {}) {
  place.setAttribute("aria-busy", "true");
  try {
    const [item, near] = await Promise.all([
      ask("GET", itemPath(id), { signal }),
      ask("GET", itemPath(id, "/neighbours"), { query: { k }, signal }),
    ]);
    remember([item]);
    await learn(near.items.map((each) => each.item_id), { signal });
    const title = titleName(item.attributes);
    const inHistory = history.ids.includes(id);
    const put = el("button", { class: "main small", type: "button", disabled: inHistory, text: inHistory ? "In the history" : "Add to the history" });
    put.addEventListener("click", () => {
      history.add(id);
      put.disabled = true;
      put.textContent = "In the history";
      notice(`“${titleOf(item)}” is in the history.`);
    });
    place.replaceChildren(
      el(heading, { class: "item-title", text: titleOf(item) }),
      el("p", { class: "id" }, "id ", el("code", { text: id })),
      el("dl", { class: "facts" }, names(item.attributes).filter((name) => name !== title).flatMap((name) => [
        el("dt", { text: name }),
        el("dd", { text: [item.attributes[name]].flat(Infinity).join(", ") }),
      ])),
      el("div", { class: "row" }, put, ...more),
      el("h3", { text: "Nearest to it" }),
      near.items.length ? neighbourList(near.items, open) : el("p", { class: "muted", text: "It is the only item." }));
    return { item, near: near.items };
  } catch (problem) {
    if (problem.name === "AbortError") return null;
    if (problem.status === 404) {
      forget(id);
      history.drop([id]);
    }
    place.replaceChildren(el("p", { class: "wrong", role: "alert", text: problem.status === 404 ? "This item is no longer in the catalogue." : problem.message }));
    return null;
  } finally {
    place.removeAttribute("aria-busy");
  }
}

/** Open an item beside the page. */
export function openItem(id) {
  const dialog = document.getElementById("item-dialog");
  const body = document.getElementById("item-body");
  body.replaceChildren(el("p", { class: "muted", text: "One moment…" }));
  dialog.setAttribute("aria-label", titleOf(recall(id)));
  if (!dialog.open) dialog.showModal();
  document.getElementById("item-close").focus();
  showItem(body, id, { open: openItem });
}
