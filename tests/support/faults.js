/* What a reader of a page would stumble over: texts of a drawing that overlap or are cut off, and text with less
   contrast to what it stands on than WCAG 2 asks for, 4.5 to 1. Each with the section it is in. */
(() => {
  const isShown = (one) => one.checkVisibility() && one.getClientRects().length > 0;
  /** Nothing moves while this runs, and much is asked again and again: each answer is kept. */
  function kept(answer, known = new Map()) {
    return (one) => {
      if (!known.has(one)) known.set(one, answer(one));
      return known.get(one);
    };
  }
  const box = kept((one) => one.getBoundingClientRect());
  const style = kept((one) => getComputedStyle(one));
  const named = (one) => `${one.closest("section")?.id ?? "top"}: ${one.textContent.trim().slice(0, 40)}`;
  const drawings = [...document.querySelectorAll("[data-chart] svg")].filter((svg) => isShown(svg) && !svg.closest(".key"));
  const textsOf = kept((svg) => [...svg.querySelectorAll("text")].filter((text) => text.textContent.trim() && text.getAttribute("opacity") !== "0" && isShown(text)));
  const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const isOut = (a, frame) => a.left < frame.left - 1 || a.right > frame.right + 1 || a.top < frame.top - 1 || a.bottom > frame.bottom + 1;

  const overlapping = drawings.flatMap((svg) => textsOf(svg).flatMap((one, place, all) => all.slice(place + 1)
    .filter((other) => overlap(box(one), box(other))).map((other) => `${named(one)} / ${other.textContent}`)));
  const cut = drawings.flatMap((svg) => textsOf(svg).filter((text) => isOut(box(text), box(svg))).map(named));

  // -- contrast: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio ----------------------------------------------------

  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const painted = kept((colour) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = colour;
    pixel.fillRect(0, 0, 1, 1);
    return pixel.getImageData(0, 0, 1, 1).data;
  });
  function rgba(colour, opacity = 1) {
    const [r, g, b, a] = painted(colour);
    return [r, g, b, a / 255 * opacity];
  }
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const linear = (part) => part / 255 <= .04045 ? part / 255 / 12.92 : ((part / 255 + .055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  function contrast(top, below) {
    const [dark, light] = [luminance(over(top, below)), luminance(below)].sort((a, b) => a - b);
    return (light + .05) / (dark + .05);
  }
  /** What is behind an element: the backgrounds of all it is in, one over the other. */
  const behind = kept((one) => over(rgba(style(one).backgroundColor), one.parentElement ? behind(one.parentElement) : rgba("white")));
  const barsOf = kept((svg) => [...svg.querySelectorAll(".mark-rect path")]);
  /** What is behind the middle of a text in a drawing: the bars there. */
  function drawnBehind(svg, text) {
    const { left, right, top, bottom } = box(text), x = (left + right) / 2, y = (top + bottom) / 2;
    const bars = barsOf(svg).filter((bar) => {
      const at = box(bar);
      return at.left <= x && x <= at.right && at.top <= y && y <= at.bottom;
    });
    return bars.map(style).reduce((below, { fill, fillOpacity, opacity }) => over(rgba(fill, fillOpacity * opacity), below), behind(svg.parentElement));
  }

  const faint = drawings.flatMap((svg) => textsOf(svg).filter((text) => {
    const { fill, fillOpacity, opacity } = style(text);
    return contrast(rgba(fill, fillOpacity * opacity), drawnBehind(svg, text)) < 4.5;
  }).map(named));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || one.closest("script, noscript, svg, .skip") || !isShown(one)) continue;
    if (contrast(rgba(style(one).color), behind(one)) < 4.5) faint.push(named(one));
  }
  return { overlapping, cut, faint: [...new Set(faint)] };
})()
