// The frame: which view is shown, and what is wrong with the server.

import { askForKey, key } from "./key.js";
import { element } from "./element.js";
import { house, look, start, watch } from "./watch.js";
import * as charts from "./charts.js";
import * as chat from "./chat.js";
import * as clients from "./clients.js";
import * as compare from "./compare.js";
import * as overview from "./overview.js";
import * as models from "./models.js";

const VIEWS = { house: overview, models, chat, compare, charts, clients };
const main = document.getElementById("view");
const made = {}; // views that were looked at: what was written in them stays
let shown = "";

const links = Object.entries(VIEWS).map(([name, view]) => {
  return element("a", { href: `#${name}`, "data-view": name }, view.TITLE);
});
document.getElementById("views").append(...links);

function show() {
  const asked = location.hash.slice(1);
  const name = asked in VIEWS ? asked : "house";
  if (name === shown) return;
  const first = shown === "";
  shown = name;
  made[name] ??= VIEWS[name].make();
  main.replaceChildren(made[name].node);
  for (const link of links) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].TITLE} · Enginehouse`;
  update();
  if (!first) main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

function update() {
  const wrong = house.trouble || house.health || "";
  const notice = document.getElementById("notice");
  if (notice.textContent !== wrong) notice.textContent = wrong;
  notice.hidden = !wrong;
  if (house.models) made[shown].update();
}

addEventListener("hashchange", show);
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
document.getElementById("key").addEventListener("click", async () => {
  const why = key() ? "Another key takes the place of the one in use." : "Without one, this page sends none.";
  if (await askForKey(why)) await look();
});

show();
watch(update);
start();
