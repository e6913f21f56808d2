"use strict";
/* What every page can do: its contents, an address that says what is seen, and tables that are sorted, that tell
   when there is more of them to the right, and that are downloaded with numbers. */
const page = (() => {
  const element = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || "", textContent: text || "" });

  // -- the address: what follows # is what was chosen, so that a link shows it --------------------------------------

  const given = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  const mine = Object.fromEntries(given);

  /** Put choices into the address; null takes one out. */
  function link(choices) {
    Object.assign(mine, choices);
    const kept = Object.entries(mine).filter(([, value]) => value != null && value !== "");
    const where = kept.length ? `#${new URLSearchParams(kept)}` : "";
    history.replaceState(null, "", location.href.split("#")[0] + where);
  }

  // A link that is opened where the page already is: what was put in by `link` tells no one.
  window.addEventListener("hashchange", () => { if (location.hash.includes("=")) location.reload(); });

  /** Bring a part into sight, and the keyboard to it. */
  function goTo(id) {
    const part = document.getElementById(id);
    part?.scrollIntoView();
    if (part) part.tabIndex = -1;
    part?.focus({ preventScroll: true });
  }

  /** Where the address points to, once everything above it is as high as it will be. */
  const arrive = () => goTo(mine.at || (location.hash.includes("=") ? "" : location.hash.slice(1)) || "none");

  /** A link to each section that is shown. */
  function contents() {
    const list = document.querySelector(".contents ul");
    const heads = [...document.querySelectorAll("main section:not([hidden]) > h2")];
    list.replaceChildren(...heads.map((head) => {
      const item = element("li"), id = head.parentElement.id;
      item.append(Object.assign(element("a", "", head.dataset.short || head.textContent), { href: `#${id}` }));
      item.firstChild.addEventListener("click", (event) => { event.preventDefault(); goTo(id); link({ at: id }); });
      return item;
    }));
  }

  // -- numbers of cells ---------------------------------------------------------------------------------------------

  const BYTES = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };

  /** A figure as it is shown, as a number with its unit; null where it is none. */
  function figure(text) {
    const found = /^(?:[±<]|of |p99 )*([-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*(%|x|[kMGT]?B)?(?=$|\s)/.exec(text.trim());
    if (!found) return null;
    const value = Number(found[1].replaceAll(",", "").replace("−", "-")), size = BYTES[found[2]];
    return size ? { value: value * size, unit: "bytes" } : { value, unit: found[2] === "%" ? "%" : "" };
  }

  /** What a cell says, without what stands below it in small print; the figure behind it where it has one. */
  function main(cell) {
    if (cell.dataset.value !== undefined) return cell.dataset.value;
    const copy = cell.cloneNode(true);
    for (const part of copy.querySelectorAll("small, svg")) part.remove();
    return copy.textContent.trim().replace(/^–$/, "");
  }
  const said = (row, column) => row.cells[column] ? main(row.cells[column]) : "";

  // -- order of rows ------------------------------------------------------------------------------------------------

  // Of a table, by its name: which column its rows follow, and whether the greatest comes first.
  const orders = new Map((given.get("sort") || "").split(",").filter(Boolean).map((one) => {
    const [name, column, down] = one.split(".");
    return [name, { column: Number(column), down: down === "down" }];
  }));
  const headsOf = (table) => [...(table.tHead?.rows ?? table.querySelectorAll("tr.head"))].flatMap((row) => [...row.cells]);

  /** The name of a table: its section, and its place in it. */
  function nameOf(table) {
    const section = table.closest("section");
    return `${section.id}-${[...section.querySelectorAll("table")].indexOf(table)}`;
  }

  /** Numbers before words, words in their order, and what says nothing last. */
  function compare(a, b, down) {
    const [x, y] = [a, b].map((text) => text === "" ? null : figure(text)?.value ?? text);
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
    return (down ? -1 : 1) * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }));
  }

  function order(table) {
    const asked = orders.get(nameOf(table));
    for (const head of headsOf(table)) {
      const is = asked && head.cellIndex === asked.column;
      if (is) head.setAttribute("aria-sort", asked.down ? "descending" : "ascending"); else head.removeAttribute("aria-sort");
    }
    if (!asked) return;
    for (const body of table.tBodies) {
      const moved = [...body.rows].filter((row) => !row.matches(".group, .head, .notes, .aside"));
      const asides = new Map(moved.map((row) => [row, row.nextElementSibling?.matches(".aside") ? row.nextElementSibling : null]));
      const notes = body.querySelector("tr.notes");
      for (const row of moved.sort((a, b) => compare(said(a, asked.column), said(b, asked.column), asked.down))) {
        for (const one of [row, asides.get(row)]) if (one) body.insertBefore(one, notes);
      }
    }
  }

  function turn(head) {
    const table = head.closest("table"), name = nameOf(table), before = orders.get(name);
    const cells = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.matches(".group, .head, .notes, .aside")).map((row) => row.cells[head.cellIndex]);
    const isNumber = cells.some((cell) => cell?.tagName === "TD" && figure(main(cell)));
    const down = before?.column === head.cellIndex ? !before.down : isNumber;
    orders.set(name, { column: head.cellIndex, down });
    order(table);
    link({ sort: [...orders].map(([one, asked]) => `${one}.${asked.column}.${asked.down ? "down" : "up"}`).join() });
  }

  // -- what is wider than the page ----------------------------------------------------------------------------------

  function cue(scroll) {
    const hidden = scroll.scrollWidth - scroll.clientWidth;
    scroll.classList.toggle("wide", hidden > 1);
    scroll.classList.toggle("ended", scroll.scrollLeft >= hidden - 1);
  }
  const watched = new ResizeObserver((entries) => entries.forEach(({ target }) => {
    if (target.isConnected) cue(target.closest(".scroll")); else watched.unobserve(target); // drawn anew
  }));

  /** Make tables sortable and their frames tell when they can be scrolled; again for those that were drawn anew. */
  function ready(root = document) {
    for (const table of [...root.querySelectorAll("table")].filter((one) => one.closest("section"))) {
      for (const head of headsOf(table)) {
        if (head.querySelector("button") || head.colSpan > 1) continue;
        const button = Object.assign(element("button", "sort"), { type: "button", title: [head.title, "Click to sort."].filter(Boolean).join(". ") });
        button.append(...head.childNodes);
        button.addEventListener("click", () => turn(head));
        head.append(button);
      }
      order(table);
    }
    for (const scroll of root.matches?.(".scroll") ? [root] : root.querySelectorAll(".scroll")) {
      if (!scroll.previousElementSibling?.matches(".cue")) {
        scroll.before(element("p", "cue", "This table is wider than the page: scroll it to the right for the rest."));
        scroll.addEventListener("scroll", () => cue(scroll), { passive: true });
        watched.observe(scroll);
      }
      for (const table of scroll.querySelectorAll("table")) watched.observe(table);
      if (!scroll.hasAttribute("tabindex")) { // the keyboard can scroll it
        scroll.tabIndex = 0;
        scroll.setAttribute("role", "region");
        scroll.setAttribute("aria-label", scroll.closest("section")?.querySelector("h2").textContent ?? "figures");
      }
      cue(scroll);
    }
  }

  // -- downloads ----------------------------------------------------------------------------------------------------

  const quoted = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  /** A text that a spreadsheet would compute gets an apostrophe in front; a number is a number. */
  const field = (value) => typeof value === "string" && /^[=+\-@\t\r]/.test(value) && isNaN(value) ? `'${value}` : String(value ?? "");
  const csv = (rows) => rows.map((values) => values.map((value) => quoted(field(value))).join(",")).join("\n") + "\n";

  /** The rows of a table that are shown, with numbers: a column's unit is in its heading, and what stands below
      a figure in small print is a column of its own. lead: heading and value of columns that come first. */
  function rowsOf(table, lead = {}) {
    const heads = headsOf(table);
    const rows = [...table.querySelectorAll("tbody:not([hidden]) tr:not([hidden], .group, .head, .notes, .aside)")];
    const columns = heads.flatMap((head, place) => {
      const own = { title: head.textContent, text: (row) => said(row, place) };
      const below = { title: head.dataset.below, text: (row) => row.cells[place]?.querySelector("small")?.textContent ?? "" };
      return head.dataset.below ? [own, below] : [own];
    });
    const units = columns.map(({ text }) => rows.map((row) => figure(text(row))?.unit).find(Boolean));
    const titles = columns.map(({ title }, i) => units[i] && !title.endsWith(units[i]) ? `${title}, ${units[i]}` : title);
    const body = rows.map((row) => [...Object.values(lead).map((value) => value(row)), ...columns.map(({ text }) => figure(text(row))?.value ?? text(row))]);
    return [[...Object.keys(lead), ...titles], ...body];
  }

  function save(name, text, type) {
    const at = element("a");
    at.href = URL.createObjectURL(new Blob([text], { type }));
    at.download = name;
    at.click();
    setTimeout(() => URL.revokeObjectURL(at.href), 1000);
  }

  // As a choice by itself this link would take the place of what was chosen.
  document.querySelector(".skip")?.addEventListener("click", (event) => { event.preventDefault(); goTo("main"); });

  return { element, given, link, arrive, contents, ready, csv, rowsOf, save };
})();
