"use strict";
/* How charts of layouts are drawn: numbers, looks, legends, tips and pictures. layouts: the look of each, in order. */
const drawing = (layouts) => {
  const { element } = page;
  const look = Object.fromEntries(layouts.map((l) => [l.name, l]));
  const colour = Object.fromEntries(layouts.map((l) => [l.name, `var(--${l.colour})`]));
  const order = layouts.map((l) => l.name);

  // -- figures and scales -----------------------------------------------------------------------------------------------

  const digits = (value) => Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  const number = (value) => value == null ? "–" : value.toLocaleString("en", { maximumFractionDigits: digits(value) });
  const fixed = (value) => value ? value.toLocaleString("en", { minimumFractionDigits: digits(value), maximumFractionDigits: digits(value) }) : number(value);
  /** Three digits of what may be small; a trace of it is not called nothing. */
  const precise = (value) => value == null || Math.abs(value) >= 1 ? fixed(value) : value === 0 ? "0"
    : Math.abs(value) < 0.0005 ? "<0.001" : value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 });
  const present = (rows) => order.filter((name) => rows.some((row) => row.layout === name));
  const layoutColour = { field: "layout", type: "nominal", legend: null, scale: { domain: order, range: order.map((n) => colour[n]) } };
  const range = (of) => ({ domain: order, range: order.map((name) => of(look[name])) });
  const isHollow = (one) => one.dash.length > 0;
  const layoutShape = { field: "layout", type: "nominal", legend: null, scale: range((one) => one.shape) };
  const layoutDash = { field: "layout", type: "nominal", legend: null, scale: range((one) => isHollow(one) ? one.dash : [1, 0]) };
  const layoutFill = { field: "layout", type: "nominal", legend: null, scale: range((one) => isHollow(one) ? "var(--page)" : `var(--${one.colour})`) };
  /** Lines and points of layouts: told apart by colour, and without it by dash and shape. */
  const layoutLine = { color: layoutColour, strokeDash: layoutDash };
  const layoutPoint = { color: layoutColour, fill: layoutFill, shape: layoutShape };
  const maximum = (rows, ...fields) => Math.max(0, ...rows.flatMap((row) => fields.map((field) => row[field] || 0)));
  const tips = (pairs) => pairs.map(([field, title]) => ({ field, title }));

  // Marks in a box of 26 x 14 px, as they stand in a legend.
  const SHAPES = {
    circle: "M13 2.6a4.4 4.4 0 1 0 .01 0Z", square: "M9 3h8v8h-8Z", "triangle-up": "M13 2l5 9.4h-10Z", diamond: "M13 1.4l5 5.6-5 5.6-5-5.6Z",
    cross: "M11.4 2h3.2v3.4h3.4v3.2h-3.4v3.4h-3.2v-3.4h-3.4v-3.2h3.4Z", "triangle-down": "M13 12l5-9.4h-10Z", "triangle-right": "M18 7l-9.4-5v10Z",
    "triangle-left": "M8 7l9.4-5v10Z",
  };

  // -- legends: a name, and what it stands for as SVG of 26 x 14 px

  const box = (fill) => `<rect x="6" width="14" height="14" rx="3" fill="${fill}"/>`;
  const stroke = (fill, dash = "", width = 2) => `<path d="M0 7H26" stroke="${fill}" stroke-width="${width}" stroke-dasharray="${dash}"/>`;
  const mark = (shape, fill, inside = fill) => `<path d="${SHAPES[shape]}" fill="${inside}" stroke="${fill}" stroke-width="1.6"/>`;
  const lookOf = (name) => stroke(colour[name], look[name].dash) + mark(look[name].shape, colour[name], isHollow(look[name]) ? "var(--page)" : colour[name]);
  const layoutKey = (rows) => present(rows).map((name) => [name, lookOf(name)]);
  const glyph = (inner) => `<svg width="26" height="14" viewBox="0 0 26 14" aria-hidden="true">${inner}</svg>`;

  // -- on the page ------------------------------------------------------------------------------------------------------

  function legend(pairs) {
    const list = element("ul", "key");
    for (const [name, inner] of pairs) {
      const item = list.appendChild(element("li"));
      item.innerHTML = glyph(inner);
      item.append(name);
    }
    return list;
  }

  function tableOf([head, ...body]) {
    const table = element("table"), add = (parent, tag, texts) => texts.forEach((text, i) => {
      parent.append(Object.assign(element(i && tag === "td" ? "td" : "th", "", text), { scope: tag === "td" ? "row" : "col" }));
    });
    add(table.createTHead().insertRow(), "th", head);
    const rows = table.createTBody();
    for (const texts of body) add(rows.insertRow(), "td", texts);
    return table;
  }

  function embed(container, spec, width) {
    const sized = { $schema: "https://vega.github.io/schema/vega-lite/v5.json", width: width || container.clientWidth, autosize: { type: "fit", contains: "padding" }, ...spec };
    const { spec: compiled } = vegaLite.compile({ ...sized, height: spec.height + 56 }, { config: CONFIG });
    const view = new vega.View(vega.parse(compiled), { renderer: "svg", container, hover: true }).tooltip(tip);
    return view.run();
  }

  const tipBox = document.getElementById("tip");
  function tip(_, event, item, value) {
    tipBox.hidden = value == null;
    if (tipBox.hidden) return;
    tipBox.replaceChildren(...Object.entries(value).filter(([, text]) => text != null && text !== "null").map(([name, text]) => {
      const line = element("div");
      line.append(element("span", "", name), element("b", "", isFinite(text) && text !== "" ? number(Number(text)) : String(text)));
      return line;
    }));
    const { width, height } = tipBox.getBoundingClientRect();
    tipBox.style.left = `${Math.max(8, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tipBox.style.top = `${event.clientY + 14 + height > innerHeight ? event.clientY - height - 14 : event.clientY + 14}px`;
  }

  /** The legend and the drawings of a chart one below the other, with today's colours in place of the variables. */
  function svg(target) {
    const style = getComputedStyle(document.documentElement);
    const resolve = (text) => text.replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    const parts = [...target.querySelectorAll(".plot svg")];
    const width = Math.max(...parts.map((part) => part.viewBox.baseVal.width));
    const key = keyOf([...target.querySelectorAll(".key li")], width);
    let height = key.height;
    const body = parts.map((part) => {
      const copy = part.cloneNode(true), title = part.closest(".panel").querySelector("h3")?.textContent;
      const head = title ? `<text x="4" y="${height + 14}" font-family="sans-serif" font-size="14" font-weight="600" fill="var(--ink)">${escaped(title)}</text>` : "";
      height += title ? 22 : 0;
      copy.setAttribute("y", height);
      height += part.viewBox.baseVal.height + 12;
      return head + new XMLSerializer().serializeToString(copy);
    });
    return resolve(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}"><rect width="100%" height="100%" fill="var(--page)"/>${key.text}${body.join("")}</svg>`);
  }

  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

  /** The items of a legend in lines of a picture. */
  function keyOf(items, width) {
    let x = 4, y = 4;
    const text = items.map((item) => {
      const room = 40 + 7.2 * item.textContent.length;
      if (x + room > width && x > 4) { x = 4; y += 22; }
      const at = x;
      x += room;
      const inner = item.querySelector("svg").innerHTML;
      return `<g transform="translate(${at} ${y})">${inner}<text x="32" y="12" font-family="sans-serif" font-size="13" fill="var(--ink)">${escaped(item.textContent)}</text></g>`;
    });
    return { text: text.join(""), height: items.length ? y + 30 : 0 };
  }

  return {
    look, colour, order, number, fixed, precise, present, tips, layoutColour, layoutLine, layoutPoint, layoutDash, isHollow, box, stroke, mark, lookOf, layoutKey,
    glyph, legend, embed, svg, maximum, tableOf,
  };
};
