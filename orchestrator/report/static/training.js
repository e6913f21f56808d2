"use strict";
/* The step, the memory and the loss of layouts that train, from the data of the page's one JSON block: a panel for
   each load. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { order, number, fixed, precise, present, tips, layoutLine, layoutPoint, box, stroke, layoutKey, legend, embed, svg, maximum, tableOf } = drawing(data.layouts);
  const PAPER = 690; // px between the margins of A4
  let paper = 0;

  // Part -> its name and colour.
  const STEP = {
    forward: ["forward", "arithmetic"], backward: ["backward", "weights"], optimizer: ["optimizer", "kv"], other: ["rest of compute", "compute"],
    exposed: ["communication exposed", "transfer"], bubble: ["bubble", "bubble"], agreement: ["wait at the end", "wait"], gap: ["gap", "gap"],
    uncut: ["not taken apart", "outside"],
  };
  const HELD = {
    weights: ["weights", "weights"], gradients: ["gradients", "arithmetic"], optimizer: ["optimizer state", "kv"], activations: ["activations and the rest of the peak", "rest"],
    buffers: ["buffers", "ramp"], rest: ["the rest of the process", "gap"], uncut: ["a peak that is not taken apart", "outside"],
  };
  const HIDDEN = ["communication hidden", "fused"];
  const unique = (values) => [...new Set(values)];
  const total = (parts) => Object.values(parts).reduce((sum, value) => sum + (value ?? 0), 0);
  const known = (kinds, rows, ...fields) => Object.keys(kinds).filter((part) => rows.some((row) => fields.some((field) => row[field][part])));
  const keyOf = (kinds, parts) => parts.map((part) => [kinds[part][0], box(`var(--${kinds[part][1]})`)]);
  const thin = (fill) => `<rect x="3" y="5" width="20" height="4" fill="${fill}"/>`;
  const sorted = (rows) => order.flatMap((name) => rows.filter((row) => row.layout === name));
  const columns = (prefix, kinds, parts, unit) => Object.fromEntries(Object.keys(kinds).map((part) => [`${prefix}${part}_${unit}`, parts[part] ?? null]));
  const heightOf = (count) => count * (paper ? Math.min(56, 320 / count) : 56);
  /** Why layouts are not taken apart, those with the same reason together. */
  const reasons = (rows) => unique(rows.map((row) => row.reason).filter(Boolean))
    .map((reason) => rows.filter((row) => row.reason === reason))
    .map((mine) => `${present(mine).join(", ")}${!mine[0].parts.uncut ? "" : present(mine).length > 1 ? " are not taken apart" : " is not taken apart"}: ${mine[0].reason}. `).join("");

  const charts = {};

  // -- the step ---------------------------------------------------------------------------------------------------------

  charts.step = {
    key: (rows) => [
      ...keyOf(STEP, known(STEP, rows, "parts")),
      ...rows.some((row) => row.hidden) ? [[HIDDEN[0], thin(`var(--${HIDDEN[1]})`)]] : [],
      ["as timed, mean over starts", `<path d="M13 0V14" stroke="var(--ink)" stroke-width="3"/>`],
    ],
    note: (rows) => (rows.some((row) => !row.parts.uncut) ? "An observed step has the profiler in it, and is another one than those that were timed. " : "") + reasons(rows),
    spec: (rows, width, all) => bars(rows.map((row) => ({
      layout: row.layout, parts: row.parts, below: row.hidden ? { hidden: row.hidden } : {}, tick: row.timed, label: row.timed == null ? "" : `${precise(row.timed)} ms${width < 560 ? "" : " timed"}`,
    })), { ...STEP, hidden: HIDDEN }, { title: "ms of an optimizer step", unit: "ms", width, end: Math.max(...all.flatMap((row) => [total(row.parts), row.hidden ?? 0, row.timed ?? 0])) }),
    table: (rows) => [
      ["layout", "timed, ms", "observed, ms", ...known(STEP, rows, "parts").map((part) => `${STEP[part][0]}, ms`), `${HIDDEN[0]}, ms`],
      ...rows.map((row) => [row.layout, precise(row.timed), row.parts.uncut ? "–" : precise(total(row.parts)), ...known(STEP, rows, "parts").map((part) => precise(row.parts[part])), precise(row.hidden)]),
    ],
    csv: (row) => ({ load: row.load, layout: row.layout, timed_ms: row.timed, ...columns("", STEP, row.parts, "ms"), hidden_ms: row.hidden, reason: row.reason }),
  };

  // -- memory -----------------------------------------------------------------------------------------------------------

  const hasPredicted = (rows) => rows.some((row) => total(row.predicted));
  charts.memory = {
    key: (rows) => [
      ...keyOf(HELD, known(HELD, rows, "parts", "predicted")),
      ...hasPredicted(rows) ? [["as worked out by orchestrator explain", thin("var(--ink-3)")]] : [],
      ...data.capacity_gb ? [[`the ${number(data.capacity_gb)} GB of a GPU`, stroke("var(--ink-2)", "5 4", 1.5)]] : [],
    ],
    note: (rows) => (data.capacity_gb ? "Room between a bar and the dashed line could hold a larger batch or model. " : "")
      + (hasPredicted(rows) ? "The thin bar is what orchestrator explain says without a run. " : "")
      + (rows.some((row) => row.parts.rest) ? "On a CPU the peak is what was resident of the whole process, libraries included, and orchestrator explain says nothing of that. " : "") + reasons(rows),
    spec: (rows, width, all) => bars(rows.map((row) => ({
      layout: row.layout, parts: row.parts, below: row.predicted, label: `${fixed(row.peak)} GB`,
    })), HELD, { title: "GB", unit: "GB", width, line: data.capacity_gb, end: Math.max(data.capacity_gb ?? 0, ...all.flatMap((row) => [row.peak, total(row.predicted)])) }),
    table: (rows) => [
      ["layout", "peak, GB", ...known(HELD, rows, "parts").map((part) => `${HELD[part][0]}, GB`), ...hasPredicted(rows) ? ["worked out, GB", ...known(HELD, rows, "predicted").map((part) => `${HELD[part][0].split(" and ")[0]} worked out, GB`)] : []],
      ...rows.map((row) => [row.layout, precise(row.peak), ...known(HELD, rows, "parts").map((part) => precise(row.parts[part])),
        ...hasPredicted(rows) ? [precise(total(row.predicted) || null), ...known(HELD, rows, "predicted").map((part) => precise(row.predicted[part]))] : []]),
    ],
    csv: (row) => ({ load: row.load, layout: row.layout, peak_gb: row.peak, ...columns("", HELD, row.parts, "gb"), ...columns("predicted_", HELD, row.predicted, "gb"), reason: row.reason }),
  };

  /** A bar of parts for each layout, with a thin one below it, a tick and a label at its end. end: of the scale. */
  function bars(rows, kinds, { title, unit, width, end, line }) {
    const height = heightOf(rows.length), step = height / rows.length, names = Object.keys(kinds);
    const laid = (field) => rows.flatMap((row) => {
      let from = 0;
      return names.filter((part) => row[field][part]).map((part) => {
        const size = row[field][part], start = from;
        from += size;
        return { layout: row.layout, key: part, part: kinds[part][0], size, from: start, to: from, middle: start + size / 2, total: total(row[field]), text: precise(size) };
      });
    });
    const main = laid("parts"), below = laid("below");
    const ends = rows.map((row) => ({ ...row, to: Math.max(total(row.parts), total(row.below), row.tick ?? 0) }));
    const x = { field: "from", type: "quantitative", title, scale: { domain: [0, end], nice: false }, axis: { grid: Boolean(line), tickCount: width < 560 ? 4 : 8 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const fill = (suffix) => ({ field: "key", type: "nominal", legend: null, scale: { domain: names, range: names.map((part) => `var(--${kinds[part][1]}${suffix})`) } });
    const tooltip = tips([["layout", "layout"], ["part", "part"], ["size", unit], ["total", `of all, ${unit}`]]);
    const px = (width - 150) / end, tickOf = Object.fromEntries(rows.map((row) => [row.layout, row.tick ?? Infinity]));
    const isThere = (one) => one.size * px >= 8 + 7 * one.text.length && Math.abs(one.middle - tickOf[one.layout]) * px > 4 + 3.5 * one.text.length;
    return {
      description: `${title}, cut into parts, a bar for each layout`, height, data: { values: main }, encoding: { y }, padding: { right: 12, left: 4, top: 4, bottom: 4 },
      resolve: { scale: { color: "independent" } },
      layer: [
        { mark: { type: "bar", height: .46 * step, yOffset: -.1 * step, stroke: "var(--page)", strokeWidth: 1 }, encoding: { x, x2: { field: "to" }, color: fill(""), tooltip } },
        { data: { values: below }, mark: { type: "bar", height: .14 * step, yOffset: .24 * step, stroke: "var(--page)", strokeWidth: .5 }, encoding: { x, x2: { field: "to" }, color: fill(""), tooltip } },
        { data: { values: main.filter(isThere) }, mark: { type: "text", fontSize: 12, yOffset: -.1 * step },
          encoding: { x: { ...x, field: "middle" }, text: { field: "text" }, color: fill("-ink") } },
        ...line ? [{ data: { values: [{ line }] }, mark: { type: "rule", strokeDash: [5, 4] }, encoding: { x: { ...x, field: "line" }, y: null } }] : [],
        ...ends.some((row) => row.tick != null) ? [{ data: { values: ends }, mark: { type: "tick", thickness: 3, size: .62 * step, yOffset: -.1 * step, color: "var(--ink)", opacity: 1 }, encoding: { x: { ...x, field: "tick" } } }] : [],
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 8, yOffset: -.1 * step, fontWeight: 600 }, encoding: { x: { ...x, field: line ? undefined : "to", ...line ? { datum: end } : {} }, text: { field: "label" } } },
      ],
    };
  }

  // -- the loss ---------------------------------------------------------------------------------------------------------

  charts.loss = {
    key: layoutKey,
    note: (rows) => `The first run of each layout. ${unique(rows.map((row) => row.load)).map((load) => apart(rows.filter((row) => row.load === load))).filter(Boolean).join(" ")}`,
    spec: (rows, width) => curves(rows, width),
    csv: ({ load, layout, step, loss }) => ({ load, layout, step, loss }),
  };

  /** How far the losses of layouts lie from each other at most. */
  function apart(rows) {
    if (present(rows).length < 2) return "";
    const spreads = unique(rows.map((row) => row.step)).map((step) => rows.filter((row) => row.step === step).map((row) => row.loss)).map((found) => Math.max(...found) - Math.min(...found));
    return `${present(rows).join(", ")}: at most ${Math.max(...spreads).toExponential(1)} apart at any step.`;
  }

  function curves(rows, width) {
    const names = present(rows), low = Math.min(...rows.map((row) => row.loss)), high = maximum(rows, "loss"), room = .06 * (high - low) || .01;
    const steps = unique(rows.map((row) => row.step)).sort((a, b) => a - b);
    const count = width < 560 ? 5 : 10, ticks = steps.length > count ? { tickMinStep: 1, tickCount: count } : { values: steps };  // of few it would halve steps
    const x = { field: "step", type: "quantitative", title: "optimizer step", scale: { domain: [steps[0], steps[steps.length - 1]], nice: false, padding: 10 }, axis: { ...ticks, format: "d" } };
    const y = { field: "loss", type: "quantitative", title: "mean loss of a token", scale: { domain: [low - room, high + room], nice: false, zero: false }, axis: { grid: true, tickCount: 5 } };
    const tooltip = tips([["layout", "layout"], ["step", "step"], ["loss", "loss"]]);
    const wide = (place) => 2 + 8 * (1 - place / Math.max(1, names.length - 1)) * (names.length > 1);
    return {
      description: "The loss of each step, a line per layout", height: paper || width < 560 ? 260 : 320, data: { values: rows }, encoding: { x }, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      layer: names.flatMap((name, place) => [
        { transform: [{ filter: { field: "layout", equal: name } }], mark: { type: "line", strokeWidth: wide(place) }, encoding: { y, ...layoutLine } },
        { transform: [{ filter: { field: "layout", equal: name } }], mark: { type: "point", size: 30 + 12 * wide(place), strokeWidth: 1.6, opacity: place === names.length - 1 ? 1 : 0 }, encoding: { y, ...layoutPoint, tooltip } },
      ]),
    };
  }

  // -- drawing ----------------------------------------------------------------------------------------------------------

  const chartOf = (id) => document.querySelector(`[data-chart="${id}"]`);
  const isWorthIt = (id) => data[id].length && (id !== "loss" || unique(data.loss.map((row) => row.step)).length > 1);
  const drawn = {};

  function draw(id) {
    const chart = charts[id], target = chartOf(id), rows = sorted(data[id]), loads = unique(data[id].map((row) => row.load));
    (drawn[id] || []).forEach((view) => view.finalize());
    drawn[id] = [];
    target.replaceChildren(legend(chart.key(rows)));
    document.querySelector(`[data-note="${id}"]`).textContent = chart.note(rows);
    const figures = document.querySelector(`[data-figures="${id}"]`);
    figures.replaceChildren();
    for (const load of loads) {
      const mine = rows.filter((row) => row.load === load), panel = target.appendChild(page.element("div", "panel"));
      if (loads.length > 1) panel.append(page.element("h3", "", load));
      const plot = panel.appendChild(page.element("div", "plot"));
      drawn[id].push(embed(plot, chart.spec(mine, paper || plot.clientWidth, rows), paper));
      if (chart.table && loads.length > 1) figures.append(page.element("h3", "", load));
      if (chart.table) figures.append(tableOf(chart.table(mine)));
    }
    page.ready(figures);
    target.dataset.drawn = rows.length;
  }
  const shown = Object.keys(charts).filter(isWorthIt);
  const drawAll = () => shown.forEach(draw);

  function csv(id) {
    const rows = data[id].map(charts[id].csv), names = Object.keys(rows[0] || {});
    return page.csv([names, ...rows.map((row) => names.map((name) => row[name]))]);
  }

  for (const id of Object.keys(charts)) document.getElementById(id).hidden = !shown.includes(id);
  page.ready();
  page.contents();
  document.addEventListener("click", ({ target: button }) => {
    const section = button.closest("section");
    if (button.dataset.table !== undefined) page.save(`${section.id}.csv`, page.csv(page.rowsOf(section.querySelector("table"))), "text/csv");
    if (button.dataset.all) page.save(`${button.dataset.all}-all.csv`, csv(button.dataset.all), "text/csv");
    if (button.dataset.svg) page.save(`${button.dataset.svg}.svg`, svg(chartOf(button.dataset.svg)), "image/svg+xml");
  });
  let width = innerWidth;
  window.addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  window.addEventListener("beforeprint", () => { paper = PAPER; drawAll(); });
  window.addEventListener("afterprint", () => { paper = 0; drawAll(); });
  drawAll();
  page.arrive();
  document.body.dataset.ready = "yes";
  window.report = { csv, svg: (id) => svg(chartOf(id)) }; // for tests
})();
