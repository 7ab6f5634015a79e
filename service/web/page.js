// The frame: tabs, theme, key, and whether the service answers.

import { about, changeKey, connection, readiness } from "./api.js";
import { notice } from "./dom.js";
import { orderBy } from "./items.js";
import { start as startAdd } from "./add.js";
import { start as startHealth } from "./health.js";
import { start as startMap } from "./map.js";
import { start as startTry } from "./try.js";

const STARTS = { try: startTry, add: startAdd, map: startMap, health: startHealth };
const ASK_AGAIN_MS = 1500;
const started = new Set();
const tabs = [...document.querySelectorAll('[role="tab"]')];
// Panels are not called as the hash is: the browser would jump to them.
const nameOf = (tab) => tab.id.replace("tab-", "");
const panelOf = (name) => document.getElementById(`panel-${name}`);

function open(name, focus = false) {
  const wanted = STARTS[name] ? name : "try";
  for (const tab of tabs) {
    const shown = nameOf(tab) === wanted;
    tab.setAttribute("aria-selected", String(shown));
    tab.tabIndex = shown ? 0 : -1;
    panelOf(nameOf(tab)).hidden = !shown;
    if (shown && focus) tab.focus();
  }
  document.title = `${tabs.find((tab) => nameOf(tab) === wanted).textContent} · LLMEmb`;
  begin(wanted);
}

// A part that could not begin, as long as the service was away, begins anew when it is back.
function begin(name) {
  if (started.has(name)) return;
  started.add(name);
  STARTS[name](panelOf(name)).catch(() => started.delete(name));
}

// Another item is on the map, or one is not any more: it is drawn anew when it is next looked at.
document.addEventListener("catalogue", () => started.delete("map"));

for (const tab of tabs) {
  tab.addEventListener("click", () => { location.hash = nameOf(tab); });
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -tabs.indexOf(tab), End: tabs.length - 1 - tabs.indexOf(tab) }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const next = nameOf(tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length]);
    window.history.replaceState(null, "", `#${next}`);
    open(next, true);
  });
}
function fromHash() {
  const name = location.hash.slice(1);
  // Another hash, as that of the link to the content, is no tab.
  open(STARTS[name] ? name : nameOf(tabs.find((tab) => tab.tabIndex === 0)));
}
window.addEventListener("hashchange", fromHash);

// --- theme -----------------------------------------------------------------------------------
const THEMES = ["", "light", "dark"];
const SHOWN = { "": ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };
const themeButton = document.getElementById("theme");

function showTheme() {
  const now = document.documentElement.dataset.theme ?? "";
  themeButton.textContent = SHOWN[now][0];
  themeButton.title = `Theme: ${SHOWN[now][1]}`;
  themeButton.setAttribute("aria-label", `Theme: ${SHOWN[now][1]}. Change it`);
}
themeButton.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "") + 1) % THEMES.length];
  if (next) document.documentElement.dataset.theme = next;
  else delete document.documentElement.dataset.theme;
  try { localStorage.setItem("llmemb.theme", next); } catch { /* for this page alone, then */ }
  showTheme();
  document.dispatchEvent(new Event("theme"));
});
showTheme();

// --- whether it answers ----------------------------------------------------------------------
const banner = document.getElementById("banner");
let waiting = false;

function tell(text) {
  banner.hidden = !text;
  if (banner.textContent !== text) banner.textContent = text;
}

function away(text) {
  tell(text);
  if (waiting) return;
  waiting = true;
  setTimeout(again, ASK_AGAIN_MS);
}

async function again() {
  const { ready, told } = await readiness();
  if (!ready) {
    tell(told === null ? "The service does not answer. Trying again…" : `Not ready yet: ${told.replace(/^the service is not ready: /, "")}…`);
    setTimeout(again, ASK_AGAIN_MS);
    return;
  }
  waiting = false;
  tell("");
  notice("The service answers again.", "good");
  introduce();
  connection.dispatchEvent(new Event("up"));
  fromHash();
}

connection.addEventListener("down", () => away("The service does not answer. Trying again…"));
connection.addEventListener("unready", ({ detail }) => away(`Not ready yet: ${detail.message.replace(/^the service is not ready: /, "")}…`));

async function introduce() {
  try {
    const info = await about(true);
    orderBy(info.template.priority);
    document.getElementById("bundle-name").textContent = info.name;
    document.getElementById("foot-bundle").textContent = `bundle ${info.bundle.slice(0, 12)} · ${info.llm} · ${info.version}`;
  } catch (problem) {
    if (!problem.passing) notice(problem.message, "warn");
  }
}

document.getElementById("key-button").addEventListener("click", async () => {
  try { await changeKey(); } catch { return; }
  introduce();
  connection.dispatchEvent(new Event("up"));
  fromHash();
});
const drawer = document.getElementById("item-dialog");
document.getElementById("item-close").addEventListener("click", () => drawer.close());
drawer.addEventListener("click", (event) => { if (event.target === drawer) drawer.close(); });

// The order of attributes first: titles come out of it.
await introduce();
fromHash();
