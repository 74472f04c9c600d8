// What the server says of itself: its libraries, its models, and how far the answering engine is.

import { currentLibrary, json, useLibrary } from "./api.js";
import { emit } from "./bus.js";
import { byId, h } from "./dom.js";
import { say } from "./i18n.js";

const STARTING_SECONDS = 2;
const QUIET_SECONDS = 30;

let info = { libraries: [], models: ["vidqa"], engine: { state: "unknown", detail: "" }, limits: {} };
let timer = 0;
let asked = false;

export const limits = () => info.limits ?? {};
export const engine = () => info.engine;
export const model = () => byId("models").value || info.models[0] || "vidqa";
export const libraryName = () => currentLibrary() ?? info.libraries[0]?.name ?? null;

/** Asks once, and again later: often while the engine starts, seldom otherwise. */
export async function follow() {
  clearTimeout(timer);
  // A page in the background has no one to tell.
  if (!document.hidden || !asked) await refresh().catch(() => show({ state: "unreachable" }));
  const seconds = info.engine.state === "starting" ? STARTING_SECONDS : QUIET_SECONDS;
  timer = setTimeout(follow, seconds * 1000);
}
document.addEventListener("visibilitychange", () => document.hidden || follow());

async function refresh() {
  asked = true;
  info = await json("v1/info");
  const names = info.libraries.map((library) => library.name);
  if (currentLibrary() !== null && !names.includes(currentLibrary())) useLibrary(null);
  fill(byId("libraries"), names, libraryName());
  // `vidqa:holidays` is `vidqa` asking another library, which is chosen apart.
  const models = info.models.filter((name) => !name.includes(":"));
  fill(byId("models"), models, byId("models").value || models[0]);
  show(info.engine);
}

function fill(select, names, chosen) {
  const before = [...select.options].map((option) => option.value);
  if (before.join("\n") !== names.join("\n"))
    select.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  select.value = chosen;
  select.hidden = names.length < 2;
}

function show({ state, detail }) {
  const pill = byId("engine");
  const known = ["starting", "ready", "failed", "unreachable"].includes(state);
  pill.hidden = !known;
  if (!known) return;
  if (pill.dataset.state !== state) pill.dataset.state = state;
  say(pill, `engine_${state}`, { detail: detail || "" });
  pill.title = pill.textContent;
}

byId("libraries").addEventListener("change", (event) => {
  const chosen = event.target.value;
  useLibrary(chosen === info.libraries[0]?.name ? null : chosen);
  emit("library");
});
