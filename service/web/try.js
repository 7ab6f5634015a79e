// Try: a history on one side, what is recommended for it on the other.

import { about, ask, connection, isAbort } from "./api.js";
import { announce, debounce, el, hidden, notice, number, plural } from "./dom.js";
import { history } from "./history.js";
import { badge, bar, bars, chips, forget, isKnown, learn, openItem, recall, remember, titleButton, titleOf } from "./items.js";
import { searchBox } from "./search.js";

const WAIT_MS = 150;
const STEPS = [10, 25, 50];
const SUGGESTED = 8;
const WAYS = [
  { strategy: "best", title: "This service", told: "attributes and behaviour together" },
  { strategy: "popular", title: "Most popular", told: "the same for everybody" },
  { strategy: "id_only", title: "Known items only", told: "by views that new items lack" },
];
const PARTS = ["head", "tail", "cold"];

export async function start(root) {
  let k = STEPS[0];
  let comparing = false;
  let running = null;
  let retry = null;
  let nameless = false; // whether the history was drawn before all of its items were known

  const search = searchBox({
    label: "Search the catalogue",
    placeholder: "A few letters are enough",
    pick: (item) => {
      history.add(item.item_id);
      announce(`${titleOf(item)} is in the history, at place ${history.ids.length}`);
    },
  });
  const list = el("ol", { class: "history", role: "list", "aria-labelledby": "history-title" });
  const clear = el("button", { class: "quiet small", type: "button", text: "Clear", on: { click: () => { history.set([]); search.input.focus(); } } });
  const historyHint = el("p", { class: "hint" });
  const results = el("div", { id: "results", class: "results", "aria-live": "off" });
  const compare = el("input", { type: "checkbox", role: "switch", id: "compare" });
  compare.addEventListener("change", () => { comparing = compare.checked; recommend(); });
  const head = el("div", { class: "results-head" },
    el("h2", { id: "results-title", text: "Recommended" }),
    el("label", { class: "switch", for: "compare" }, compare, el("span", { text: "Compare side by side" })));
  const status = el("p", { class: "muted status", id: "results-status" });

  root.replaceChildren(
    el("div", { class: "hero" },
      el("h1", { text: "What comes next?" }),
      el("p", { id: "try-lead", text: "Put together what somebody liked. The recommendations follow at once, from the best-seller to what nobody has touched yet." })),
    el("div", { class: "try" },
      el("div", { class: "side" },
        search.element,
        el("div", { class: "history-head" }, el("h2", { id: "history-title", text: "History" }), clear),
        historyHint, list),
      el("section", { class: "wide", "aria-labelledby": "results-title" }, head, status, results)));

  function showHistory() {
    const ids = history.ids;
    const focused = list.contains(document.activeElement) ? document.activeElement : null;
    const id = focused?.closest("[data-id]").dataset.id;
    const at = focused ? [...focused.closest("[data-id]").querySelectorAll("button")].indexOf(focused) : -1;
    nameless = !ids.every(isKnown);
    clear.hidden = !ids.length;
    historyHint.textContent = ids.length ? "Oldest first; the last ones count most." : "It fills as you choose items.";
    list.hidden = !ids.length;
    list.replaceChildren(...ids.map((id, at) => {
      const item = recall(id);
      const title = titleOf(item);
      const button = (text, label, act, off) => el("button", { class: "icon", type: "button", "aria-label": `${label}: ${title}`, title: label, disabled: off, text, on: { click: act } });
      const line = el("li", { draggable: "true", data: { id } },
        el("span", { class: "place", "aria-hidden": "true", text: at + 1 }),
        el("div", { class: "grow" }, titleButton(id), item.attributes && chips(item, 2)),
        el("div", { class: "tools" },
          button("↑", "Move up", () => shift(at, at - 1), at === 0),
          button("↓", "Move down", () => shift(at, at + 1), at === ids.length - 1),
          button("×", "Remove", () => remove(at), false)));
      line.addEventListener("dragstart", (event) => { event.dataTransfer.setData("text/plain", String(at)); event.dataTransfer.effectAllowed = "move"; line.classList.add("dragged"); });
      line.addEventListener("dragend", () => line.classList.remove("dragged"));
      line.addEventListener("dragover", (event) => { event.preventDefault(); line.classList.add("over"); });
      line.addEventListener("dragleave", () => line.classList.remove("over"));
      line.addEventListener("drop", (event) => { event.preventDefault(); history.move(Number(event.dataTransfer.getData("text/plain")), at); });
      return line;
    }));
    // Drawn anew, the list would lose the focus of who is in it.
    if (focused) [...list.children].find((line) => line.dataset.id === id)?.querySelectorAll("button")[at]?.focus();
  }

  // The button that was pressed is drawn anew; the focus goes to the one in its place.
  function shift(from, to) {
    const title = titleOf(recall(history.ids[from]));
    history.move(from, to);
    const [up, down] = list.children[to].querySelectorAll(".tools button");
    const wanted = to < from ? up : down;
    (wanted.disabled ? (wanted === up ? down : up) : wanted).focus();
    announce(`${title} is at place ${to + 1} of ${history.ids.length}`);
  }

  function remove(at) {
    const title = titleOf(recall(history.ids[at]));
    history.drop([history.ids[at]]);
    const next = list.children[Math.min(at, list.children.length - 1)];
    (next?.querySelector(".tools button:last-child") ?? search.input).focus();
    announce(`${title} was removed`);
  }

  const query = (strategy) => ({
    history: history.ids, k,
    ...(strategy === "best" ? { explain: "history" } : { strategy }),
  });

  /** What one way recommends, or the problem with it; an abort ends all. */
  async function answer(way, signal) {
    try {
      return { way, told: await ask("POST", "recommend", { body: query(way.strategy), signal }) };
    } catch (problem) {
      if (isAbort(problem) || problem.passing || problem.status === 429 || way.strategy === "best") throw problem;
      return { way, problem };
    }
  }

  const recommend = debounce(async () => {
    running?.abort();
    clearTimeout(retry);
    head.hidden = !history.ids.length;
    if (!history.ids.length) return suggest();
    const { signal } = (running = new AbortController());
    results.setAttribute("aria-busy", "true");
    try {
      const answers = await Promise.all((comparing ? WAYS : WAYS.slice(0, 1)).map((way) => answer(way, signal)));
      const gone = answers.flatMap(({ told }) => told?.unknown_history ?? []);
      if (gone.length) return takeOut(gone);
      await learn([...history.ids, ...answers.flatMap(({ told }) => told?.items.map((each) => each.item_id) ?? [])], { signal });
      if (nameless) showHistory();
      show(answers);
    } catch (problem) {
      if (!isAbort(problem)) await failed(problem, signal);
    } finally {
      if (!signal.aborted) results.removeAttribute("aria-busy");
    }
  }, WAIT_MS);

  /** Take out of the history what the catalogue lacks by now, and say so. */
  function takeOut(ids) {
    const gone = [...new Set(ids)];
    const told = gone.map((id) => `“${titleOf(recall(id))}”`).join(", ");
    gone.forEach(forget);
    history.drop(gone);
    notice(`${told} ${gone.length === 1 ? "is" : "are"} no longer in the catalogue, and so no longer in this history.`, "warn");
  }

  async function failed(problem, signal) {
    if (problem.status === 404) {
      const gone = await learn(history.ids, { signal, fresh: true });
      if (gone.length) return takeOut(gone);
      if (nameless) showHistory();
      // They came back meanwhile; what the service said stands below, and nobody waits.
    }
    if (problem.status === 429) return wait(problem.retryAfter ?? 2);
    if (problem.passing) {
      status.textContent = "Waiting for the service. Nothing of your history is lost.";
      return;
    }
    status.textContent = "";
    status.classList.remove("busy");
    results.replaceChildren(el("p", { class: "wrong", role: "alert", text: problem.message }),
      ...(problem.errors.length ? [el("ul", {}, problem.errors.map((each) => el("li", { text: `${each.field}: ${each.message}` })))] : []));
  }

  /** Count down to the next try. */
  function wait(seconds) {
    status.textContent = seconds > 0
      ? `The service is busy. Trying again in ${plural(Math.ceil(seconds), "second")}…`
      : "Trying again…";
    status.classList.add("busy");
    retry = setTimeout(() => (seconds > 0 ? wait(Math.ceil(seconds) - 1) : recommend()), seconds > 0 ? 1000 : 0);
  }

  function count(told) {
    const counts = PARTS.map((part) => [part, told.items.filter((each) => each.popularity === part).length]);
    const all = counts.reduce((sum, [, each]) => sum + each, 0);
    if (!all) return null;
    const words = counts.filter(([, each]) => each).map(([part, each]) => `${each} ${part}`).join(", ");
    return el("div", { class: "mix" },
      el("div", { class: "mix-bar", "aria-hidden": "true" }, counts.filter(([, each]) => each).map(([part, each]) => el("span", { class: part, style: { "flex-grow": each } }))),
      el("span", { text: words }));
  }

  function recommendation(each, at, share, { compact, mine }) {
    const title = titleOf(recall(each.item_id));
    const because = each.because && el("p", { class: "because" }, "because of ", el("b", { text: titleOf(recall(each.because)) }));
    const tell = badge(each.popularity);
    return el("li", { class: mine ? "mine" : "", data: { id: each.item_id } },
      el("span", { class: "place", "aria-hidden": "true", text: at + 1 }),
      el("div", { class: "grow" },
        el("div", { class: "line" }, titleButton(each.item_id, openItem), tell, mine && el("span", { class: "only", text: "only here" })),
        el("div", { class: "why" }, chips(recall(each.item_id), compact ? 3 : 5), because)),
      bar(share, each.score),
      el("button", {
        class: "icon add", type: "button", title: "Add to the history", "aria-label": `Add to the history: ${title}`, text: "+",
        on: { click: () => { history.add(each.item_id); announce(`${title} is in the history`); } },
      }));
  }

  function show(answers) {
    status.classList.remove("busy");
    const focused = results.contains(document.activeElement) ? [...results.querySelectorAll("button.add")].indexOf(document.activeElement) : -1;
    const elsewhere = (way) => new Set(answers.filter((each) => each.way !== way).flatMap((each) => each.told?.items.map((item) => item.item_id) ?? []));
    const columns = answers.map(({ way, told, problem }) => {
      if (problem) {
        return el("div", { class: "column" }, el("h3", { text: way.title }), el("p", { class: "muted", text: problem.status === 422 ? `This service cannot tell: ${problem.errors[0]?.message ?? problem.message}` : problem.message }));
      }
      const shares = bars(told.items.map((each) => each.score));
      const others = elsewhere(way);
      const rows = told.items.map((each, at) => recommendation(each, at, shares[at], { compact: comparing, mine: comparing && way.strategy === "best" && !others.has(each.item_id) }));
      return el("div", { class: "column", data: { strategy: way.strategy } },
        comparing && el("h3", {}, way.title, el("small", { text: way.told })),
        told.degraded.includes("no_history") && el("p", { class: "muted status", text: "Nothing is known of this history here, so this is what is popular." }),
        count(told),
        told.items.length ? el("ol", { class: "recommended", role: "list", "aria-label": comparing ? way.title : "Recommended" }, rows) : el("p", { class: "muted", text: "Nothing is left to recommend." }));
    });
    const step = STEPS.find((each) => each > k);
    const full = answers[0].told.items.length >= k;
    results.className = `results ${comparing ? "compared" : ""}`;
    results.replaceChildren(...columns);
    if (step && full) results.append(el("button", { class: "quiet wide-button", type: "button", text: `Show ${step}`, on: { click: () => { k = step; recommend(); } } }));
    const told = answers[0].told;
    const without = told.degraded.includes("cache") ? " The cache is away; that costs time alone." : "";
    status.textContent = `${plural(told.items.length, "item")} for a history of ${number(history.ids.length)}, in ${number(told.took_ms, told.took_ms < 10 ? 1 : 0)} ms.${without}`;
    if (focused >= 0) (results.querySelectorAll("button.add")[focused] ?? search.input).focus();
    if (told.items.length) announce(`${plural(told.items.length, "recommendation")}; the first is ${titleOf(recall(told.items[0].item_id))}`);
  }

  /** What to begin with. */
  async function suggest() {
    status.textContent = "";
    status.classList.remove("busy");
    const { signal } = (running = new AbortController());
    results.className = "results";
    results.removeAttribute("aria-busy");
    const welcome = el("div", { class: "empty" },
      el("h2", { text: "Nothing in the history yet" }),
      el("p", { text: "Search for something, or begin with one of these:" }));
    results.replaceChildren(welcome);
    try {
      const ids = await begin(signal);
      if (!ids.length) {
        welcome.replaceChildren(el("h2", { text: "The catalogue is empty" }), el("p", { text: "Begin with “Add an item”." }));
        return;
      }
      welcome.append(el("ul", { class: "starts", role: "list" }, ids.map((id) => el("li", {},
        el("button", { class: "start", type: "button", on: { click: () => { history.add(id); search.input.focus(); } } },
          el("span", { "aria-hidden": "true", text: "+" }), hidden("Begin with "), titleOf(recall(id)))))),
      el("p", { class: "hint", text: "Then open “Compare side by side”: it shows what the same history gets from popularity alone, and from what knows only the items of training." }));
    } catch (problem) {
      if (!isAbort(problem) && !problem.passing) welcome.append(el("p", { class: "wrong", role: "alert", text: problem.message }));
    }
  }

  async function begin(signal) {
    try {
      const told = await ask("POST", "recommend", { body: { history: [], strategy: "popular", k: SUGGESTED }, signal });
      const ids = told.items.map((each) => each.item_id);
      await learn(ids, { signal });
      return ids;
    } catch (problem) {
      if (problem.status !== 422) throw problem;
      // A bundle that knows nothing of popularity: the first ones.
      const page = await ask("GET", "items", { query: { limit: SUGGESTED }, signal });
      remember(page.items);
      return page.items.map((each) => each.item_id);
    }
  }

  async function check() {
    if (!history.ids.length) return;
    try {
      const gone = await learn(history.ids, { fresh: true });
      if (gone.length) takeOut(gone);
      showHistory();
    } catch { /* the answer to the recommendation tells */ }
  }

  history.addEventListener("change", () => { showHistory(); recommend(); });
  connection.addEventListener("up", () => { check(); recommend(); });
  showHistory();
  recommend();
  check();
  about().then(({ template, items, views }) => {
    const tables = views.filter((view) => view.source === "table").map((view) => view.name);
    if (tables.join() === "id") Object.assign(WAYS[2], { title: "Ids only", told: "behaviour alone, without attributes" });
    document.getElementById("try-lead").textContent =
      `Put together what somebody liked, ${template.noun} by ${template.noun}. The recommendations follow at once, out of ${number(items)}: from the best-seller to what nobody has touched yet.`;
  }, () => {});
}
