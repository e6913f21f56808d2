"use strict";
/* How charts look on every page. Colours are CSS variables, so light, dark and print need no second one. */
const CONFIG = {
  background: null, font: 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif',
  view: { stroke: null }, text: { fill: "var(--ink)", fontSize: 12 }, rule: { stroke: "var(--ink-2)" },
  axis: {
    labelColor: "var(--ink-2)", titleColor: "var(--ink-2)", gridColor: "var(--grid)", domainColor: "var(--line)",
    tickColor: "var(--line)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500, labelPadding: 6, titlePadding: 10, labelFlush: false, labelSeparation: 8,
  },
  axisY: { domain: false, ticks: false }, axisX: { grid: false },
};
