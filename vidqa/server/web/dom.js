// Elements without markup: whatever comes from the server goes in as text, so a file named
// `<img src=x onerror=...>` is read, not run.

import { icon } from "./icons.js";
import { say, sayAttribute } from "./i18n.js";

/**
 * h("button", {class: "plain", say: "ask", on: {click: f}}, child, "text")
 *
 * `say` is a key of i18n.js, or [key, values]; `label` and `hint` likewise, for aria-label and
 * title. `icon` puts an icon before the children. Other properties become attributes; those that
 * are null or false are left out.
 */
export function h(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [type, heard] of Object.entries(value)) node.addEventListener(type, heard);
    else if (name === "say") say(node, ...[value].flat());
    else if (name === "label") sayAttribute(node, "aria-label", ...[value].flat());
    else if (name === "hint") sayAttribute(node, "title", ...[value].flat());
    else if (name === "icon") node.append(icon(value));
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  if (tag === "button" && !("type" in properties)) node.type = "button";
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** A button that is its icon; `key` says what it does, to the ear and under the pointer. */
export const iconButton = (name, key, click, kind = "plain icon") =>
  h("button", { class: kind, icon: name, label: key, hint: [key].flat()[0], on: { click } });

export const textButton = (key, click, kind = "plain") => h("button", { class: kind, say: key, on: { click } });

export const byId = (id) => document.getElementById(id);

/** An image that is not there leaves a calm, empty place. */
export function picture(url, alt, properties = {}) {
  const image = h("img", { alt, loading: "lazy", decoding: "async", ...properties });
  image.addEventListener("error", () => image.classList.add("missing"));
  image.addEventListener("load", () => image.classList.remove("missing"));
  if (url) image.src = url;
  return image;
}

export function debounce(run, milliseconds) {
  let timer = 0;
  const later = (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...values), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}

let toastTimer = 0;

/** A short remark that goes by itself. */
export function toast(key, values) {
  const place = byId("toast");
  clearTimeout(toastTimer);
  place.hidden = false;
  say(place, key, values);
  toastTimer = setTimeout(() => (place.hidden = true), 4000);
}
