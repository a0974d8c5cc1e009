"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  // ---- charts: drawn when they come near, in the colours of the page
  const drawn = new Set();
  const shade = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const hasMouse = matchMedia("(hover: hover)").matches;
  const configOf = (figure) => ({
    displaylogo: false,
    responsive: true,
    displayModeBar: hasMouse && figure.layout.dragmode ? "hover" : false,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // and none that would send the chart away
    showSendToCloud: false,
    showEditInChartStudio: false,
    plotlyServerURL: "",
    topojsonURL: "",
  });

  let loading;
  async function unpacked() { // what the page holds compressed; an old browser cannot, and keeps the pictures
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (letter) => letter.charCodeAt(0));
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
  }
  const plotly = () => loading = loading || unpacked();

  function look(layout) {
    const changes = {
      "font.color": shade("ink"),
      "font.family": shade("sans"),
      "hoverlabel.bgcolor": shade("card"),
      "hoverlabel.bordercolor": shade("axis"),
      "hoverlabel.font.color": shade("ink"),
      "hoverlabel.font.family": shade("sans"),
      "hoverlabel.align": "left",
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": shade("axis"),
      "modebar.activecolor": shade("ink"),
    };
    for (const name of Object.keys(layout).filter((name) => /^[xy]axis/.test(name))) {
      for (const part of ["gridcolor", "linecolor", "tickcolor", "zerolinecolor"]) {
        changes[name + "." + part] = shade(part === "gridcolor" ? "grid" : "axis");
      }
      changes[name + ".tickfont.color"] = shade("faint");
      changes[name + ".title.font.color"] = shade("faint");
    }
    return changes;
  }

  function set(target, path, value) {
    const names = path.split(".");
    const last = names.pop();
    names.reduce((at, name) => (at[name] = at[name] || {}), target)[last] = value;
  }

  const isSigned = (trace) => trace.meta && trace.meta.scale === "signed";
  const signed = () => Array.from({ length: 11 }, (_, place) => [place / 10, shade("s" + place)]);

  function recolour(live) {
    const places = live.data.map((_, place) => place).filter((place) => isSigned(live.data[place]));
    if (places.length) Plotly.update(live, { colorscale: [signed()] }, look(live.layout), places);
    else Plotly.relayout(live, look(live.layout));
  }

  function draw(chart) {
    const figure = JSON.parse(chart.querySelector("script").textContent);
    for (const [path, value] of Object.entries(look(figure.layout))) set(figure.layout, path, value);
    for (const trace of figure.data.filter(isSigned)) trace.colorscale = signed();
    if (!hasMouse) figure.layout.dragmode = false; // a finger scrolls the page
    const live = chart.querySelector(".live");
    live.style.display = "block";
    const narrow = live.clientWidth < 520 && figure.layout.meta ? figure.layout.meta.narrow : {};
    for (const [path, value] of Object.entries(narrow)) set(figure.layout, path, value);
    Plotly.newPlot(live, figure.data, figure.layout, configOf(figure));
    chart.classList.add("drawn");
    drawn.add(chart);
  }

  const waiting = [];
  let isBusy = false;
  async function next() {
    const chart = waiting.shift();
    isBusy = Boolean(chart);
    if (!chart) return;
    try {
      await plotly();
      if (drawn.has(chart)) recolour(chart.querySelector(".live"));
      else draw(chart);
    } catch (error) { console.error(error); }
    setTimeout(next, 0); // the page answers between charts
  }
  const near = new IntersectionObserver((seen) => {
    for (const each of seen.filter((each) => each.isIntersecting)) {
      near.unobserve(each.target);
      waiting.push(each.target);
    }
    if (!isBusy && waiting.length) { isBusy = true; requestAnimationFrame(() => setTimeout(next, 0)); }
  }, { rootMargin: "400px 0px" });
  if (root.classList.contains("draws") && document.getElementById("plotly")) {
    for (const chart of all(".chart")) near.observe(chart);
    const soon = window.requestIdleCallback || setTimeout; // while the reader reads, so that charts are ready when they come near
    soon(() => plotly().catch(console.error));
  }

  function turn() { // charts that are far take the new colours when they come near
    for (const chart of drawn) near.observe(chart);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", turn);
  const toggle = document.querySelector(".theme");
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    turn();
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
