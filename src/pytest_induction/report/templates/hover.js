"use strict";
(() => {
  // ---- charts say what is under the pointer, and what the arrow keys come to; their words are in the pictures
  const tip = document.querySelector(".tip");
  const all = (selector, from) => Array.from(from.querySelectorAll(selector));
  const range = (count) => Array.from({ length: count + 1 }, (_, place) => place);
  const make = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  // What a picture has to say, in rows: of each curve its points, of each map its rows of cells, and all single marks.
  function pointsOf(group, words) {
    const points = [...group.querySelector("path").getAttribute("d").matchAll(/[ML](\S+?) ([\d.-]+)/g)];
    return [points.map(([, x, y], place) => ({
      group, x: Number(x), y: Number(y), lines: [words.name, words.values[place] + words.after, words.at[place]],
    }))];
  }
  function cellsOf(group, words) {
    const { rows, columns, values, join = "", before = "", after = "" } = words;
    const across = words.across || range(columns.length);
    const down = words.down || range(rows.length);
    return values.map((row, y) => row.map((value, x) => value === null ? null : {
      group, box: [across[x], down[y], across[x + 1], down[y + 1]], x: (across[x] + across[x + 1]) / 2, y: (down[y] + down[y + 1]) / 2,
      lines: [rows[y] + join + columns[x], before + value + after],
    }).filter(Boolean));
  }
  function rowsOf(svg) {
    const rows = all(".curve, .cells", svg).flatMap((group) => {
      const words = JSON.parse(group.querySelector("metadata").textContent);
      return group.matches(".curve") ? pointsOf(group, words) : cellsOf(group, words);
    });
    const marks = all(".mark", svg).map((group) => {
      const title = group.querySelector("title");
      const { x, y, width, height } = group.getBBox();
      const lines = title.textContent.split("\n");
      title.remove(); // or the browser would say it, too
      return { group, x: x + width / 2, y: y + height / 2, lines, isMark: true, isDot: Math.max(width, height) < 14 };
    });
    return [...rows, marks].filter((row) => row.length);
  }

  const known = new Map();
  const rows = (svg) => {
    if (!known.has(svg)) known.set(svg, rowsOf(svg));
    return known.get(svg);
  };
  const isSeen = (each) => !each.group.closest(".off");
  const onScreen = (each) => new DOMPoint(each.x, each.y).matrixTransform(each.group.getScreenCTM());

  function pointer(event, group) { // where it is, as the group counts
    const matrix = group.getScreenCTM();
    const { x, y } = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix.inverse());
    return { x, y, scale: matrix.a };
  }

  const REACH = 28; // pixels from a point within which it is meant
  function under(svg, event) {
    const mark = event.target.closest(".mark");
    const every = rows(svg).flat().filter(isSeen);
    if (mark) return every.find((each) => each.group === mark);
    const places = new Map();
    let best = null;
    let least = REACH;
    for (const each of every) {
      if (!places.has(each.group)) places.set(each.group, pointer(event, each.group));
      const { x, y, scale } = places.get(each.group);
      if (each.box) {
        const [left, top, right, bottom] = each.box;
        if (left <= x && x < right && top <= y && y < bottom) return each;
      } else if (!each.isMark || each.isDot) {
        const far = Math.hypot(each.x - x, each.y - y) * scale;
        if (far < least) [best, least] = [each, far];
      }
    }
    return best;
  }

  let shown = null;
  function hide() {
    if (!shown) return;
    shown.ring.remove();
    shown.each.group.classList.remove("lit");
    tip.replaceChildren();
    shown = null;
  }
  function show(each, svg) {
    if (shown && shown.each === each) return;
    hide();
    const [left, top, right, bottom] = each.box || [];
    const ring = make("g", { class: "at" });
    if (each.box) for (const _ of "12") ring.append(make("rect", { x: left, y: top, width: right - left, height: bottom - top }));
    else ring.append(make("circle", { cx: each.x, cy: each.y, r: 4 }));
    if (each.isMark) each.group.classList.add("lit");
    else each.group.append(ring);
    shown = { each, svg, ring };
    tip.replaceChildren(...each.lines.map((line, place) => {
      const said = document.createElement(place ? "span" : "b");
      said.textContent = line;
      return said;
    }));
    place();
  }
  function place() { // beside what it is of, and within the window
    if (!shown) return;
    const { x, y } = onScreen(shown.each);
    const { width, height } = tip.getBoundingClientRect();
    const left = x + 14 + width > innerWidth - 8 ? x - 14 - width : x + 14;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.min(Math.max(8, y - height - 10), innerHeight - height - 8)}px`;
    tip.style.visibility = y < 0 || y > innerHeight ? "hidden" : "";
  }

  // The arrows: left and right along a row, up and down to the nearest place of another.
  function walk(svg, key) {
    step(svg, key);
    if (shown) (shown.ring.isConnected ? shown.ring : shown.each.group).scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  function step(svg, key) {
    const there = rows(svg).map((row) => row.filter(isSeen)).filter((row) => row.length);
    if (!there.length) return;
    const row = there.findIndex((each) => shown && each.includes(shown.each));
    if (row < 0) return show(there[0][0], svg);
    const place = there[row].indexOf(shown.each);
    const to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: there[row].length - 1 }[key];
    if (to !== undefined) return show(there[row][Math.min(Math.max(to, 0), there[row].length - 1)], svg);
    const next = there[Math.min(Math.max(row + (key === "ArrowUp" ? -1 : 1), 0), there.length - 1)];
    const { x } = onScreen(shown.each);
    show(next.reduce((one, two) => Math.abs(onScreen(two).x - x) < Math.abs(onScreen(one).x - x) ? two : one), svg);
  }

  let last = {};
  function hasMoved(event) { // or the page has, under the pointer
    const { clientX: x, clientY: y, type } = event;
    const isSame = x === last.x && y === last.y && type !== "pointerdown";
    last = { x, y };
    return !isSame;
  }

  function turn(key, svg) { // what an entry of a legend stands for is hidden, or there again
    const isOn = key.getAttribute("aria-pressed") === "false";
    key.setAttribute("aria-pressed", isOn);
    const off = all(".key[aria-pressed=false]", svg).map((each) => each.dataset.key);
    for (const each of all("[data-of]", svg)) each.classList.toggle("off", each.dataset.of.split(" ").some((name) => off.includes(name)));
    hide();
  }

  for (const svg of all(".chart svg", document)) {
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("role", "application");
    svg.setAttribute("aria-roledescription", "chart");
    svg.setAttribute("aria-describedby", "walk");
    const point = (event) => {
      if (!hasMoved(event)) return;
      const each = under(svg, event);
      if (each) show(each, svg);
      else hide();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType !== "touch" && hasMoved(event)) hide(); });
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      else if (event.target === svg && /^(Arrow|Home|End)/.test(event.key)) {
        event.preventDefault();
        walk(svg, event.key);
      }
    });
    for (const key of all(".key", svg)) {
      for (const [name, value] of [["role", "button"], ["tabindex", "0"], ["aria-pressed", "true"]]) key.setAttribute(name, value);
      key.addEventListener("click", () => turn(key, svg));
      key.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault();
          turn(key, svg);
        }
      });
    }
  }
  document.addEventListener("pointerdown", (event) => { if (shown && !shown.svg.contains(event.target)) hide(); });
  addEventListener("scroll", place, { capture: true, passive: true });
})();
