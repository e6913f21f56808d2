"use strict";
/* A page of tables without charts. */
page.ready();
page.contents();
page.arrive();
document.body.dataset.ready = "yes";
