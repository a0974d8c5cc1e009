"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const toggle = document.querySelector(".theme");
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
  });

  // ---- commands are copied
  async function copy(button) {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code); // where a page may not write to the clipboard, the reader can
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  }
  for (const button of all(".copy")) button.addEventListener("click", () => copy(button));

  // ---- long lists
  const filter = document.querySelector(".filter");
  if (filter) {
    const [words, failed] = all("input", filter);
    const tests = all("tbody.test");
    const texts = tests.map((test) => all(".main", test).map((row) => row.textContent).join(" ").toLowerCase());
    const apply = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      tests.forEach((test, place) => {
        const isBad = test.classList.contains("failed") || test.classList.contains("error");
        test.hidden = (failed.checked && !isBad) || !wanted.every((word) => texts[place].includes(word));
        count += !test.hidden;
      });
      for (const place of all("tbody.place")) {
        let next = place.nextElementSibling;
        while (next && next.matches(".test") && next.hidden) next = next.nextElementSibling;
        place.hidden = !(next && next.matches(".test"));
      }
      filter.querySelector("output").textContent = count === tests.length ? "" : `${count} of ${tests.length}`;
    };
    filter.addEventListener("input", apply);
    filter.addEventListener("submit", (event) => event.preventDefault());
  }

  // ---- on paper everything is open
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details:not([open])");
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
})();
