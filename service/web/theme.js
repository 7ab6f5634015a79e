// A classic script, before the first paint: a module would be run after it.
(() => {
  try {
    const chosen = localStorage.getItem("llmemb.theme");
    if (chosen) document.documentElement.dataset.theme = chosen;
  } catch {
    // No storage here: the system's theme it is.
  }
})();
