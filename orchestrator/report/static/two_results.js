"use strict";
/* The new result over the base, as intervals around 1, from the data of the page's one JSON block. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { layoutColour, layoutPoint, layoutKey, box, stroke, legend, embed, svg, tips, precise } = drawing(data.layouts);
  const state = { metric: data.metrics[0]?.name };
  const target = document.querySelector('[data-chart="ratios"]'), list = document.querySelector('select[name="metric"]');
  const PAPER = 690;
  let paper = 0, views = [];

  const shown = () => data.changes.filter((row) => row.metric === state.metric && row.ratio != null);
  const loads = () => [...new Set(shown().map((row) => row.load))];

  function draw() {
    const metric = data.metrics.find((one) => one.name === state.metric);
    views.forEach((view) => view.finalize());
    views = [];
    target.replaceChildren(legend([...layoutKey(shown()), ["1: no change", stroke("var(--ink-2)", "5 4", 1.5)]]));
    target.className = `panels ${paper ? "" : ["", "", "two", "three"][Math.min(3, loads().length)]}`;
    for (const load of loads()) {
      const panel = target.appendChild(page.element("div", "panel"));
      panel.append(page.element("h3", "", load));
      const plot = panel.appendChild(page.element("div", "plot"));
      views.push(embed(plot, ratios(shown().filter((row) => row.load === load), metric), paper));
    }
    document.querySelector('[data-note="ratios"]').textContent = shown().length
      ? `${metric.title}: ${metric.better} is better. ${shown().some((row) => row.low == null) ? "A mark without a line has one start of a side, and so no interval." : ""}`
      : "No cell has this figure in both results.";
    target.dataset.drawn = shown().length;
  }

  /** All loads have one scale: from the lowest to the highest end of an interval, and 1. */
  function ratios(rows, metric) {
    const ends = shown().flatMap((row) => [row.low ?? row.ratio, row.high ?? row.ratio, 1]);
    const low = Math.min(...ends), high = Math.max(...ends), room = Math.max(.01, .08 * (high - low));
    const x = { field: "ratio", type: "quantitative", title: "new / base", scale: { domain: [low - room, high + room], nice: false, zero: false }, axis: { grid: true, tickCount: 5 } };
    const values = rows.map((row) => ({ ...row, label: row.ratio.toFixed(3) }));
    const y = { field: "layout", type: "nominal", sort: null, title: null, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const tooltip = tips([["layout", "layout"], ["ratio", "new / base"], ["low", "from"], ["high", "to"], ["base", "base"], ["new", "new"], ["base_starts", "starts of the base"], ["new_starts", "starts of the new"], ["change", "said"]]);
    return {
      description: `${metric.title}: new over base, a row per layout`, height: 38 * rows.length, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      data: { values }, encoding: { y, tooltip },
      layer: [
        { data: { values: [{ one: 1 }] }, mark: { type: "rule", strokeDash: [5, 4], stroke: "var(--ink-2)", strokeWidth: 1.5 }, encoding: { x: { ...x, field: "one" }, y: null, tooltip: null } },
        { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", strokeWidth: 3 }, encoding: { x: { ...x, field: "low" }, x2: { field: "high" }, color: layoutColour } },
        { mark: { type: "point", size: 80, strokeWidth: 1.8, opacity: 1 }, encoding: { x, ...layoutPoint } },
        { mark: { type: "text", dy: -13, fontSize: 12 }, encoding: { x, text: { field: "label" } } },
      ],
    };
  }

  const csv = (whole) => {
    const rows = data.changes.filter((row) => whole || row.metric === state.metric), names = Object.keys(data.changes[0] || {});
    return page.csv([names, ...rows.map((row) => names.map((name) => row[name]))]);
  };

  page.ready();
  page.contents();
  list.replaceChildren(...data.metrics.map((one) => new Option(one.title, one.name)));
  if (data.metrics.some((one) => one.name === page.given.get("metric"))) state.metric = page.given.get("metric");
  list.value = state.metric;
  list.addEventListener("change", () => { state.metric = list.value; page.link({ metric: state.metric }); draw(); });
  document.addEventListener("click", ({ target: button }) => {
    if (button.dataset.csv) page.save("changes-shown.csv", csv(false), "text/csv");
    if (button.dataset.all) page.save("changes.csv", csv(true), "text/csv");
    if (button.dataset.svg) page.save("ratios.svg", svg(target), "image/svg+xml");
  });
  let width = innerWidth;
  window.addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; draw(); } });
  window.addEventListener("beforeprint", () => { paper = PAPER; draw(); });
  window.addEventListener("afterprint", () => { paper = 0; draw(); });
  draw();
  page.arrive();
  document.body.dataset.ready = "yes";
  window.report = { csv, svg: () => svg(target), state }; // for tests
})();
