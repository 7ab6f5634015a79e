// The history that is being tried: ids, oldest first. It outlives a reload, not the tab.

const STORED = "llmemb.history";
const MOST = 1000; // of one POST /recommend

class History extends EventTarget {
  ids = read();

  add(id) {
    this.set([...this.ids.filter((each) => each !== id), id]);
  }

  drop(ids) {
    this.set(this.ids.filter((each) => !ids.includes(each)));
  }

  /** Put the item at one place at another. */
  move(from, to) {
    if (to < 0 || to >= this.ids.length || from === to) return;
    const ids = [...this.ids];
    ids.splice(to, 0, ...ids.splice(from, 1));
    this.set(ids);
  }

  set(ids) {
    const kept = ids.slice(-MOST);
    if (kept.length === this.ids.length && kept.every((id, at) => id === this.ids[at])) return;
    this.ids = kept;
    try { sessionStorage.setItem(STORED, JSON.stringify(kept)); } catch { /* for this page alone, then */ }
    this.dispatchEvent(new Event("change"));
  }
}

function read() {
  try {
    const ids = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
    return Array.isArray(ids) ? ids.filter((id) => typeof id === "string") : [];
  } catch {
    return [];
  }
}

export const history = new History();
