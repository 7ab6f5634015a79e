// Add an item: a form out of the catalogue's own attributes, and what stands near the new one.

import { about, ask, itemPath } from "./api.js";
import { announce, el, number, plural } from "./dom.js";
import { history } from "./history.js";
import { forget, learn, openItem, recall, remember, showItem, titleName, titleOf } from "./items.js";

const FIELDS = 12; // the attributes that most items have; others can be named
const SAMPLE = 300; // items whose values are suggested
const FEW = 30; // different values that can all be offered
const LIKERS = 3; // of the nearest items; who liked these is asked about
const DEEP = 500; // places of an answer

export async function start(root) {
  const body = el("div", { class: "two" });
  root.replaceChildren(
    el("div", { class: "hero" },
      el("h1", { text: "Add an item" }),
      el("p", { text: "Say what it is. It is embedded, stored and recommendable when the answer comes; nothing is trained again." })),
    body);
  try {
    const info = await about();
    const page = await ask("GET", "items", { query: { limit: SAMPLE } });
    remember(page.items);
    body.replaceChildren(form(info, page.items, body), teach(info));
  } catch (problem) {
    body.replaceChildren(el("p", { class: problem.passing ? "muted" : "wrong", text: problem.passing ? "Waiting for the service." : problem.message }));
    throw problem;
  }
}

const teach = (info) => el("div", { class: "card result empty", id: "added" },
  el("h2", { text: "What you will see here" }),
  el("ol", { class: "steps" },
    el("li", { text: "its nearest neighbours, by what it is;" }),
    el("li", { text: "for whom it is recommended, and at which place;" }),
    el("li", { text: `and all that, for a ${info.template.noun} nobody has seen before.` })));

/** The fields: of each attribute its most frequent kind. */
function form(info, sample, body) {
  const rank = (name) => (info.template.priority.includes(name) ? info.template.priority.indexOf(name) : Infinity);
  const attributes = info.catalogue.attributes.slice(0, FIELDS).sort((a, b) => rank(a.name) - rank(b.name) || b.share - a.share);
  const title = sample.length ? titleName(sample[0].attributes) : attributes[0]?.name;
  const fields = attributes.map((each) => field(each, sample, each.name === title));
  const extra = el("div", { class: "extra" });
  const id = el("input", { id: "new-id", name: "id", autocomplete: "off", spellcheck: "false", maxlength: 512, placeholder: "made from the title", "aria-describedby": "new-id-hint" });
  const wrong = el("p", { class: "wrong", role: "alert", id: "add-wrong" });
  const send = el("button", { class: "main", text: "Add it" });
  const element = el("form", { class: "card form", "aria-label": "A new item" },
    fields.map((each) => each.element), extra,
    el("button", { class: "quiet small", type: "button", text: "Another attribute", on: { click: () => { const line = anotherAttribute(); extra.append(line.element); fields.push(line); line.element.querySelector("input").focus(); } } }),
    el("div", { class: "field" }, el("label", { for: "new-id", text: "Id" }), id, el("p", { class: "hint", id: "new-id-hint", text: "Leave it empty and one is made. An id that is taken is refused." })),
    wrong,
    el("div", { class: "row" }, send, el("button", { class: "quiet", type: "reset", text: "Empty the form" })));
  element.addEventListener("reset", () => { extra.replaceChildren(); fields.splice(attributes.length); wrong.textContent = ""; });
  element.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    const said = fields.map((each) => each.read()).filter(([name, value]) => name && value !== null && value !== "" && !(Array.isArray(value) && !value.length));
    const given = Object.fromEntries(said);
    const unclear = mistake(said);
    if (unclear) {
      wrong.textContent = unclear;
      return;
    }
    if (!Object.keys(given).length) {
      wrong.textContent = "Say something about the item: at least one attribute.";
      element.querySelector("input").focus();
      return;
    }
    const item = { item_id: id.value.trim() || made(given), attributes: given };
    send.disabled = true;
    send.textContent = "Adding…";
    try {
      const started = performance.now();
      const told = await ask("PUT", itemPath(item.item_id), { body: { attributes: given }, headers: { "If-None-Match": "*" } });
      await added(told, performance.now() - started, body);
    } catch (problem) {
      wrong.textContent = problem.status === 412 ? `The id ${item.item_id} is taken; choose another one.`
        : problem.status === 429 ? `The service is busy; press “Add it” again in ${plural(Math.ceil(problem.retryAfter ?? 2), "second")}.`
          : problem.errors?.length ? problem.errors.map((each) => `${each.field}: ${each.message}`).join("; ") : problem.message;
    } finally {
      send.disabled = false;
      send.textContent = "Add it";
    }
  });
  return element;
}

/** What is wrong with [name, value] pairs, as a sentence; null if nothing is. */
function mistake(said) {
  const names = said.map(([name]) => name);
  const twice = names.find((name, at) => names.indexOf(name) < at);
  if (twice !== undefined) return `“${twice}” is there twice; say it in one place.`;
  const [name] = said.find(([, value]) => [value].flat().some((each) => typeof each === "number" && !Number.isFinite(each))) ?? [];
  return name === undefined ? null : `“${name}” is a list of numbers; put only numbers there, with commas between.`;
}

function made(attributes) {
  const name = titleName(attributes);
  const words = String(name ? attributes[name] : "item").normalize("NFKD").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
  const random = crypto.getRandomValues(new Uint16Array(1))[0].toString(36);
  return `new-${words || "item"}-${random}`;
}

const split = (text) => text.split(",").map((each) => each.trim()).filter(Boolean);

/** A field for one attribute: {element, read() -> [name, value]}; value null where nothing is said. */
function field({ name, kinds }, sample, first) {
  const kind = Object.entries(kinds).sort((a, b) => b[1] - a[1])[0][0];
  const slug = `new-${name.replace(/[^\w]/g, "_")}`;
  const seen = new Map();
  for (const item of sample) {
    for (const value of [item.attributes[name] ?? []].flat(Infinity)) if (value !== "") seen.set(String(value), (seen.get(String(value)) ?? 0) + 1);
  }
  const frequent = [...seen.entries()].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).map(([value]) => value);
  const label = (text) => el("label", { for: slug, text });

  if (kind === "boolean") {
    const select = el("select", { id: slug }, el("option", { value: "", text: "not said" }), el("option", { value: "true", text: "yes" }), el("option", { value: "false", text: "no" }));
    return { element: el("div", { class: "field" }, label(name), select), read: () => [name, select.value === "" ? null : select.value === "true"] };
  }
  if (kind === "number") {
    const input = el("input", { id: slug, type: "number", step: "any", inputmode: "decimal" });
    return { element: el("div", { class: "field" }, label(name), input), read: () => [name, input.value === "" ? null : Number(input.value)] };
  }
  if (kind.startsWith("list")) {
    const numbers = kind === "list of numbers";
    const offered = !numbers && frequent.length <= FEW ? frequent : [];
    const boxes = offered.map((value, at) => el("input", { type: "checkbox", id: `${slug}-${at}`, value }));
    const input = el("input", { id: slug, autocomplete: "off", placeholder: offered.length ? "or others, with commas between" : `e.g. ${frequent.slice(0, 3).join(", ")}`, "aria-label": offered.length ? `other ${name}, with commas between` : null });
    const read = () => [name, [...boxes.filter((box) => box.checked).map((box) => box.value), ...split(input.value).map((each) => (numbers ? Number(each) : each))]];
    if (!offered.length) return { element: el("div", { class: "field" }, label(name), input, el("p", { class: "hint", text: "Several, with commas between." })), read };
    return {
      element: el("fieldset", { class: "field" }, el("legend", { text: name }),
        el("div", { class: "choices" }, boxes.map((box) => el("span", { class: "choice" }, box, el("label", { for: box.id, text: box.value })))), input),
      read,
    };
  }
  const few = frequent.length <= 200 && frequent.length < sample.length / 2;
  const input = el("input", { id: slug, autocomplete: "off", list: few ? `${slug}-seen` : null, placeholder: frequent[0] ? `e.g. ${frequent[0].slice(0, 60)}` : null });
  const seenList = few && el("datalist", { id: `${slug}-seen` }, frequent.map((value) => el("option", { value })));
  return { element: el("div", { class: `field ${first ? "first" : ""}` }, label(name), input, seenList), read: () => [name, input.value.trim() || null] };
}

let others = 0;

function anotherAttribute() {
  const at = ++others;
  const name = el("input", { id: `other-${at}`, autocomplete: "off" });
  const value = el("input", { id: `other-value-${at}`, autocomplete: "off" });
  return {
    element: el("div", { class: "pair" },
      el("div", { class: "field" }, el("label", { for: `other-${at}`, text: "Attribute" }), name),
      el("div", { class: "field" }, el("label", { for: `other-value-${at}`, text: "Value" }), value)),
    read: () => [name.value.trim(), value.value.trim() || null],
  };
}

/** Show what became of a new item. */
async function added(item, ms, body) {
  remember([item]);
  const id = item.item_id;
  const place = el("div", { class: "item" });
  const forWhom = el("p", { class: "for-whom", role: "status" });
  const card = el("div", { class: "card result", id: "added" },
    el("p", { class: "done" }, el("span", { "aria-hidden": "true", text: "✓ " }), `Stored and recommendable, ${number(ms)} ms after you asked.`),
    item.truncated.length ? el("p", { class: "muted", text: `The LLM reads ${plural(item.tokens, "token")} of it; cut were: ${item.truncated.join(", ")}.` }) : null,
    forWhom, place);
  body.children[1].replaceWith(card);
  document.dispatchEvent(new Event("catalogue"));
  announce(`${titleOf(item)} is in the catalogue`);
  const takeBack = el("button", { class: "quiet small", type: "button", text: "Take it out again" });
  takeBack.addEventListener("click", async () => {
    try {
      await ask("DELETE", itemPath(id));
    } catch (problem) {
      if (problem.status !== 404) { forWhom.textContent = problem.message; return; }
    }
    history.drop([id]);
    forget(id);
    document.dispatchEvent(new Event("catalogue"));
    card.replaceChildren(el("p", { class: "muted", role: "status", text: `“${titleOf(item)}” is out of the catalogue again.` }));
  });
  const found = await showItem(place, id, { open: openItem, more: [takeBack] });
  if (!found?.near.length) return;
  const liked = found.near.slice(0, LIKERS).map((each) => each.item_id);
  try {
    const told = await ask("POST", "recommend", { body: { history: liked, k: DEEP } });
    await learn(liked);
    const at = told.items.findIndex((each) => each.item_id === id);
    const who = liked.map((each) => `“${titleOf(recall(each))}”`).join(", ");
    const ranked = at >= 0 ? `it is recommended at place ${number(at + 1)}` : `it is not among the first ${number(told.items.length)}`;
    const show = el("button", { class: "link", type: "button", text: "Try that history" });
    show.addEventListener("click", () => { history.set(liked); document.getElementById("tab-try").click(); });
    forWhom.replaceChildren(`To somebody who liked ${who}, `, el("b", { text: ranked }), ". ", show);
  } catch { /* the neighbours are there */ }
}
