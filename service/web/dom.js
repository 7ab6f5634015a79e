// Elements without markup in strings: what a catalogue says never becomes HTML.

/** An element. `props`: `class`, `text`, `on` (listeners), `data`, `style` (custom properties too);
 *  true and false set or leave out an attribute; all else is an attribute. */
export function el(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") for (const [rule, set] of Object.entries(value)) element.style.setProperty(rule, set);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const hidden = (text) => el("span", { class: "hidden", text });

/** Say something to who cannot see it. */
export function announce(text) {
  const live = document.getElementById("live");
  live.textContent = "";
  // A change within one task is not read.
  setTimeout(() => { live.textContent = text; }, 30);
}

/** A notice that goes by itself; also read aloud. */
export function notice(text, kind = "") {
  const line = el("div", { class: `notice ${kind}` }, el("span", { text }));
  const close = el("button", { class: "icon", type: "button", "aria-label": "Close this notice", text: "×", on: { click: () => line.remove() } });
  line.append(close);
  document.getElementById("notices").append(line);
  setTimeout(() => { if (!line.matches(":hover, :focus-within")) line.remove(); }, 9000);
}

/** The last of the calls that come within `ms`. */
export function debounce(call, ms) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), ms);
  };
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

export const percent = (share, digits = 0) => `${number(100 * share, digits)} %`;

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
