"use strict";
/* The page draws each chart from the data of its one JSON block, for what the selects and check boxes choose.
   Colours are CSS variables in the drawing itself, so light, dark and print need no second one. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { phase: "decode", zoom: "1", latency: "bars" };
  const colour = Object.fromEntries(data.layouts.map((l) => [l.name, `var(--layout-${l.colour})`]));
  const order = data.layouts.map((l) => l.name);
  const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
  const PARTS = {
    compute: ["compute", "compute"], exposed_transfer: ["exposed transfer", "transfer"], exposed_wait: ["exposed wait", "wait"],
    bubble: ["bubble", "bubble"], launch_gap: ["launch gap", "gap"],
    comm_exposed: ["exposed communication", "transfer"], rest: ["compute and gaps", "compute"],
  };
  const PART_ORDER = ["compute", "rest", "exposed_transfer", "exposed_wait", "comm_exposed", "bubble", "launch_gap"];
  const KINDS = {
    compute: "compute", all_reduce: "transfer", all_gather: "gather", reduce_scatter: "wait", send: "send", recv: "receive",
    broadcast: "bubble",
  };
  const LATENCIES = { ttft: "Time to first token (TTFT)", tpot: "Time per output token (TPOT)", e2el: "Whole request (E2EL)" };
  const CONFIG = {
    background: null, font: 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif',
    view: { stroke: null }, text: { fill: "var(--ink)", fontSize: 12 }, rule: { stroke: "var(--ink-2)" },
    axis: {
      labelColor: "var(--ink-2)", titleColor: "var(--ink-2)", gridColor: "var(--grid)", domainColor: "var(--line)",
      tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelPadding: 6, titlePadding: 10, labelFlush: false,
    },
    axisY: { domain: false, ticks: false }, axisX: { grid: false },
  };

  // -- what is chosen ------------------------------------------------------------------------------------------

  const select = (name) => document.querySelector(`select[name="${name}"]`);
  const shown = () => [...document.querySelectorAll('input[name="layout"]:checked')].map((box) => box.value);
  const experiment = () => data.experiments.find((e) => e.name === state.experiment);
  const scenario = () => experiment().scenarios.find((s) => s.name === state.scenario);

  /** Rows of the chosen model, scenario and layouts, and of the chosen concurrency unless `all`. */
  function chosen(rows, all = false) {
    const layouts = new Set(shown());
    return rows.filter((row) => row.experiment === state.experiment && row.scenario === state.scenario
      && layouts.has(row.layout) && (all || row.concurrency === state.concurrency));
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
    const local = event.target.closest("section");
    if (local) draw(local.id); else drawAll();
  }

  // -- numbers and colours -------------------------------------------------------------------------------------

  const number = (value) => value == null ? "–"
    : value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2 });
  const present = (rows) => order.filter((name) => rows.some((row) => row.layout === name));
  const layoutColour = { field: "layout", type: "nominal", legend: null, scale: { domain: order, range: order.map((n) => colour[n]) } };
  const layoutShape = {
    field: "layout", type: "nominal", legend: null, scale: { domain: order, range: order.map((_, i) => SHAPES[i % SHAPES.length]) },
  };
  const tips = (pairs) => pairs.map(([field, title]) => ({ field, title }));

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

  const maximum = (rows, ...fields) => Math.max(0, ...rows.flatMap((row) => fields.map((field) => row[field] || 0)));
  const bandHeight = (rows, step) => Math.max(1, rows) * step;
  const tall = (width, full) => paper || width < 560 ? 300 : full;
  const rowHeight = (rows) => rows * Math.max(16, Math.min(30, 1000 / rows));
  const labelRoom = (names) => 14 + 7.2 * Math.max(0, ...names.map((name) => name.length));

  // -- charts: rows are what is downloaded, panels what is drawn -----------------------------------------------

  const charts = {};

  charts.throughput = {
    rows: () => chosen(data.cells, true).filter((row) => row.throughput != null).map((row) => ({
      layout: row.layout, concurrency: row.concurrency, tokens_per_second: row.throughput, low: row.low, high: row.high,
      runs: row.runs,
    })),
    note: (rows) => rows.some((row) => row.low != null) ? "Grey: 95% interval of the mean." : "One run each, so there is no interval to draw.",
    panels: (rows, width) => [{ spec: new Set(rows.map((row) => row.concurrency)).size > 1 ? curves(rows, width) : bars(rows) }],
  };

  function curves(rows, width) {
    const values = [...new Set(rows.map((row) => row.concurrency))].sort((a, b) => a - b);
    const height = tall(width, 380);
    const top = maximum(rows, "tokens_per_second", "high") * 1.04;
    const ends = present(rows).map((name) => rows.filter((row) => row.layout === name).reduce((a, b) => b.concurrency > a.concurrency ? b : a));
    const places = spread(ends.map((row) => row.tokens_per_second / top * height), 15);
    const labels = ends.map((row, i) => ({ ...row, place: places[i] / height * top }));
    const x = {
      field: "concurrency", type: "quantitative", title: "requests in flight",
      scale: { type: "log", base: 2, domain: [values[0], values[values.length - 1]], nice: false },
      axis: { values, format: "d", labelOverlap: "greedy", grid: true },
    };
    const y = { field: "tokens_per_second", type: "quantitative", title: "tokens per second", scale: { domain: [0, top], nice: false }, axis: { tickCount: 6 } };
    const tooltip = tips([["layout", "layout"], ["concurrency", "requests in flight"], ["tokens_per_second", "tokens/s"],
      ["low", "from"], ["high", "to"], ["runs", "runs"]]);
    return {
      description: "Throughput in tokens per second against concurrency, a line per layout", height, padding: { right: labelRoom(order), left: 4, top: 8, bottom: 4 },
      data: { values: rows },
      encoding: { x },
      layer: [
        { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", stroke: "var(--interval)", strokeWidth: 16, opacity: .6 },
          encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
        { mark: { type: "line", strokeWidth: 2 }, encoding: { y, color: layoutColour } },
        { mark: { type: "point", filled: true, size: 70, opacity: 1 }, encoding: { y, color: layoutColour, shape: layoutShape, tooltip } },
        { data: { values: labels }, mark: { type: "text", align: "left", dx: 12, fontWeight: 600, fontSize: 13 },
          encoding: { y: { ...y, field: "place" }, text: { field: "layout" }, color: layoutColour } },
      ],
    };
  }

  function bars(rows) {
    const sort = [...rows].sort((a, b) => b.tokens_per_second - a.tokens_per_second).map((row) => row.layout);
    const x = { field: "tokens_per_second", type: "quantitative", title: "tokens per second", scale: { domainMin: 0, nice: true }, axis: { grid: true, tickCount: 6 } };
    const y = { field: "layout", type: "nominal", sort, title: null, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    return {
      description: "Throughput in tokens per second, a bar per layout", height: bandHeight(rows.length, 40), data: { values: rows },
      padding: { right: 60, left: 4, top: 8, bottom: 4 }, encoding: { y },
      layer: [
        { mark: { type: "bar", height: 20 }, encoding: { x, color: layoutColour,
          tooltip: tips([["layout", "layout"], ["tokens_per_second", "tokens/s"], ["low", "from"], ["high", "to"], ["runs", "runs"]]) } },
        { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", stroke: "var(--interval)", strokeWidth: 9, opacity: .9 },
          encoding: { x: { ...x, field: "low" }, x2: { field: "high" } } },
        { transform: [{ calculate: "max(datum.tokens_per_second, datum.high)", as: "end" }, { calculate: "format(datum.tokens_per_second, ',.3~r')", as: "label" }],
          mark: { type: "text", align: "left", dx: 8 }, encoding: { x: { ...x, field: "end" }, text: { field: "label" } } },
      ],
    };
  }

  charts.tradeoff = {
    rows: () => chosen(data.cells, true).filter((row) => row.per_user != null && row.per_gpu != null).map((row) => ({
      layout: row.layout, concurrency: row.concurrency, tokens_per_second_per_user: row.per_user, tokens_per_second_per_gpu: row.per_gpu,
      on_front: row.pareto,
    })),
    panels: (rows, width) => [{ spec: tradeoff(rows, width) }],
  };

  const FEW = 16; // points that can all be labelled
  function tradeoff(rows, width) {
    const axis = { grid: true, tickCount: 6 };
    const most = (layout) => Math.max(...rows.filter((row) => row.layout === layout).map((row) => row.concurrency));
    const labelled = rows.filter((row) => row.on_front || rows.length <= FEW || row.concurrency === most(row.layout))
      .map((row) => ({ ...row, label: `${row.layout} · ${row.concurrency}` }));
    const room = 1.1;
    const x = { field: "tokens_per_second_per_user", type: "quantitative", title: "tokens per second for one user (1000 / median TPOT in ms)",
      axis, scale: { domain: [0, room * maximum(rows, "tokens_per_second_per_user")], nice: false } };
    const y = { field: "tokens_per_second_per_gpu", type: "quantitative", title: "tokens per second and GPU",
      axis, scale: { domain: [0, room * maximum(rows, "tokens_per_second_per_gpu")], nice: false } };
    const opacity = { condition: { test: "datum.on_front", value: 1 }, value: .32 };
    return {
      description: "Tokens per second per user against tokens per second per GPU, with the Pareto front", height: tall(width, 420),
      padding: { right: 12, left: 4, top: 8, bottom: 4 }, data: { values: rows }, encoding: { x, y },
      layer: [
        { mark: { type: "line", strokeWidth: 1.5, opacity: .35 }, encoding: { color: layoutColour, order: { field: "concurrency" } } },
        { transform: [{ filter: "datum.on_front" }], mark: { type: "line", interpolate: "linear", strokeDash: [5, 4], stroke: "var(--ink-2)", strokeWidth: 1.5 },
          encoding: { order: { field: "tokens_per_second_per_user" } } },
        { mark: { type: "point", filled: true, size: 95 }, encoding: { color: layoutColour, shape: layoutShape, opacity,
          tooltip: tips([["layout", "layout"], ["concurrency", "requests in flight"], ["tokens_per_second_per_user", "tokens/s/user"],
            ["tokens_per_second_per_gpu", "tokens/s/GPU"], ["on_front", "on the front"]]) } },
        { data: { values: labelled }, mark: { type: "text", align: "left", baseline: "bottom", dx: 7, dy: -5 },
          encoding: { text: { field: "label" }, color: layoutColour, opacity: { condition: { test: "datum.on_front", value: 1 }, value: .55 } } },
      ],
    };
  }

  charts.step = {
    rows: () => chosen(data.cells).flatMap((row) => PART_ORDER.filter((part) => row.parts[state.phase] && row.parts[state.phase][part] != null)
      .map((part) => ({
        layout: row.layout, concurrency: row.concurrency, phase: state.phase, part: PARTS[part][0],
        percent: row.parts[state.phase][part], percent_of_worst_rank: row.worst[state.phase][part] ?? null, step_ms: row.step_ms[state.phase] ?? null, key: part,
      }))),
    hidden: ["key"],
    key: (rows) => PART_ORDER.filter((part) => rows.some((row) => row.key === part)).map((part) => [PARTS[part][0], `var(--${PARTS[part][1]})`]),
    note: (rows) => rows.length ? `${state.phase} at ${state.concurrency} concurrent${rows.some((row) => row.step_ms != null) ? "; to the right, how long a step takes" : ""}.` : "",
    panels: (rows, width) => [{ spec: stacked(rows, width) }],
  };

  function stacked(rows, width) {
    const parts = PART_ORDER.filter((part) => rows.some((row) => row.key === part));
    const start = {};
    const values = rows.map((row) => {
      const from = start[row.layout] || 0;
      start[row.layout] = from + row.percent;
      return { ...row, from, to: from + row.percent, middle: from + row.percent / 2, label: row.percent * width >= 4200 ? `${number(row.percent)}%` : "" };
    });
    const ends = present(rows).map((layout) => values.find((row) => row.layout === layout)).filter((row) => row.step_ms != null)
      .map((row) => ({ layout: row.layout, to: 100, label: `${number(row.step_ms)} ms` }));
    const x = { field: "from", type: "quantitative", title: "% of the step", scale: { domain: [0, 100], clamp: true }, axis: { grid: false, tickCount: 5 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, scale: { paddingInner: .35, paddingOuter: .1 }, axis: { labelFontSize: 13, labelColor: "var(--ink)" } };
    const fill = (suffix) => ({ field: "key", type: "nominal", legend: null, scale: { domain: parts, range: parts.map((part) => `var(--${PARTS[part][1]}${suffix})`) } });
    return {
      description: "The step of each layout cut into its parts, in percent", height: bandHeight(present(rows).length, 46), data: { values }, encoding: { y },
      padding: { right: ends.length ? 72 : 12, left: 4, top: 4, bottom: 4 },
      resolve: { scale: { color: "independent" } },
      layer: [
        { mark: { type: "bar", stroke: "var(--page)", strokeWidth: 1 }, encoding: { x, x2: { field: "to" }, color: fill(""),
          tooltip: tips([["layout", "layout"], ["part", "part"], ["percent", "% of the step"], ["percent_of_worst_rank", "worst rank, %"], ["step_ms", "step, ms"]]) } },
        { mark: { type: "text", fontSize: 12 }, encoding: { x: { ...x, field: "middle" }, text: { field: "label" }, color: fill("-ink") } },
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 8, fontWeight: 600 }, encoding: { x: { ...x, field: "to" }, text: { field: "label" } } },
      ],
    };
  }

  charts.timeline = {
    rows: () => chosen(data.timeline).flatMap((cell) => cell.bars.map(([rank, step, kind, start, length]) => ({
      layout: cell.layout, concurrency: cell.concurrency, rank, step, kind: cell.kinds[kind], start_us: start, end_us: start + length,
    }))),
    key: (rows) => [...new Set(rows.map((row) => row.kind))].sort((a, b) => Object.keys(KINDS).indexOf(a) - Object.keys(KINDS).indexOf(b))
      .map((kind) => [kind.replaceAll("_", "-"), `var(--${KINDS[kind] || "other"})`]),
    note: () => {
      const cut = chosen(data.timeline).filter((cell) => cell.cut).map((cell) => cell.layout);
      const crowded = chosen(data.timeline).some((cell) => cell.bars.length * Number(state.zoom) > 1000);
      return (cut.length ? `Of ${cut.join(", ")} only the beginning is drawn: a step has more calls than fit. ` : "")
        + (crowded ? "Calls too close to be told apart blend into one colour; show less of it to see each." : "");
    },
    panels: (rows) => [{ spec: gantt(rows) }],
  };

  function gantt(rows) {
    const end = maximum(rows, "end_us") / 1e3 * Number(state.zoom);
    const kinds = [...new Set(rows.map((row) => row.kind))];
    const values = rows.filter((row) => row.start_us / 1e3 <= end)
      .map((row) => ({ ...row, row: `${row.layout} · rank ${row.rank}`, start: row.start_us / 1e3, end: Math.min(end, row.end_us / 1e3), us: row.end_us - row.start_us }));
    const sort = order.flatMap((layout) => [...new Set(rows.filter((row) => row.layout === layout).map((row) => row.rank))]
      .sort((a, b) => a - b).map((rank) => `${layout} · rank ${rank}`));
    return {
      description: "What each rank does over a few steps", height: rowHeight(sort.length), data: { values },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      mark: { type: "bar" },
      encoding: {
        y: { field: "row", type: "nominal", sort, title: null, scale: { paddingInner: .3, paddingOuter: .1 }, axis: { labelColor: "var(--ink)", labelLimit: 260 } },
        x: { field: "start", type: "quantitative", title: "milliseconds", scale: { domain: [0, end], nice: false }, axis: { grid: true, tickCount: 8 } },
        x2: { field: "end" },
        color: { field: "kind", type: "nominal", legend: null, scale: { domain: kinds, range: kinds.map((kind) => `var(--${KINDS[kind] || "other"})`) } },
        tooltip: tips([["row", "rank"], ["kind", "kind"], ["step", "step"], ["start", "from, ms"], ["us", "length, µs"]]),
      },
    };
  }

  charts.latencies = {
    rows: () => chosen(data.latencies).flatMap((row) => row.q.map((ms, percentile) => ({
      layout: row.layout, concurrency: row.concurrency, latency: row.metric, percentile, ms, requests: row.requests,
    }))),
    columns: "three",
    note: (rows) => rows.length ? `At ${state.concurrency} concurrent, requests of all runs together.` : "",
    panels: (rows, width) => Object.keys(LATENCIES).filter((name) => rows.some((row) => row.latency === name)).map((name) => ({
      title: LATENCIES[name],
      spec: (state.latency === "bars" ? spreads : shares)(rows.filter((row) => row.latency === name), width),
    })),
  };

  function spreads(rows) {
    const names = present(rows);
    const values = names.map((layout) => {
      const at = (percentile) => rows.find((row) => row.layout === layout && row.percentile === percentile).ms;
      return { layout, p1: at(1), p25: at(25), p50: at(50), p75: at(75), p99: at(99), label: `${number(at(50))} ms`, requests: rows.find((row) => row.layout === layout).requests };
    });
    const x = { field: "p50", type: "quantitative", title: "ms", scale: { domain: [0, 1.25 * maximum(values, "p99")], nice: false }, axis: { grid: true, tickCount: 4 } };
    const y = { field: "layout", type: "nominal", sort: order, title: null, axis: { labelColor: "var(--ink)", labelFontSize: 13 } };
    const tooltip = tips([["layout", "layout"], ["p50", "median, ms"], ["p25", "25%, ms"], ["p75", "75%, ms"], ["p99", "99%, ms"], ["requests", "requests"]]);
    return {
      description: "Latency by layout: median, quartiles and 1st to 99th percentile", height: bandHeight(names.length, 46), data: { values }, encoding: { y, tooltip },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      layer: [
        { mark: { type: "rule", strokeWidth: 2 }, encoding: { x: { ...x, field: "p1" }, x2: { field: "p99" }, color: layoutColour } },
        { mark: { type: "rule", strokeWidth: 11, opacity: .55 }, encoding: { x: { ...x, field: "p25" }, x2: { field: "p75" }, color: layoutColour } },
        { mark: { type: "tick", thickness: 3, height: 18 }, encoding: { x, color: layoutColour } },
        { mark: { type: "text", dy: -16 }, encoding: { x, text: { field: "label" } } },
      ],
    };
  }

  function shares(rows) {
    const values = rows.map((row) => ({ ...row, share: row.percentile }));
    return {
      description: "Share of requests served within a latency, a line per layout", height: 240, data: { values }, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      mark: { type: "line", strokeWidth: 2, interpolate: "step-after" },
      encoding: {
        x: { field: "ms", type: "quantitative", title: "ms", scale: { zero: true, nice: false }, axis: { grid: true, tickCount: 4 } },
        y: { field: "share", type: "quantitative", title: "% of requests", axis: { tickCount: 5 } }, color: layoutColour, order: { field: "percentile" },
      },
    };
  }

  const HELD = { weight: ["weights", "compute"], kv: ["KV cache", "gather"], rest: ["the rest of the peak", "gap"] };
  charts.memory = {
    rows: () => chosen(data.memory).map((row) => ({
      layout: row.layout, concurrency: row.concurrency, rank: row.rank, weights_gb: row.weight, kv_gb: row.kv, rest_gb: row.rest, peak_gb: row.peak,
    })),
    key: () => held().map((name) => [heldName(name), heldColour(name)]),
    note: (rows) => rows.length && data.capacity_gb ? `Dashed: the ${number(data.capacity_gb)} GB of one GPU.` : "",
    panels: () => [{ spec: held_bars(chosen(data.memory)) }],
  };
  const held = () => Object.keys(HELD).filter((name) => chosen(data.memory).some((row) => row[name]));
  const heldColour = (name) => `var(--${held().length === 1 ? "compute" : HELD[name][1]})`;
  const heldName = (name) => name === "rest" && held().length === 1 ? "peak" : HELD[name][0];

  function held_bars(rows) {
    const values = rows.flatMap((row) => {
      let from = 0;
      return held().map((name) => ({
        row: `${row.layout} · rank ${row.rank}`, name, what: heldName(name), from, to: (from += row[name] || 0), gb: row[name], peak: row.peak,
      }));
    });
    const sort = order.flatMap((layout) => rows.filter((row) => row.layout === layout).map((row) => `${layout} · rank ${row.rank}`));
    const ends = rows.map((row) => ({ row: `${row.layout} · rank ${row.rank}`, to: row.peak, label: `${number(row.peak)} GB` }));
    const x = { field: "from", type: "quantitative", title: "GB", scale: { domain: [0, 1.04 * Math.max(data.capacity_gb || 0, 1.1 * maximum(rows, "peak"))], nice: false }, axis: { grid: true, tickCount: 6 } };
    const names = held();
    return {
      description: "Peak memory of each rank", height: rowHeight(sort.length), data: { values },
      padding: { right: 12, left: 4, top: 4, bottom: 4 },
      encoding: { y: { field: "row", type: "nominal", sort, title: null, scale: { paddingInner: .35, paddingOuter: .1 }, axis: { labelColor: "var(--ink)", labelLimit: 260 } } },
      layer: [
        { mark: "bar", encoding: { x, x2: { field: "to" }, color: { field: "name", type: "nominal", legend: null, scale: { domain: names, range: names.map(heldColour) } },
          tooltip: tips([["row", "rank"], ["what", "held by"], ["gb", "GB"], ["peak", "peak, GB"]]) } },
        { data: { values: ends }, mark: { type: "text", align: "left", dx: 6 }, encoding: { x: { ...x, field: "to" }, text: { field: "label" } } },
        ...(data.capacity_gb ? [{ data: { values: [{ gb: data.capacity_gb }] }, mark: { type: "rule", strokeDash: [5, 4] }, encoding: { x: { ...x, field: "gb" }, y: null } }] : []),
      ],
    };
  }

  charts.telemetry = {
    rows: () => chosen(data.telemetry).flatMap((row) => row.s.map((second, i) => ({
      layout: row.layout, concurrency: row.concurrency, gauge: row.gauge, unit: row.unit, second, mean: row.mean[i], low: row.low[i], high: row.high[i],
    }))),
    columns: "two",
    note: (rows) => rows.length ? `At ${state.concurrency} concurrent, one run of each layout.` : "",
    panels: (rows) => [...new Set(rows.map((row) => row.gauge))].map((gauge) => over_time(gauge, rows.filter((row) => row.gauge === gauge))),
  };

  function over_time(gauge, rows) {
    const x = { field: "second", type: "quantitative", title: "seconds", scale: { nice: false }, axis: { tickCount: 6 } };
    const y = { field: "mean", type: "quantitative", title: rows[0].unit, axis: { tickCount: 4 }, scale: { zero: true } };
    return { title: gauge, spec: {
      description: `${gauge} over the time of a run, a line per layout`, height: 180, data: { values: rows }, padding: { right: 12, left: 4, top: 8, bottom: 4 },
      encoding: { x, color: layoutColour },
      layer: [
        { mark: { type: "area", opacity: .18 }, encoding: { y: { ...y, field: "low" }, y2: { field: "high" } } },
        { mark: { type: "line", strokeWidth: 1.8 }, encoding: { y, tooltip: tips([["layout", "layout"], ["second", "second"], ["mean", "mean"], ["low", "least"], ["high", "greatest"]]) } },
      ],
    } };
  }

  // -- drawing -------------------------------------------------------------------------------------------------

  const element = (tag, className, text) => Object.assign(document.createElement(tag), { className: className || "", textContent: text || "" });
  const drawn = {};
  const PAPER = 690, COLUMNS = { two: 2, three: 3 }; // px between the margins of A4
  let paper = 0;

  function draw(id) {
    const chart = charts[id];
    if (!chart) return;
    const target = document.querySelector(`[data-chart="${id}"]`);
    const rows = chart.rows();
    (drawn[id] || []).forEach((view) => view.finalize());
    drawn[id] = [];
    target.replaceChildren();
    target.className = `panels ${chart.columns || ""}`;
    document.querySelector(`[data-note="${id}"]`).textContent = chart.note ? chart.note(rows) : "";
    document.getElementById(id).querySelector(".save").hidden = !rows.length;
    if (!rows.length) {
      target.className = "panels";
      target.append(element("p", "empty", "Nothing was recorded for this choice."));
      return;
    }
    if (chart.key) target.append(legend(chart.key(rows)));
    for (const { title, spec } of chart.panels(rows, paper || target.clientWidth)) {
      const panel = target.appendChild(element("div", "panel"));
      if (title) panel.append(element("h3", "", title));
      drawn[id].push(embed(panel.appendChild(element("div", "plot")), spec, paper && paper / (COLUMNS[chart.columns] || 1) - 20));
    }
    target.dataset.drawn = rows.length;
  }

  function legend(pairs) {
    const list = element("ul", "key");
    for (const [name, fill] of pairs) {
      const item = list.appendChild(element("li"));
      item.append(element("i"), name);
      item.firstChild.style.setProperty("--c", fill);
    }
    return list;
  }

  function embed(container, spec, width) {
    const sized = { $schema: "https://vega.github.io/schema/vega-lite/v5.json", width: width || container.clientWidth, autosize: { type: "fit", contains: "padding" }, ...spec };
    const { spec: compiled } = vegaLite.compile({ ...sized, height: spec.height + 56 }, { config: CONFIG });
    const view = new vega.View(vega.parse(compiled), { renderer: "svg", container, hover: true }).tooltip(tip);
    return view.run();
  }

  const box = document.getElementById("tip");
  function tip(_, event, item, value) {
    box.hidden = value == null;
    if (box.hidden) return;
    box.replaceChildren(...Object.entries(value).filter(([, text]) => text != null && text !== "null").map(([name, text]) => {
      const line = element("div");
      line.append(element("span", "", name), element("b", "", isFinite(text) && text !== "" ? number(Number(text)) : String(text)));
      return line;
    }));
    const { width, height } = box.getBoundingClientRect();
    box.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    box.style.top = `${event.clientY + 14 + height > innerHeight ? event.clientY - height - 14 : event.clientY + 14}px`;
  }

  /** Those in sight at once, the others one by one while the page is idle. */
  let waiting = [];
  function drawAll() {
    narrow();
    const near = (id) => {
      const { top, bottom } = document.getElementById(id).getBoundingClientRect();
      return bottom > -200 && top < innerHeight + 200;
    };
    const ids = Object.keys(charts);
    waiting = ids.filter((id) => !near(id));
    ids.filter(near).forEach(draw);
    idle(next);
  }
  const idle = (task) => window.requestIdleCallback ? requestIdleCallback(task, { timeout: 200 }) : setTimeout(task, 10);
  function next() {
    if (waiting.length) { draw(waiting.shift()); idle(next); } else document.body.dataset.ready = "yes";
  }
  function print(on) {
    paper = on ? PAPER : 0;
    waiting = [];
    if (on) Object.keys(charts).forEach(draw); else drawAll();
  }

  /** The table and the sentences follow the choice. */
  function narrow() {
    const layouts = new Set(shown());
    for (const part of document.querySelectorAll("[data-experiment]")) {
      part.hidden = part.dataset.experiment !== state.experiment || part.dataset.scenario !== state.scenario;
    }
    for (const words of document.querySelectorAll(".words")) words.hidden = Number(words.dataset.concurrency) !== state.concurrency;
    for (const row of document.querySelectorAll("tr[data-layout]")) row.hidden = !layouts.has(row.dataset.layout);
    const all = shown().filter((name) => data.cells.some((cell) => cell.experiment === state.experiment && cell.layout === name)).join(", ");
    document.getElementById("chosen").textContent = `${experiment().label} · ${scenario().label} · ${state.concurrency} concurrent · ${all}`;
    for (const id of ["timeline", "telemetry", "memory"]) document.getElementById(id).hidden = !data[id].length;
  }

  // -- downloads -----------------------------------------------------------------------------------------------

  function save(name, text, type) {
    const link = element("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  const quoted = (value) => /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const line = (values) => values.map((value) => quoted(String(value ?? ""))).join(",");

  function csv(id) {
    if (id === "comparison") return tableCsv();
    const hidden = charts[id].hidden || [];
    const rows = charts[id].rows();
    const names = Object.keys(rows[0] || {}).filter((name) => !hidden.includes(name));
    return [line(names), ...rows.map((row) => line(names.map((name) => row[name])))].join("\n") + "\n";
  }

  function tableCsv() {
    const rows = [...document.querySelectorAll("#comparison tbody:not([hidden]) tr[data-layout]:not([hidden]):not(.aside)")];
    const head = ["concurrency", ...[...document.querySelectorAll("#comparison thead th")].map((cell) => cell.textContent)];
    const body = rows.map((row) => [row.parentElement.dataset.concurrency, ...[...row.children].map((cell) => cell.textContent.trim().replace(/^–$/, ""))]);
    return [head, ...body].map(line).join("\n") + "\n";
  }

  /** The drawings of a chart one below the other, with today's colours in place of the variables. */
  function svg(id) {
    const style = getComputedStyle(document.documentElement);
    const resolve = (text) => text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    const parts = [...document.querySelectorAll(`[data-chart="${id}"] svg`)];
    const width = Math.max(...parts.map((part) => part.viewBox.baseVal.width));
    let height = 0;
    const body = parts.map((part) => {
      const copy = part.cloneNode(true);
      copy.setAttribute("y", height);
      height += part.viewBox.baseVal.height + 12;
      return new XMLSerializer().serializeToString(copy);
    });
    return resolve(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"><rect width="100%" height="100%" fill="var(--page)"/>${body.join("")}</svg>`);
  }

  // -- begin ---------------------------------------------------------------------------------------------------

  let width = innerWidth, timer = 0;
  const onWidth = () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(drawAll, 150);
  };
  fillAll();
  document.addEventListener("change", choose);
  document.querySelector(".bar").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", ({ target }) => {
    const { csv: table, svg: picture } = target.dataset;
    if (table) save(`${table}.csv`, csv(table), "text/csv");
    if (picture) save(`${picture}.svg`, svg(picture), "image/svg+xml");
  });
  window.addEventListener("resize", onWidth);
  window.addEventListener("beforeprint", () => print(true));
  window.addEventListener("afterprint", () => print(false));
  if (data.experiments.length) drawAll(); else document.body.dataset.ready = "yes";
  window.report = { csv, svg, state }; // for tests
})();
