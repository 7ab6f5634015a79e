// Search as you type, after the ARIA combobox pattern.

import { ask, isAbort } from "./api.js";
import { announce, debounce, el, plural } from "./dom.js";
import { chips, remember, titleOf } from "./items.js";

const WAIT_MS = 120;
const ASKED = 60;
const SHOWN = 12;
let boxes = 0;

/** A box that finds items of the catalogue by words.
 *  @param pick what becomes of an item that is chosen. */
export function searchBox({ label, placeholder, pick, hint = null }) {
  const name = `search-${++boxes}`;
  const list = el("ul", { id: `${name}-list`, role: "listbox", "aria-label": label, class: "options", hidden: true });
  const empty = el("p", { class: "options none", hidden: true });
  const input = el("input", {
    id: name, type: "text", role: "combobox", placeholder, autocomplete: "off", spellcheck: "false", enterkeyhint: "search",
    "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": `${name}-list`, "aria-describedby": hint ? `${name}-hint` : null,
  });
  let found = [];
  let active = -1;
  let running = null;

  function close() {
    running?.abort();
    list.hidden = empty.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
    active = -1;
  }

  function choose(at) {
    if (!found[at]) return;
    const item = found[at];
    input.value = "";
    found = [];
    close();
    pick(item);
  }

  function mark(at) {
    active = found.length ? (at + found.length) % found.length : -1;
    [...list.children].forEach((option, each) => option.setAttribute("aria-selected", String(each === active)));
    if (active < 0) return;
    input.setAttribute("aria-activedescendant", list.children[active].id);
    list.children[active].scrollIntoView({ block: "nearest" });
  }

  function show(items, words) {
    // What begins with the words comes first; else the catalogue's order stands.
    const rank = (item) => {
      const title = titleOf(item).toLowerCase();
      return title === words ? 0 : title.startsWith(words) ? 1 : title.includes(words) ? 2 : 3;
    };
    found = items.map((item, at) => [rank(item), at, item]).sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, SHOWN).map((each) => each[2]);
    list.replaceChildren(...found.map((item, at) => el("li", {
      id: `${name}-${at}`, role: "option", "aria-selected": "false",
      on: { mousedown: (event) => event.preventDefault(), click: () => choose(at), mousemove: () => active !== at && mark(at) },
    }, el("span", { class: "option-title", text: titleOf(item) }), chips(item, 3))));
    list.hidden = !found.length;
    empty.hidden = found.length > 0;
    empty.textContent = `Nothing has all of these words: ${words}`;
    input.setAttribute("aria-expanded", String(found.length > 0));
    input.removeAttribute("aria-activedescendant");
    active = -1;
    announce(found.length ? `${plural(found.length, "result")}; choose with the arrow keys` : "no results");
  }

  const search = debounce(async () => {
    const words = input.value.trim().toLowerCase();
    running?.abort();
    if (!words) return close();
    running = new AbortController();
    try {
      const page = await ask("GET", "items", { query: { q: words.slice(0, 200), limit: ASKED }, signal: running.signal });
      remember(page.items);
      if (input.value.trim().toLowerCase() === words) show(page.items, words);
    } catch (problem) {
      if (isAbort(problem)) return;
      if (problem.status === 422) return show([], words); // no word in it
      close();
      if (!problem.passing) { empty.hidden = false; empty.textContent = problem.message; }
    }
  }, WAIT_MS);

  input.addEventListener("input", search);
  input.addEventListener("focus", () => { if (input.value.trim() && list.hidden) search(); });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden;
    if (event.key === "ArrowDown" && open) mark(active + 1);
    else if (event.key === "ArrowDown") search();
    else if (event.key === "ArrowUp" && open) mark(active < 0 ? -1 : active - 1);
    else if (event.key === "Enter" && open) choose(Math.max(active, 0));
    else if (event.key === "Escape" && (open || !empty.hidden)) close();
    else return;
    event.preventDefault();
  });

  return {
    input,
    element: el("div", { class: "search" },
      el("label", { for: name, text: label }),
      el("div", { class: "search-box" }, input, list, empty),
      hint && el("p", { class: "hint", id: `${name}-hint`, text: hint })),
  };
}
