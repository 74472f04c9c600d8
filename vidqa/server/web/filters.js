// Which videos a search and a question are about: the filters of the form, and the scope that
// "ask about this" sets. What is set stands below the box as chips.

import { emit, on } from "./bus.js";
import { byId, debounce, h, iconButton } from "./dom.js";
import { range } from "./format.js";
import { sayAttribute } from "./i18n.js";

const form = byId("filters");
const button = byId("filters-button");
const fields = [...form.querySelectorAll("input")];
let scope = null;

/** The filters as the server takes them; a question about one clip is not filtered besides. */
export function filters() {
  const given = Object.fromEntries(fields.map((field) => [field.name, field.value.trim()]));
  const wanted = {};
  // Part of a name is what people type; a pattern is taken as it is.
  if (given.video) wanted.video = /[*?[]/.test(given.video) ? given.video : `*${given.video}*`;
  if (given.text) wanted.text = given.text;
  if (given.min_minutes) wanted.min_seconds = Number(given.min_minutes) * 60;
  if (given.max_minutes) wanted.max_seconds = Number(given.max_minutes) * 60;
  for (const name of ["after", "before"]) if (given[name]) wanted[name] = given[name];
  if (scope) wanted.video_ids = [scope.videoId];
  return wanted;
}

/** The one clip that questions are about, or null. */
export const clip = () =>
  scope?.kind === "clip" ? { video_id: scope.videoId, start_seconds: scope.start, end_seconds: scope.end } : null;

export function dropScope() {
  if (scope) setScope(null);
}

function setScope(wanted) {
  scope = wanted;
  const key = { clip: "box_moment", video: "box_video" }[scope?.kind] ?? "box";
  sayAttribute(byId("query"), "placeholder", key);
  changed();
}

function changed() {
  showChips();
  emit("filters");
}

function showChips() {
  const chip = (key, values, drop) => h("li", {}, h("span", { say: [key, values] }),
    iconButton("close", "remove", () => {
      drop();
      changed();
      byId("query").focus();
    }, "icon"));
  const set = fields.filter((field) => field.value.trim());
  const chips = set.map((field) =>
    chip(`chip_${field.name}`, { value: field.value.trim() }, () => (field.value = "")));
  if (scope) {
    const values = { video: scope.video, time: scope.kind === "clip" ? range(scope.start, scope.end) : "" };
    chips.unshift(chip(`chip_${scope.kind}`, values, () => setScope(null)));
  }
  byId("chips").replaceChildren(...chips);
  byId("chips").hidden = chips.length === 0;
  button.classList.toggle("on", set.length > 0);
}

button.addEventListener("click", () => {
  form.hidden = !form.hidden;
  button.setAttribute("aria-expanded", String(!form.hidden));
  if (!form.hidden) fields[0].focus();
});
form.addEventListener("input", debounce(changed, 300));
on("scope", (wanted) => {
  setScope(wanted);
  byId("query").focus();
  byId("query").select();
});
on("library", () => setScope(null));
