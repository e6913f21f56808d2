"use strict";
/* The page draws each chart from the data of its one JSON block, for what the selects and check boxes choose.
   Colours are CSS variables in the drawing itself, so light, dark and print need no second one. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { element } = page;
  const {
    look, colour, order, number, fixed, precise, present, tips, layoutColour, layoutLine, layoutPoint, layoutDash, isHollow, box, stroke, mark, lookOf, layoutKey,
    glyph, legend, embed, svg, maximum, tableOf,
  } = drawing(data.layouts);
  const state = { phase: "decode", zoom: "1", latency: "bars" };
  const PARTS = {
    compute: ["compute", "compute"], exposed_transfer: ["exposed transfer", "transfer"], exposed_wait: ["exposed wait", "wait"],
    bubble: ["bubble", "bubble"], fused: ["fused", "fused"], launch_gap: ["launch gap", "gap"],
  };
  const PART_ORDER = ["compute", "exposed_transfer", "exposed_wait", "bubble", "fused", "launch_gap"];
  const SHARES = { comm_exposed: "communication exposed", comm_busy: "all communication" };
  const KINDS = {
    compute: "compute", all_reduce: "all-reduce", all_gather: "all-gather", reduce_scatter: "reduce-scatter", send: "send",
    recv: "receive", broadcast: "broadcast", stall: "bubble",
  }; // kind of a call -> the colour that it has, and its name
  const LATENCIES = { ttft: "Time to first token (TTFT)", tpot: "Time per output token (TPOT)", e2el: "Whole request (E2EL)" };

  // -- what is chosen ------------------------------------------------------------------------------------------

  const select = (name) => document.querySelector(`select[name="${name}"]`);
  const shown = () => [...document.querySelectorAll('input[name="layout"]:checked')].map((box) => box.value);
  const experiment = () => data.experiments.find((e) => e.name === state.experiment);
  const scenario = () => experiment().scenarios.find((s) => s.name === state.scenario);

  /** The chosen load in words. */
  const load = () => scenario().loads[scenario().concurrencies.indexOf(state.concurrency)];

  /** Rows of the chosen model, scenario and layouts, and of the chosen concurrency unless `all`. */
  function chosen(rows, all = false) {
    const layouts = new Set(shown());
    return rows.filter((row) => row.experiment === state.experiment && row.scenario === state.scenario
      && layouts.has(row.layout) && (all || row.concurrency === state.concurrency));
  }

  // What a chart shows is a part of what it can be asked for: a view takes rows, and says which phases.
  const CHOSEN = { take: chosen, phases: () => [state.phase] };
  const WHOLE = { take: (rows) => rows, phases: () => ["decode", "prefill"] };
  const named = ({ experiment, scenario, layout, concurrency }) => ({ experiment, scenario, layout, concurrency });

  /** The chosen layouts that have figures and yet no row here, and why. */
  function without(rows, why) {
    const there = new Set(chosen(rows).map((row) => row.layout));
    const missing = chosen(data.cells).filter((cell) => cell.throughput != null && !there.has(cell.layout)).map((cell) => cell.layout);
    return missing.length ? `Without ${missing.join(", ")}: ${why}. ` : "";
  }

  function fill(name, options) {
    const element = select(name);
    element.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    const kept = options.find(([value]) => value === state[name]) || options[options.length - 1];
    state[name] = kept[0];
    element.selectedIndex = options.indexOf(kept);
    element.parentElement.hidden = options.length < 2;
  }

  function fillAll() {
    if (!data.experiments.length) return;
    state.experiment = state.experiment || data.experiments[0].name;
    fill("experiment", data.experiments.map((e) => [e.name, e.label]));
    fill("scenario", experiment().scenarios.map((s) => [s.name, s.label]));
    fill("concurrency", scenario().concurrencies.map((c) => [c, String(c)]));
    for (const chip of document.querySelectorAll(".chip")) {
      const name = chip.querySelector("input").value;
      chip.hidden = !data.cells.some((cell) => cell.experiment === state.experiment && cell.layout === name);
    }
  }

  function choose(event) {
    const { name, value } = event.target;
    if (name && name !== "layout") state[name] = name === "concurrency" ? Number(value) : value;
    fillAll();
    remember();
    const local = event.target.closest("section");
    if (local) draw(local.id); else drawAll();
  }

  const LINKED = ["experiment", "scenario", "concurrency", "phase", "zoom", "latency"];

  /** What the address asks for. A layout, or a value, that is not there is passed over. */
  function recall() {
    for (const name of LINKED.filter((one) => page.given.has(one))) {
      const value = page.given.get(name);
      state[name] = name === "concurrency" ? Number(value) : value;
    }
    const without = new Set((page.given.get("without") || "").split(","));
    for (const box of document.querySelectorAll('input[name="layout"]')) box.checked = !without.has(box.value);
  }

  /** Fill the selects of single charts with what the address asked for, or forget that. */
  function recallLocal() {
    for (const name of ["phase", "zoom", "latency"]) {
      const list = select(name), kept = [...list.options].some((option) => option.value === state[name]);
      if (kept) list.value = state[name]; else state[name] = list.value;
    }
  }

  /** Put all that is chosen into the address: a choice changes what the others start from. */
  function remember() {
    const without = [...document.querySelectorAll('input[name="layout"]:not(:checked)')].map((box) => box.value).join();
    const offered = LINKED.filter((name) => select(name).length > 1);
    page.link({ without, ...Object.fromEntries(offered.map((name) => [name, state[name]])) });
  }

  /** Positions as near as can be to `wanted` with `gap` between any two, in the same order. */
  function spread(wanted, gap) {
    const sorted = wanted.map((at, index) => ({ at, index })).sort((a, b) => a.at - b.at);
    for (let round = 0; round < 60; round++) {
      for (let i = 1; i < sorted.length; i++) {
        const push = (gap - (sorted[i].at - sorted[i - 1].at)) / 2;
        if (push > 0) { sorted[i - 1].at -= push; sorted[i].at += push; }
      }
    }
    const out = [];
    for (const item of sorted) out[item.index] = item.at;
    return out;
  }

  const bandHeight = (rows, step, onPaper = 320) => Math.max(1, rows) * (paper ? Math.min(step, onPaper / Math.max(1, rows)) : step);
  const tall = (width, full) => paper || width < 560 ? 300 : full;
  const rowHeight = (rows) => rows * Math.max(paper ? 8 : 16, Math.min(30, (paper ? 590 : 1000) / rows));
  /** Some rows of each line, where its shape is drawn: without colour it is told by that. */
  function stations(rows) {
    const names = present(rows);
    return names.flatMap((name, nth) => {
      const mine = rows.filter((row) => row.layout === name), gap = Math.ceil(mine.length / 6);
      return mine.filter((_, place) => place % gap === Math.floor(gap * (nth + .5) / names.length));
    });
  }
  const shapesOf = (rows, encoding) => ({ data: { values: stations(rows) }, mark: { type: "point", size: 46, strokeWidth: 1.6, opacity: 1 }, encoding: { ...encoding, ...layoutPoint } });
  const labelRoom = (names) => 14 + 7.2 * Math.max(0, ...names.map((name) => name.length));

  // -- charts: rows are what is downloaded, panels what is drawn -----------------------------------------------

  const charts = {};

  const SOURCES = { calibrated: "rates measured on these devices", datasheet: "rates of the data sheet" };
  const BOUND_ROOM = 2; // a bound further above the highest figure than this lies outside of the chart
  // Figure -> its heading, its unit, and where its ends are.
  const FIGURES = {
    throughput: ["Tokens per second", "tokens_per_second"],
    ttft: ["Time to first token, median, ms", "median_ttft_ms"],
    tpot: ["Time per output token, median, ms", "median_tpot_ms"],
  };
  const isPredicted = (rows) => rows.some((row) => row.predicted_tokens_per_second != null);

  charts.throughput = {
    rows: ({ take }) => take(data.cells).filter((row) => row.throughput != null || row.bound != null).map((row) => ({
      ...named(row), tokens_per_second: row.throughput, low: row.low, high: row.high, best_run: row.best, starts: row.starts, runs: row.runs, in_best_set: row.in_best_set,
      bound: row.bound, percent_of_bound: row.bound_pct, bound_source: row.bound_source, status: row.status, median_ttft_ms: row.ttft, median_tpot_ms: row.tpot,
      ...Object.fromEntries(Object.entries(FIGURES).flatMap(([name, [, column]]) => ["", "_low", "_high"].map((end, i) => [`predicted_${column}${end}`, row.predicted[name]?.[i] ?? null]))),
    })),
    columns: (rows) => isPredicted(rows) ? "three" : "",
    key: (rows) => [
      ["measured, mean over starts", stripes(present(rows).map((name) => colour[name]))],
      ...rows.some((row) => row.low != null) ? [["its 95% interval", stroke("var(--interval)", "", 8)]] : [],
      ...isPredicted(rows) ? [["predicted before the run, with its 90% interval", stroke("var(--ink-2)", "", 1.6) + mark("diamond", "var(--ink-2)", "var(--page)")]] : [],
      ...rows.some((row) => row.bound != null) ? [["bound of memory and arithmetic", `<path d="M13 0V14" stroke="var(--ink)" stroke-width="2"/>`]] : [],
    ],
    note(rows) {
      const sources = [...new Set(rows.map((row) => row.bound_source).filter(Boolean))].map((name) => SOURCES[name] || name);
      const away = rows.filter((row) => row.bound > highest(rows)).map((row) => row.layout);
      return rows.length ? `At ${load()}. ${rows.some((row) => row.low != null) ? "" : "One start each, so there is no interval to draw. "}`
        + (sources.length ? `Bounds are from ${sources.join(" or ")}. ` : "") + (away.length ? `Outside of the chart: the bound of ${away.join(", ")}.` : "") : "";
    },
    panels: (rows, width) => (isPredicted(rows) ? Object.keys(FIGURES) : ["throughput"]).map((name) => ({
      title: isPredicted(rows) ? FIGURES[name][0] : "", spec: figureBars(rows, name, isPredicted(rows), width < 560),
    })),
  };
  const stripes = (colours) => colours.slice(0, 3).map((fill, i) => `<rect x="6" y="${5 * i}" width="14" height="4" fill="${fill}"/>`).join("");
  const standing = (row) => row.in_best_set == null ? null : row.in_best_set ? "not shown to be worse" : "shown to be worse";

  /** The end of the scale of throughput: above every interval, and above the bounds that are not far off. */
  function highest(rows) {
    const most = maximum(rows, "tokens_per_second", "high", "predicted_tokens_per_second", "predicted_tokens_per_second_high");
    return 1.04 * Math.max(most, maximum(rows.filter((row) => !most || row.bound <= BOUND_ROOM * most), "bound"));
  }

  /** A bar as measured, with what was predicted of it below, and its bound. short: one of three, low; narrow: on a phone. */
  function figureBars(rows, name, short, narrow) {
    const column = FIGURES[name][1], predicted = `predicted_${column}`, isSpeed = name === "throughput";
    const sort = [...rows].sort((a, b) => b.tokens_per_second - a.tokens_per_second).map((row) => row.layout);
    const end = isSpeed ? highest(rows) : 1.04 * maximum(rows, column, predicted, `${predicted}_high`);
    const values = rows.map((row) => ({
      ...row, standing: standing(row), value: row[column], said: row[predicted], from: row[`${predicted}_low`], to: row[`${predicted}_high`],
      label: (row[column] == null ? row.status : fixed(row[column])) + (isSpeed && row.in_best_set ? " · best" : "")
        + (!isSpeed || short || narrow || row.percent_of_bound == null ? "" : ` · ${fixed(row.percent_of_bound)}% of its bound`),
    }));
    const x = { type: "quantitative", title: FIGURES[name][0].split(", ").pop() === "ms" ? "ms" : "tokens per second", scale: { domain: [0, end], nice: false }, axis: { grid: true, tickCount: short || narrow ? 4 : 6 } };
    const y = { field: "layout", type: "nominal", sort, title: null, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const tooltip = tips([["layout", "layout"], ["value", "measured"], ...isSpeed ? [["low", "from"], ["high", "to"]] : [], ["said", "predicted"], ["from", "predicted, from"], ["to", "predicted, to"],
      ["starts", "starts"], ["runs", "runs"], ...isSpeed ? [["standing", "against the best mean"], ["percent_of_bound", "% of bound"], ["bound", "bound"], ["bound_source", "bound from"]] : []]);
    const height = bandHeight(rows.length, short ? 50 : 40, short ? 210 : 320), step = height / Math.max(1, rows.length);
    const below = short ? Math.min(14, .32 * step) : 0;
    return {
      description: `${FIGURES[name][0]} of each layout, as measured${short ? " and as predicted" : ""}`, height, data: { values },
      padding: { right: 8, left: 4, top: 8, bottom: 4 }, encoding: { y, tooltip },
      layer: [
        { mark: { type: "bar", height: Math.min(18, .42 * step) }, encoding: { x: { ...x, field: "value" }, color: layoutColour } },
        ...isSpeed ? [{ transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", clip: true, stroke: "var(--interval)", strokeWidth: Math.min(8, .2 * step), opacity: .9 },
          encoding: { x: { ...x, field: "low" }, x2: { field: "high" } } }] : [],
        { transform: [{ filter: "isValid(datum.from)" }], mark: { type: "rule", clip: true, yOffset: below, stroke: "var(--ink-2)", strokeWidth: 1.6 }, encoding: { x: { ...x, field: "from" }, x2: { field: "to" } } },
        { transform: [{ filter: "isValid(datum.said)" }], mark: { type: "point", clip: true, shape: "diamond", size: Math.min(60, 1.6 * step), yOffset: below, stroke: "var(--ink-2)", fill: "var(--page)", strokeWidth: 1.6, opacity: 1 },
          encoding: { x: { ...x, field: "said" } } },
        ...isSpeed ? [{ transform: [{ filter: `isValid(datum.bound) && datum.bound <= ${end}` }], mark: { type: "tick", thickness: 2, size: Math.min(26, .62 * step), color: "var(--ink)", opacity: 1 }, encoding: { x: { ...x, field: "bound" } } }] : [],
        { mark: { type: "text", align: "left", dx: 10, fontWeight: 600 }, encoding: { x: { ...x, datum: end }, text: { field: "label" } } },
      ],
    };
  }

  charts.concurrency = {
    rows: ({ take }) => take(data.cells, true).filter((row) => row.throughput != null).map((row) => ({
      ...named(row), tokens_per_second: row.throughput, low: row.low, high: row.high, best_run: row.best, starts: row.starts, runs: row.runs, in_best_set: row.in_best_set,
    })),
    key: layoutKey,
    note: (rows) => !rows.length ? "" : rows.some((row) => row.low != null) ? "Strokes at the points: 95% interval of the mean." : "One start each, so there is no interval to draw.",
    panels: (rows, width) => [{ spec: curves(rows, width) }],
  };

  function curves(rows, width) {
    const values = [...new Set(rows.map((row) => row.concurrency))].sort((a, b) => a - b);
    const height = tall(width, 380), top = 1.04 * maximum(rows, "tokens_per_second", "high"), isWide = width >= 560;
    const measured = rows.map((row) => ({ ...row, standing: standing(row) })), names = present(measured);
    const ends = names.map((name) => measured.filter((row) => row.layout === name).reduce((a, b) => b.concurrency > a.concurrency ? b : a));
    const places = spread(ends.map((row) => row.tokens_per_second / top * height), 15);
    const labels = ends.map((row, i) => ({ ...row, place: places[i] / height * top }));
    const aside = (name) => (isWide ? 7 : 2) * (names.indexOf(name) - (names.length - 1) / 2); // px, so that intervals at one x stay apart
    const x = {
      field: "concurrency", type: "quantitative", title: "requests in flight",
      scale: { type: "log", base: 2, domain: [values[0], values[values.length - 1]], nice: false, padding: isWide ? 4 * names.length : 10 },
      axis: { values, format: "d", labelOverlap: "greedy", grid: true },
    };
    const y = { field: "tokens_per_second", type: "quantitative", title: "tokens per second", scale: { domain: [0, top], nice: false }, axis: { tickCount: 6 } };
    const tooltip = tips([["layout", "layout"], ["concurrency", "requests in flight"], ["tokens_per_second", "tokens/s"], ["low", "from"], ["high", "to"],
      ["starts", "starts"], ["runs", "runs"], ["standing", "against the best mean"]]);
    return {
      description: "Throughput in tokens per second against concurrency, a line per layout", height, padding: { right: isWide ? labelRoom(names) : 12, left: 4, top: 8, bottom: 4 },
      data: { values: measured }, encoding: { x },
      layer: [
        ...names.map((name) => ({
          transform: [{ filter: { field: "layout", equal: name } }, { filter: "isValid(datum.low)" }],
          mark: { type: "rule", clip: true, xOffset: aside(name), stroke: colour[name], strokeWidth: 6, opacity: .38 },
          encoding: { y: { ...y, field: "low" }, y2: { field: "high" } },
        })),
        { mark: { type: "line", strokeWidth: 2 }, encoding: { y, ...layoutLine } },
        { mark: { type: "point", size: 70, strokeWidth: 1.8, opacity: 1 }, encoding: { y, ...layoutPoint, tooltip } },
        ...isWide ? [{ data: { values: labels }, mark: { type: "text", align: "left", dx: 12 + 4 * names.length, fontWeight: 600, fontSize: 13 },
          encoding: { y: { ...y, field: "place" }, text: { field: "layout" }, color: layoutColour } }] : [],
      ],
    };
  }

  charts.tradeoff = {
    rows: ({ take }) => groups(take(data.cells, true).filter((row) => row.per_user != null && row.per_gpu != null)).flatMap(withFront),
    key: (rows) => [...layoutKey(rows), ["worth choosing", stroke("var(--front)", "", 9)]],
    note: (rows) => !rows.length ? "" : "The broad line is that of the layouts shown. "
      + (labelled(rows, plotWidth).length ? `Numbers: requests in flight${labelled(rows, plotWidth).length < rows.length ? ", of the points worth choosing: there is no room for all." : "."}`
        : "Point at a mark for its layout and requests in flight: there is no room for their numbers."),
    panels: (rows, width) => [{ spec: tradeoff(rows, width) }],
  };

  /** Rows of one experiment and scenario together: only these can be set against each other. */
  function groups(rows) {
    const found = new Map();
    for (const row of rows) {
      const key = JSON.stringify([row.experiment, row.scenario]);
      found.set(key, [...(found.get(key) || []), row]);
    }
    return [...found.values()];
  }

  /** The points, and whether no other of them is as good in one and better in the other. */
  function withFront(rows) {
    const best = new Set();
    let most = -Infinity;
    for (const row of [...rows].sort((a, b) => b.per_user - a.per_user || b.per_gpu - a.per_gpu)) {
      if (row.per_gpu > most) { best.add(row); most = row.per_gpu; }
    }
    return rows.map((row) => ({
      ...named(row), tokens_per_second_per_user: row.per_user, tokens_per_second_per_gpu: row.per_gpu, on_front: best.has(row),
    }));
  }

  /** Where the points lie in px, and the ends of both scales. */
  function tradeoffBox(rows, width) {
    const height = tall(width, 420), box = { width: width - 80, height };
    const xEnd = 1.1 * maximum(rows, "tokens_per_second_per_user"), yEnd = 1.1 * maximum(rows, "tokens_per_second_per_gpu");
    const at = (row) => [row.tokens_per_second_per_user / xEnd * box.width, (1 - row.tokens_per_second_per_gpu / yEnd) * height];
    return { box, xEnd, yEnd, at };
  }

  /** A label at every point; where there is no room for one of them, at those on the front; or none at all. The note
      and the drawing ask for the same ones. */
  let told = {};
  function labelled(rows, width) {
    if (told.rows !== rows || told.width !== width) {
      const all = labelsOf(rows, rows, width);
      told = { rows, width, labels: all.length ? all : labelsOf(rows, rows.filter((row) => row.on_front), width) };
    }
    return told.labels;
  }

  function labelsOf(rows, named, width) {
    const { box, at } = tradeoffBox(rows, width), taken = rows.map(at).map(([x, y]) => [x - 6, y - 6, x + 6, y + 6]);
    const meets = (a) => a[0] < 0 || a[1] < 0 || a[2] > box.width || a[3] > box.height
      || taken.some((b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]);
    const out = [];
    for (const row of named) {
      const text = String(row.concurrency), wide = 7.2 * text.length, [px, py] = at(row);
      const spots = [[7, -19], [7, 5], [-7 - wide, -19], [-7 - wide, 5], [9, -7], [-9 - wide, -7], [-wide / 2, -22], [-wide / 2, 8]];
      const spot = spots.map(([dx, dy]) => [px + dx, py + dy, px + dx + wide, py + dy + 14]).find((area) => !meets(area));
      if (!spot) return [];
      taken.push(spot);
      out.push({ layout: row.layout, on_front: row.on_front, text, x: spot[0], y: (spot[1] + spot[3]) / 2 });
    }
    return out;
  }

  function tradeoff(rows, width) {
    const axis = { grid: true, tickCount: 6 }, { box, xEnd, yEnd } = tradeoffBox(rows, width);
    const labels = labelled(rows, width).map((label) => ({ ...label, x: label.x / box.width * xEnd, y: (1 - label.y / box.height) * yEnd }));
    const x = { field: "tokens_per_second_per_user", type: "quantitative", title: width < 560 ? "tokens/s for one user (1000 / median TPOT)" : "tokens per second for one user (1000 / median TPOT in ms)",
      axis, scale: { domain: [0, xEnd], nice: false } };
    const y = { field: "tokens_per_second_per_gpu", type: "quantitative", title: "tokens per second and GPU",
      axis, scale: { domain: [0, yEnd], nice: false } };
    const opacity = { condition: { test: "datum.on_front", value: 1 }, value: .45 };
    return {
      description: "Tokens per second per user against tokens per second per GPU, with the Pareto front", height: box.height,
      padding: { right: 12, left: 4, top: 8, bottom: 4 }, data: { values: rows }, encoding: { x, y },
      layer: [
        { transform: [{ filter: "datum.on_front" }], mark: { type: "line", interpolate: "linear", stroke: "var(--front)", strokeWidth: 9, strokeCap: "round", strokeJoin: "round" },
          encoding: { order: { field: "tokens_per_second_per_user" } } },
        { mark: { type: "line", strokeWidth: 1.2, opacity: .6 }, encoding: { ...layoutLine, order: { field: "concurrency" } } },
        { mark: { type: "point", size: 90, strokeWidth: 1.8 }, encoding: { ...layoutPoint, opacity,
          tooltip: tips([["layout", "layout"], ["concurrency", "requests in flight"], ["tokens_per_second_per_user", "tokens/s/user"],
            ["tokens_per_second_per_gpu", "tokens/s/GPU"], ["on_front", "on the front"]]) } },
        { data: { values: labels }, mark: { type: "text", align: "left", baseline: "middle" },
          encoding: { x: { ...x, field: "x" }, y: { ...y, field: "y" }, text: { field: "text" }, color: layoutColour } },
      ],
    };
  }

  // Part of the cost -> its name and colour. A phase that is not taken apart is a part of its own.
  const COSTS = {
    weights: ["streaming weights", "weights"], kv: ["keys and values", "kv"], arithmetic: ["arithmetic", "arithmetic"], rest: ["rest of compute", "rest"],
    compute: ["compute", "compute"], fused: ["fused kernels", "fused"], transfer: ["exposed transfer", "transfer"], wait: ["exposed wait", "wait"],
    bubble: ["bubble", "bubble"], ramp: ["ramp", "ramp"], launch_gap: ["launch gap", "gap"], decode: ["decode, not taken apart", "decode"],
    prefill: ["prefill, not taken apart", "prefill"], uncut: ["not taken apart", "decode"], outside: ["outside of steps", "outside"],
  };
  charts.cost = {
    rows: ({ take }) => take(data.cost).map((row) => ({
      ...named(row), unit: row.unit, device_ms_per_token: row.total, ...Object.fromEntries(Object.keys(COSTS).map((part) => [`${part}_ms`, row.parts[part] ?? null])),
      run_comm_exposed_pct: row.comm, run_bubble_pct: row.bubble, rates: row.source, reasons: row.reasons.join("; "), parts: row.parts,
    })),
    hidden: ["parts"],
    key: (rows) => [...costsOf(rows).map((part) => [COSTS[part][0], box(`var(--${COSTS[part][1]})`)]), ["measured total", `<path d="M13 0V14" stroke="var(--ink)" stroke-width="3"/>`]],
    note(rows) {
      if (!rows.length) return "";
      const sources = [...new Set(rows.map((row) => row.rates).filter(Boolean))].map((name) => SOURCES[name] || name);
      return `At ${load()}, mean over starts. `
        + (sources.length ? `Weights, keys and values and arithmetic: ${sources.join(" or ")}. ` : "No rate of these devices is known, so compute is one part. ")
        + rows.filter((row) => row.reasons).map((row) => `${row.layout}: ${row.reasons}. `).join("");
    },
    panels: (rows, width) => [{ spec: costBars(rows, width) }],
    table: (rows) => [
      ["layout", `${rows[0].unit} per token`, ...costsOf(rows).map((part) => COSTS[part][0]), "communication exposed, % of the run", "bubble, % of the run"],
      ...order.flatMap((name) => rows.filter((row) => row.layout === name)).map((row) => [
        row.layout, precise(row.device_ms_per_token), ...costsOf(rows).map((part) => precise(row.parts[part])), fixed(row.run_comm_exposed_pct), fixed(row.run_bubble_pct),
      ]),
    ],
  };
  const costsOf = (rows) => Object.keys(COSTS).filter((part) => rows.some((row) => row.parts[part] != null && (row.parts[part] !== 0 || !["ramp", "fused"].includes(part))));

  /** Parts above zero one after another to the right of it, those below zero to the left; a tick at the total. */
  function costBars(rows, width) {
    const names = costsOf(rows), unit = `${rows[0].unit} per token`;
    const values = rows.flatMap((row) => {
      let right = 0, left = 0;
      return names.filter((part) => row.parts[part]).map((part) => {
        const ms = row.parts[part], from = ms < 0 ? left : right, to = from + ms;
        if (ms < 0) left = to; else right = to;
        return { layout: row.layout, key: part, part: COSTS[part][0], ms, total: row.device_ms_per_token, percent: 100 * ms / row.device_ms_per_token, from, to, middle: (from + to) / 2 };
      });
    });
    const end = maximum([...values, ...rows], "to", "device_ms_per_token"), start = -maximum(values.map((one) => ({ below: -one.to })), "below");
    const labels = values.filter((one) => Math.abs(one.ms) / (end - start) * (width - 190) >= 40).map((one) => ({ ...one, label: precise(one.ms) }));
    const ends = rows.map((row) => ({
      layout: row.layout, total: row.device_ms_per_token, label: `${precise(row.device_ms_per_token)} ${row.unit}`,
      to: Math.max(row.device_ms_per_token, ...values.filter((one) => one.layout === row.layout).map((one) => one.to)),
    }));
    const x = { field: "from", type: "quantitative", title: unit, scale: { domain: [start, end], nice: false }, axis: { grid: false, tickCount: 8 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, scale: { paddingInner: .35, paddingOuter: .1 }, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const fill = (suffix) => ({ field: "key", type: "nominal", legend: null, scale: { domain: names, range: names.map((part) => `var(--${COSTS[part][1]}${suffix})`) } });
    return {
      description: `${unit} under each layout, cut into parts`, height: bandHeight(present(rows).length, 46), data: { values }, encoding: { y },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      resolve: { scale: { color: "independent" } },
      layer: [
        { mark: { type: "bar", stroke: "var(--page)", strokeWidth: 1 }, encoding: { x, x2: { field: "to" }, color: fill(""),
          tooltip: tips([["layout", "layout"], ["part", "part"], ["ms", unit], ["percent", "% of the total"], ["total", "total"]]) } },
        { data: { values: labels }, mark: { type: "text", fontSize: 12 }, encoding: { x: { ...x, field: "middle" }, text: { field: "label" }, color: fill("-ink") } },
        ...(start < 0 ? [{ data: { values: [{ zero: 0 }] }, mark: { type: "rule", strokeWidth: 1 }, encoding: { x: { ...x, field: "zero" }, y: null } }] : []),
        { data: { values: ends }, mark: { type: "tick", thickness: 3, size: 34, color: "var(--ink)" }, encoding: { x: { ...x, field: "total" } } },
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 8, fontWeight: 600 }, encoding: { x: { ...x, field: "to" }, text: { field: "label" } } },
      ],
    };
  }

  charts.step = {
    rows: ({ take, phases }) => take(data.cells).flatMap((row) => phases().filter((phase) => row.parts[phase]).map((phase) => ({
      ...named(row), phase, step_ms: row.step_ms[phase] ?? null,
      ...(phase === "decode" ? { micro_batches: row.micro_batches, token_to_token_ms: row.token_ms, timed_token_to_token_ms: row.timed_ms } : {}),
      ...Object.fromEntries(Object.entries(row.parts[phase]).flatMap(([part, percent]) => [[`${part}_pct`, percent], [`${part}_pct_worst`, row.worst[phase][part]]])),
      ...row.comm[phase], parts: row.parts[phase], worst: row.worst[phase],
    }))),
    hidden: ["parts", "worst"],
    key: (rows) => partsOf(rows).map((part) => [PARTS[part][0], box(`var(--${PARTS[part][1]})`)]),
    note(rows) {
      const untaken = without(rows, "not taken apart; the reason is below the comparison");
      if (!rows.length) return untaken;
      const where = `${state.phase === "decode" ? "Decode" : "Prefill"} at ${load()}`;
      return `${sentence()} ${untaken}`;
      function sentence() { return state.phase === "prefill" ? `${where}: a pass reads as many tokens as fit, not as many under each layout, so that only its shares can be compared.`
        : inTime(rows) ? `${where}; to the right, milliseconds from a token to the next.` : `${where}. Shares alone: how long a step took is not known of every layout.`; }
    },
    panels: (rows, width) => [{ spec: stacked(rows, width) }],
    table: (rows) => [
      ["layout", ...state.phase === "decode" ? ["from token to token, ms", "the same, timed, ms", "micro-batches"] : ["a pass, ms"],
        ...partsOf(rows).map((part) => `${PARTS[part][0]}, %`), ...Object.values(SHARES).flatMap((name) => [`${name}, %`, "worst rank, %"])],
      ...order.flatMap((name) => rows.filter((row) => row.layout === name)).map((row) => [
        row.layout, ...state.phase === "decode" ? [fixed(row.token_to_token_ms), fixed(row.timed_token_to_token_ms), number(row.micro_batches)] : [fixed(row.step_ms)],
        ...partsOf(rows).map((part) => fixed(row.parts[part])),
        ...Object.keys(SHARES).flatMap((name) => [fixed(row[`${name}_pct`]), fixed(row[`${name}_pct_worst`])]),
      ]),
    ],
  };
  const partsOf = (rows) => PART_ORDER.filter((part) => rows.some((row) => part === "fused" ? row.parts[part] : row.parts[part] != null));
  const inTime = (rows) => rows.every((row) => row.token_to_token_ms != null);

  /** Bars of milliseconds where these can be compared, else of percent. */
  function stacked(rows, width) {
    const parts = partsOf(rows), timed = inTime(rows);
    const end = timed ? maximum(rows, "token_to_token_ms") : 100;
    const values = rows.flatMap((row) => {
      let from = 0;
      const scale = timed ? row.token_to_token_ms / 100 : 1;
      return parts.filter((part) => row.parts[part] != null).map((part) => {
        const percent = row.parts[part], length = percent * scale, start = from;
        from += length;
        return {
          layout: row.layout, key: part, part: PARTS[part][0], percent, worst: row.worst[part], step_ms: row.step_ms, ms: timed ? length : null,
          token_ms: timed ? row.token_to_token_ms : null, from: start, to: from, middle: start + length / 2,
          label: length / end * (width - 160) >= 42 ? `${fixed(percent)}%` : "",
        };
      });
    });
    const ends = timed ? rows.map((row) => ({ layout: row.layout, to: row.token_to_token_ms, label: `${number(row.token_to_token_ms)} ms` })) : [];
    const x = { field: "from", type: "quantitative", title: timed ? width < 560 ? "ms from one token to its next" : "milliseconds from one token of a request to its next" : "% of the step",
      scale: { domain: [0, end], nice: false, clamp: true }, axis: { grid: false, tickCount: timed ? 8 : 5 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, scale: { paddingInner: .35, paddingOuter: .1 }, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const fill = (suffix) => ({ field: "key", type: "nominal", legend: null, scale: { domain: parts, range: parts.map((part) => `var(--${PARTS[part][1]}${suffix})`) } });
    return {
      description: "The step of each layout cut into its parts", height: bandHeight(present(rows).length, 46), data: { values }, encoding: { y },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      resolve: { scale: { color: "independent" } },
      layer: [
        { mark: { type: "bar", stroke: "var(--page)", strokeWidth: 1 }, encoding: { x, x2: { field: "to" }, color: fill(""),
          tooltip: tips([["layout", "layout"], ["part", "part"], ["percent", "% of the step"], ["worst", "worst rank, %"], ["ms", "ms"],
            ["token_ms", "token to token, ms"], ["step_ms", "a step of a rank, ms"]]) } },
        { mark: { type: "text", fontSize: 12 }, encoding: { x: { ...x, field: "middle" }, text: { field: "label" }, color: fill("-ink") } },
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 8, fontWeight: 600 }, encoding: { x: { ...x, field: "to" }, text: { field: "label" } } },
      ],
    };
  }

  charts.timeline = {
    rows: ({ take }) => take(data.timeline).flatMap((cell) => cell.bars.map(([rank, step, kind, start, length]) => ({
      ...named(cell), rank, step, kind: cell.kinds[kind], start_us: start, end_us: start + length,
    }))),
    key: (rows) => [
      ...kindsOf(rows).map((kind) => [(KINDS[kind] || kind).replaceAll("_", "-"), box(`var(--${KINDS[kind] || "other"})`)]),
      ["idle", box("var(--idle)")], ["not recorded", stroke("var(--ink-3)", "1 4", 1.5)],
    ],
    note: (rows) => {
      if (!rows.length) return "";
      const us = stretch();
      return `At ${load()}, the same ${fixed(us / 1e3)} ms of each layout. ${without(rows, "no calls were kept")}`
        + (chosen(data.timeline).some((cell) => tooClose(cell, us)) ? "Calls too close to be told apart blend into one colour; show less of it to see each." : "");
    },
    panels: (rows, width) => [{ spec: gantt(rows, width) }],
  };

  const kindsOf = (rows) => [...new Set(rows.map((row) => row.kind))].sort((a, b) => Object.keys(KINDS).indexOf(a) - Object.keys(KINDS).indexOf(b));

  /** How long the stretch is that is drawn, in us: that of all layouts of a load. */
  const stretch = () => Number(state.zoom) * maximum(chosen(data.timeline), "length");

  /** Whether most bars of a layout are narrower than a pixel or so. us: how long the stretch is. */
  function tooClose(cell, us) {
    const short = cell.bars.filter(([, , , , length]) => length < us / 600).length;
    return short > cell.bars.length / 3;
  }

  /** A row per rank. What was recorded of it is idle where nothing ran; nothing is known of what lies outside. */
  function gantt(rows, width) {
    const end = stretch() / 1e3, kinds = kindsOf(rows), cells = chosen(data.timeline);
    const rowOf = (layout, rank) => `${layout} · rank ${rank}`;
    const within = (one) => ({ ...one, start: Math.max(0, one.start), end: Math.min(end, one.end) });
    const recorded = cells.flatMap((cell) => cell.recorded.map(([rank, from, to]) => ({ row: rowOf(cell.layout, rank), kind: "idle", start: from / 1e3, end: to / 1e3 })));
    const values = rows.map((row) => ({ ...row, row: rowOf(row.layout, row.rank), start: row.start_us / 1e3, end: row.end_us / 1e3, us: row.end_us - row.start_us }));
    const sort = order.flatMap((layout) => cells.filter((cell) => cell.layout === layout).flatMap((cell) => [...new Set(cell.recorded.map(([rank]) => rowOf(layout, rank)))]));
    const shown = (bars) => ({ values: bars.filter((one) => one.start < end).map(within) });
    const x = { field: "start", type: "quantitative", title: width < 560 ? "ms" : "milliseconds from where the stretch of each layout begins", scale: { domain: [0, end], nice: false }, axis: { grid: true, tickCount: 8 } };
    return {
      description: "What each rank does over a few steps", height: rowHeight(sort.length), data: shown(values),
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      encoding: { y: { field: "row", type: "nominal", sort, title: null, scale: { domain: sort, paddingInner: .3, paddingOuter: .1 }, axis: { labelColor: "var(--ink)", labelLimit: 260 } } },
      layer: [
        { data: { values: sort.map((row) => ({ row, start: 0, end })) }, mark: { type: "rule", stroke: "var(--ink-3)", strokeDash: [1, 4], strokeWidth: 1.5 }, encoding: { x, x2: { field: "end" } } },
        { data: shown(recorded), mark: { type: "bar", color: "var(--idle)" }, encoding: { x, x2: { field: "end" }, tooltip: tips([["row", "rank"], ["kind", "kind"]]) } },
        { mark: { type: "bar" }, encoding: { x, x2: { field: "end" },
          color: { field: "kind", type: "nominal", legend: null, scale: { domain: kinds, range: kinds.map((kind) => `var(--${KINDS[kind] || "other"})`) } },
          tooltip: tips([["row", "rank"], ["kind", "kind"], ["step", "step"], ["start", "from, ms"], ["us", "length, µs"]]) } },
      ],
    };
  }

  charts.latencies = {
    rows: ({ take }) => take(data.latencies).flatMap((row) => row.q.map((ms, percentile) => ({
      ...named(row), latency: row.metric, percentile, ms, requests: row.requests,
    }))),
    columns: "three",
    key: (rows) => state.latency === "bars" ? [] : layoutKey(rows),
    note: (rows) => rows.length ? `At ${load()}, requests of all runs together. ${without(rows, "no request was kept")}` : "",
    panels: (rows, width) => Object.keys(LATENCIES).filter((name) => rows.some((row) => row.latency === name)).map((name) => ({
      title: LATENCIES[name],
      spec: (state.latency === "bars" ? spreads : shares)(rows.filter((row) => row.latency === name), width),
    })),
  };

  function spreads(rows) {
    const names = present(rows);
    const values = names.map((layout) => {
      const at = (percentile) => rows.find((row) => row.layout === layout && row.percentile === percentile).ms;
      return { layout, p1: at(1), p25: at(25), p50: at(50), p75: at(75), p99: at(99), label: `${fixed(at(50))} ms`, requests: rows.find((row) => row.layout === layout).requests };
    });
    const x = { field: "p50", type: "quantitative", title: "ms", scale: { domain: [0, 1.25 * maximum(values, "p99")], nice: false }, axis: { grid: true, tickCount: 4 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, axis: { labelColor: "var(--ink)", labelFontSize: 13 } };
    const tooltip = tips([["layout", "layout"], ["p50", "median, ms"], ["p25", "25%, ms"], ["p75", "75%, ms"], ["p99", "99%, ms"], ["requests", "requests"]]);
    const height = bandHeight(names.length, 46, 210), step = height / names.length;
    return {
      description: "Latency by layout: median, quartiles and 1st to 99th percentile", height, data: { values }, encoding: { y, tooltip },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      layer: [
        { mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { ...x, field: "p1" }, x2: { field: "p99" }, color: layoutColour } },
        { mark: { type: "rule", strokeWidth: Math.min(11, .24 * step), opacity: .55 }, encoding: { x: { ...x, field: "p25" }, x2: { field: "p75" }, color: layoutColour } },
        { mark: { type: "tick", thickness: 3, height: Math.min(18, .42 * step) }, encoding: { x, color: layoutColour } },
        { mark: { type: "text", dy: -Math.min(16, .42 * step), fontSize: step < 32 ? 10 : 12 }, encoding: { x, text: { field: "label" } } },
      ],
    };
  }

  function shares(rows) {
    const x = { field: "ms", type: "quantitative", title: "ms", scale: { zero: true, nice: false }, axis: { grid: true, tickCount: 4 } };
    const y = { field: "percentile", type: "quantitative", title: "% of requests", axis: { tickCount: 5 } };
    return {
      description: "Share of requests served within a latency, a line per layout", height: 240, data: { values: rows }, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      layer: [
        { mark: { type: "line", strokeWidth: 2, interpolate: "step-after" }, encoding: { x, y, ...layoutLine, order: { field: "percentile" } } },
        shapesOf(rows, { x, y }),
      ],
    };
  }

  const HELD = { weight: ["weights", "weights"], kv: ["KV cache", "kv"], rest: ["the rest of the peak", "gap"], whole: ["a peak that is not taken apart", "outside"] };
  charts.memory = {
    rows: ({ take }) => take(data.memory).map((row) => ({
      ...named(row), rank: row.rank, weights_gb: row.weight, kv_gb: row.kv, rest_gb: row.rest, peak_gb: row.peak,
    })),
    key: () => [
      ...held().map((name) => [HELD[name][0], box(`var(--${HELD[name][1]})`)]),
      ...data.capacity_gb ? [[`the ${number(data.capacity_gb)} GB of a GPU`, stroke("var(--ink-2)", "5 4", 1.5)]] : [],
    ],
    note: (rows) => !rows.length ? "" : `At ${load()}. ${without(rows, "its memory was not measured")}` + (held().includes("whole") && held().length > 1 ? "A peak is not taken apart where the engine reports more weights and KV cache than the rank ever held, or neither." : ""),
    panels: () => [{ spec: heldBars(chosen(data.memory)) }],
  };
  /** What a rank held, as parts of its peak: they end at it. */
  const partsHeld = (row) => row.weight == null && row.kv == null ? { whole: row.peak } : { weight: row.weight, kv: row.kv, rest: row.rest };
  const held = () => Object.keys(HELD).filter((name) => chosen(data.memory).some((row) => partsHeld(row)[name]));

  function heldBars(rows) {
    const names = held();
    const values = rows.flatMap((row) => {
      let from = 0;
      return Object.entries(partsHeld(row)).filter(([, gb]) => gb).map(([name, gb]) => ({
        row: `${row.layout} · rank ${row.rank}`, name, what: HELD[name][0], from, to: (from += gb), gb, peak: row.peak,
      }));
    });
    const sort = order.flatMap((layout) => rows.filter((row) => row.layout === layout).map((row) => `${layout} · rank ${row.rank}`));
    const ends = rows.map((row) => ({ row: `${row.layout} · rank ${row.rank}`, label: `${fixed(row.peak)} GB` })), end = 1.02 * Math.max(data.capacity_gb || 0, maximum(rows, "peak"));
    const x = { field: "from", type: "quantitative", title: "GB", scale: { domain: [0, end], nice: false }, axis: { grid: true, tickCount: 6 } };
    return {
      description: "Peak memory of each rank", height: rowHeight(sort.length), data: { values },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      encoding: { y: { field: "row", type: "nominal", sort, title: null, scale: { paddingInner: .35, paddingOuter: .1 }, axis: { labelColor: "var(--ink)", labelLimit: 260 } } },
      layer: [
        { mark: "bar", encoding: { x, x2: { field: "to" }, color: { field: "name", type: "nominal", legend: null, scale: { domain: names, range: names.map((name) => `var(--${HELD[name][1]})`) } },
          tooltip: tips([["row", "rank"], ["what", "held by"], ["gb", "GB"], ["peak", "peak, GB"]]) } },
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 8 }, encoding: { x: { ...x, field: undefined, datum: end }, text: { field: "label" } } },
        ...(data.capacity_gb ? [{ data: { values: [{ gb: data.capacity_gb }] }, mark: { type: "rule", strokeDash: [5, 4] }, encoding: { x: { ...x, field: "gb" }, y: null } }] : []),
      ],
    };
  }

  charts.telemetry = {
    rows: ({ take }) => take(data.telemetry).flatMap((row) => row.s.map((second, i) => ({
      ...named(row), gauge: row.gauge, unit: row.unit, second, mean: row.mean[i], low: row.low[i], high: row.high[i],
    }))),
    columns: "two",
    key: layoutKey,
    note: (rows) => rows.length ? `At ${load()}, one run of each layout. ${without(rows, "no samples were kept")}` : "",
    panels: (rows) => [...new Set(rows.map((row) => row.gauge))].map((gauge) => over_time(gauge, rows.filter((row) => row.gauge === gauge))),
  };

  function over_time(gauge, rows) {
    const x = { field: "second", type: "quantitative", title: "seconds", scale: { nice: false }, axis: { tickCount: 6 } };
    const y = { field: "mean", type: "quantitative", title: rows[0].unit, axis: { tickCount: 4 }, scale: { zero: true } };
    return { title: gauge, spec: {
      description: `${gauge} over the time of a run, a line per layout`, height: paper ? 130 : 180, data: { values: rows }, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      encoding: { x, color: layoutColour },
      layer: [
        { mark: { type: "area", opacity: .12 }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
        { mark: { type: "line", strokeWidth: 1.8 }, encoding: { y, strokeDash: layoutDash, tooltip: tips([["layout", "layout"], ["second", "second"], ["mean", "mean"], ["low", "least"], ["high", "greatest"]]) } },
        shapesOf(rows, { y }),
      ],
    } };
  }

  // -- drawing -------------------------------------------------------------------------------------------------

  const chartOf = (id) => document.querySelector(`[data-chart="${id}"]`);
  const onPage = () => Object.keys(charts).filter(chartOf);
  const drawn = {};
  const PAPER = 690, COLUMNS = { two: 2, three: 3 }; // px between the margins of A4
  let paper = 0, plotWidth = 0;

  function draw(id) {
    const chart = charts[id];
    if (!chart) return;
    const target = chartOf(id);
    const rows = chart.rows(CHOSEN);
    plotWidth = paper || target.clientWidth;
    (drawn[id] || []).forEach((view) => view.finalize());
    drawn[id] = [];
    target.replaceChildren();
    const asked = typeof chart.columns === "function" ? chart.columns(rows) : chart.columns;
    const columns = paper && asked === "three" ? "two" : asked;
    target.className = `panels ${columns || ""}`;
    document.querySelector(`[data-note="${id}"]`).textContent = chart.note ? chart.note(rows) : "";
    const figures = document.querySelector(`[data-figures="${id}"]`);
    figures.replaceChildren(...chart.table && rows.length ? [tableOf(chart.table(rows))] : []);
    page.ready(figures);
    if (!rows.length) {
      target.className = "panels";
      target.append(element("p", "empty", "Nothing was recorded for this choice."));
      return;
    }
    if (chart.key) target.append(legend(chart.key(rows)));
    for (const { title, spec } of chart.panels(rows, plotWidth)) {
      const panel = target.appendChild(element("div", "panel"));
      if (title) panel.append(element("h3", "", title));
      drawn[id].push(embed(panel.appendChild(element("div", "plot")), spec, paper && paper / (COLUMNS[columns] || 1) - 20));
    }
    target.dataset.drawn = rows.length;
  }

  /** Those in sight at once, the others one by one while the page is idle. */
  let waiting = [];
  function drawAll() {
    narrow();
    const near = (id) => {
      const { top, bottom } = document.getElementById(id).getBoundingClientRect();
      return bottom > -200 && top < innerHeight + 200;
    };
    const ids = onPage();
    waiting = ids.filter((id) => !near(id));
    ids.filter(near).forEach(draw);
    idle(next);
  }
  const idle = (task) => window.requestIdleCallback ? requestIdleCallback(task, { timeout: 200 }) : setTimeout(task, 10);
  function next() {
    if (waiting.length) { draw(waiting.shift()); idle(next); } else if (!document.body.dataset.ready) begun();
  }
  function print(on) {
    paper = on ? PAPER : 0;
    waiting = [];
    if (on) onPage().forEach(draw); else drawAll();
  }

  function begun() {
    page.arrive();
    document.body.dataset.ready = "yes";
  }

  /** The table and the sentences follow the choice. */
  function narrow() {
    const layouts = new Set(shown());
    for (const part of document.querySelectorAll("[data-experiment]")) {
      part.hidden = part.dataset.experiment !== state.experiment || part.dataset.scenario !== state.scenario;
    }
    for (const part of document.querySelectorAll("[data-concurrency].words, .at")) {
      part.hidden = Number(part.dataset.concurrency) !== state.concurrency || part.matches(".at") && part.hidden;
    }
    for (const row of document.querySelectorAll("tr[data-layout]")) row.hidden = !layouts.has(row.dataset.layout);
    for (const section of document.querySelectorAll(".listed")) section.hidden = !section.querySelector("tbody:not([hidden])");
    for (const table of document.querySelectorAll(".waits")) for (const part of [table.parentElement, table.parentElement.previousElementSibling, table.parentElement.previousElementSibling.previousElementSibling]) {
      part.hidden = !table.querySelector("tbody:not([hidden]) tr:not([hidden])");
    }
    const all = shown().filter((name) => data.cells.some((cell) => cell.experiment === state.experiment && cell.layout === name)).join(", ");
    document.getElementById("chosen").textContent = `${experiment().label} · ${scenario().label} · ${load()} · ${all}`;
    for (const id of ["cost", "timeline", "telemetry", "memory"]) document.getElementById(id).hidden = !data[id].length;
    for (const part of document.querySelectorAll("#concurrency, .sweeps")) part.hidden = scenario().concurrencies.length < 2;
    page.contents();
  }

  // -- downloads -----------------------------------------------------------------------------------------------

  /** What is shown of a chart or a table; everything there is with `whole`. */
  function csv(id, whole) {
    if (data.tables[id] && (whole || id !== "comparison")) return page.csv([data.tables[id].columns, ...data.tables[id].rows]);
    if (id === "comparison") return page.csv(page.rowsOf(document.querySelector("#comparison table"), { concurrency: (row) => row.parentElement.dataset.concurrency }));
    const hidden = new Set(charts[id].hidden);
    const rows = charts[id].rows(whole ? WHOLE : CHOSEN);
    const names = [...new Set(rows.flatMap(Object.keys))].filter((name) => !hidden.has(name));
    return page.csv([names, ...rows.map((row) => names.map((name) => row[name]))]);
  }

  // -- begin ---------------------------------------------------------------------------------------------------

  let width = innerWidth, timer = 0;
  const onWidth = () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  };
  for (const chip of document.querySelectorAll(".chip i")) chip.innerHTML = glyph(lookOf(chip.dataset.layout));
  page.ready();
  recall();
  fillAll();
  recallLocal();
  document.addEventListener("change", choose);
  document.querySelector(".bar").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", ({ target }) => {
    const { csv: table, all: whole, svg: picture } = target.dataset;
    if (table) page.save(`${table}.csv`, csv(table), "text/csv");
    if (whole) page.save(`${whole}-all.csv`, csv(whole, true), "text/csv");
    if (picture) page.save(`${picture}.svg`, svg(chartOf(picture)), "image/svg+xml");
  });
  window.addEventListener("resize", onWidth);
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  if (data.experiments.length) drawAll(); else begun();
  window.report = { csv, svg: (id) => svg(chartOf(id)), state }; // for tests
})();
