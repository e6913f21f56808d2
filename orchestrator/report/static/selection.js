"use strict";
/* The heat map of layouts and the curves over the link's bandwidth, from the data of the page's one JSON block. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const unique = (values) => [...new Set(values)];
  const select = (name) => document.querySelector(`select[name="${name}"]`);
  const SEVERAL = [...data.counts.map((count, index) => [String(count), `var(--heat-${Math.min(index, 4)})`]), ["none", "var(--heat-none)"]];

  function panel(target, title, note, spec) {
    const box = target.appendChild(document.createElement("div"));
    box.className = "panel";
    box.appendChild(document.createElement("h3")).textContent = title;
    if (spec) embed(box.appendChild(document.createElement("div")), spec);
    const said = box.appendChild(document.createElement("p"));
    said.className = "note";
    said.textContent = note;
  }

  function embed(container, spec) {
    const sized = { $schema: "https://vega.github.io/schema/vega-lite/v5.json", width: container.clientWidth, autosize: { type: "fit", contains: "padding" }, ...spec };
    const { spec: compiled } = vegaLite.compile(sized, { config: CONFIG });
    new vega.View(vega.parse(compiled), { renderer: "svg", container, hover: true }).run();
  }

  // -- the matrix ----------------------------------------------------------------------------------------------

  function matrix() {
    const target = document.querySelector('[data-chart="matrix"]');
    for (const scenario of unique(data.selection.map((row) => row.scenario))) {
      const rows = data.selection.filter((row) => row.scenario === scenario);
      const title = `${scenario} (${rows[0].input_len} tokens in, ${rows[0].output_len} out)`;
      panel(target, title, "", heat(rows.map(cell)));
    }
    target.dataset.drawn = data.selection.length;
  }

  function cell(row) {
    const from = row.best_from.map((number, index) => `from ${number}: ${row.best_layouts[index] || "none"}`);
    return {
      model: row.model, gpu: row.gpu, least: String(row.least_gpus ?? "none"), layout: row.layout ?? "–", then: row.then && `from ${row.then}`,
      says: `${row.gpu}, ${row.model}\nfewest GPUs: ${row.least_gpus ?? "none"}${row.least_layout ? ` (${row.least_layout})` : ""}\n${from.join("\n")}${row.reason ? `\n${row.reason}` : ""}`,
    };
  }

  function heat(rows) {
    const known = new Set(rows.map((row) => row.least));
    const shown = SEVERAL.filter(([name]) => known.has(name));
    const x = { field: "model", type: "nominal", sort: null, axis: { orient: "top", labelAngle: 0, title: null, domain: false, ticks: false } };
    const y = { field: "gpu", type: "nominal", sort: null, axis: { title: null, labelLimit: 260 } };
    const scale = { domain: shown.map(([name]) => name), range: shown.map(([, fill]) => fill) };
    return {
      height: 46 * unique(rows.map((row) => row.gpu)).length + 60, data: { values: rows }, encoding: { x, y },
      layer: [
        { mark: { type: "rect", stroke: "var(--page)", strokeWidth: 3 }, encoding: {
          color: { field: "least", type: "nominal", scale, legend: { title: "fewest GPUs", orient: "bottom", labelColor: "var(--ink-2)", titleColor: "var(--ink-2)" } },
          tooltip: { field: "says" },
        } },
        { mark: { type: "text", fontWeight: 650, fontSize: 14, dy: -7 }, encoding: { text: { field: "layout" }, tooltip: { field: "says" } } },
        { mark: { type: "text", fontSize: 12, dy: 10, fill: "var(--ink-2)" }, encoding: { text: { field: "then" }, tooltip: { field: "says" } } },
      ],
    };
  }

  // -- the crossover -------------------------------------------------------------------------------------------

  function crossover() {
    const target = document.querySelector('[data-chart="crossover"]');
    const rows = data.crossover.filter((row) => row.gpu === select("gpu").value && row.scenario === select("scenario").value);
    target.replaceChildren();
    for (const row of rows) {
      panel(target, `${row.model}: ${row.first} and ${row.second}`, `${row.sentence}.`, row.curve.length ? curves(row) : null);
    }
    target.dataset.drawn = rows.length;
  }

  function curves(row) {
    const points = row.curve.flatMap(([bandwidth, ...speeds]) => speeds.map((speed, index) => ({ bandwidth: bandwidth / 1e9, speed, layout: [row.first, row.second][index] })));
    const x = { field: "bandwidth", type: "quantitative", scale: { type: "log", nice: false, padding: 14 }, axis: { title: "GB/s of bus bandwidth", grid: false, values: [20, 50, 100, 200, 500] } };
    const links = Object.entries(data.links).map(([name, rate]) => ({ name, bandwidth: rate / 1e9 }));
    return {
      height: 250, encoding: { x },
      layer: [
        { data: { values: links }, mark: { type: "rule", stroke: "var(--grid)", strokeWidth: 2 }, encoding: { tooltip: { field: "name" } } },
        { data: { values: links }, mark: { type: "text", angle: 270, align: "left", baseline: "bottom", dx: 4, dy: -2, fontSize: 11, fill: "var(--ink-3)" }, encoding: { y: { value: "height" }, text: { field: "name" } } },
        { data: { values: points }, mark: { type: "line", strokeWidth: 2.5 }, encoding: {
          y: { field: "speed", type: "quantitative", scale: { zero: true }, axis: { title: "output tokens/s", tickCount: 5 } },
          color: { field: "layout", type: "nominal", scale: { domain: [row.first, row.second], range: row.colours.map((name) => `var(--${name})`) }, legend: { title: null, orient: "top", labelColor: "var(--ink)", symbolType: "stroke" } },
          strokeDash: { field: "layout", type: "nominal", scale: { domain: [row.first, row.second], range: [[1, 0], [2, 3]] } },
        } },
        { data: { values: row.bandwidth ? [{ bandwidth: row.bandwidth / 1e9 }] : [] }, mark: { type: "rule", stroke: "var(--ink)", strokeDash: [5, 4] } },
      ],
    };
  }

  function fill(name, values) {
    select(name).replaceChildren(...values.map((value) => new Option(value, value)));
    select(name).value = values.find((value) => value === data.shown) ?? values[0];
    select(name).addEventListener("change", crossover);
  }

  matrix();
  fill("gpu", unique(data.crossover.map((row) => row.gpu)));
  fill("scenario", unique(data.crossover.map((row) => row.scenario)));
  crossover();
  document.body.dataset.ready = "yes";
})();
