"use strict";
/* A page of tables without charts. */
document.addEventListener("click", ({ target }) => {
  if (target.dataset.table === undefined) return;
  const section = target.closest("section");
  page.save(`${section.id}.csv`, page.csv(page.rowsOf(section.querySelector("table"))), "text/csv");
});
page.ready();
page.contents();
page.arrive();
document.body.dataset.ready = "yes";
