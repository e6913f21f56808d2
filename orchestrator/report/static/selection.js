"use strict";
/* The curves of two layouts over the link's bandwidth, from the data of the page's one JSON block. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { layoutLine, layoutPoint, lookOf, stroke, legend, embed, svg, tips } = drawing(data.layouts);
  const NAMES = ["gpu", "scenario"], PAPER = 690, GB = 1e9;
  const target = document.querySelector('[data-chart="crossover"]');
  const select = (name) => document.querySelector(`select[name="${name}"]`);
  let paper = 0, views = [];

  const shown = () => data.crossover.filter((row) => NAMES.every((name) => row[name] === select(name).value));

  function draw() {
    const rows = shown(), names = [...new Set(rows.flatMap((row) => [row.first, row.second]))];
    views.forEach((view) => view.finalize());
    views = [];
    target.replaceChildren(legend([...names.map((name) => [name, lookOf(name)]), ["where the two change places", stroke("var(--ink)", "5 4", 1.5)], ["a kind of link", stroke("var(--grid)", "", 3)]]));
    target.className = "panels two";
    for (const row of rows) {
      const panel = target.appendChild(page.element("div", "panel"));
      panel.append(page.element("h3", "", `${row.model}: ${row.first} and ${row.second}`));
      if (row.curve.length) views.push(embed(panel.appendChild(page.element("div", "plot")), curves(row), paper && paper / 2 - 20));
      panel.append(page.element("p", "note", `${row.sentence}.`));
    }
    target.dataset.drawn = rows.length;
  }

  function points(row) {
    return row.curve.flatMap(([bandwidth, ...speeds]) => speeds.map((speed, place) => ({ bandwidth: bandwidth / GB, speed, layout: [row.first, row.second][place] })));
  }

  function curves(row) {
    const values = points(row), some = values.filter((_, place) => place % 16 < 2);
    const x = { field: "bandwidth", type: "quantitative", title: "GB/s of bus bandwidth", scale: { type: "log", nice: false, padding: 14 }, axis: { grid: false, values: [20, 50, 100, 200, 500] } };
    const y = { field: "speed", type: "quantitative", title: "output tokens/s", scale: { zero: true }, axis: { tickCount: 5 } };
    const links = Object.entries(data.links).map(([name, rate]) => ({ name, bandwidth: rate / GB }));
    const tooltip = tips([["layout", "layout"], ["bandwidth", "GB/s"], ["speed", "tokens/s"]]);
    return {
      description: `Tokens per second of ${row.first} and ${row.second} over the bandwidth of the link`, height: 220, padding: { right: 12, left: 4, top: 8, bottom: 4 }, encoding: { x },
      layer: [
        { data: { values: links }, mark: { type: "rule", stroke: "var(--grid)", strokeWidth: 2 } },
        { data: { values: links }, mark: { type: "text", angle: 270, align: "left", baseline: "bottom", dx: 4, dy: -2, fontSize: 12, fill: "var(--ink-3)" }, encoding: { y: { value: "height" }, text: { field: "name" } } },
        { data: { values: row.bandwidth ? [{ bandwidth: row.bandwidth / GB }] : [] }, mark: { type: "rule", stroke: "var(--ink)", strokeDash: [5, 4] } },
        { data: { values }, mark: { type: "line", strokeWidth: 2.5 }, encoding: { y, ...layoutLine } },
        { data: { values: some }, mark: { type: "point", size: 60, strokeWidth: 1.6, opacity: 1 }, encoding: { y, ...layoutPoint, tooltip } },
      ],
    };
  }

  /** The points of curves, or the fields of the matrix with lists as JSON. */
  function csv(name, whole) {
    const rows = name === "selection" ? data.selection
      : (whole ? data.crossover : shown()).flatMap((row) => points(row).map((one) => ({ model: row.model, scenario: row.scenario, gpu: row.gpu, bandwidth_gb_per_s: one.bandwidth, layout: one.layout, tokens_per_s: one.speed })));
    const names = [...new Set(rows.flatMap(Object.keys))];
    return page.csv([names, ...rows.map((row) => names.map((one) => Array.isArray(row[one]) ? JSON.stringify(row[one]) : row[one]))]);
  }

  function fill(name, first) {
    const values = [...new Set(data.crossover.map((row) => row[name]))], list = select(name);
    list.replaceChildren(...values.map((value) => new Option(value, value)));
    list.value = [page.given.get(name), first].find((value) => values.includes(value)) ?? values[0];
    list.addEventListener("change", () => { page.link(Object.fromEntries(NAMES.map((one) => [one, select(one).value]))); draw(); });
  }

  fill("gpu", data.shown);
  fill("scenario");
  document.addEventListener("click", ({ target: button }) => {
    const { csv: some, all, svg: picture } = button.dataset;
    if (some) page.save(`${some}.csv`, csv(some, false), "text/csv");
    if (all) page.save(`${all}-all.csv`, csv(all, true), "text/csv");
    if (picture) page.save(`${picture}.svg`, svg(target), "image/svg+xml");
  });
  let width = innerWidth;
  window.addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  window.addEventListener("beforeprint", () => { paper = PAPER; draw(); });
  window.addEventListener("afterprint", () => { paper = 0; draw(); });
  page.ready();
  page.contents();
  draw();
  page.arrive();
  document.body.dataset.ready = "yes";
  window.report = { csv, svg: () => svg(target) }; // for tests
})();
