// The page's address: `?video=ID&t=S` is a moment, `?q=words` a search, `&library=NAME` their place.

import { currentLibrary } from "./api.js";
import { on } from "./bus.js";
import { toast } from "./dom.js";

export function readAddress() {
  const given = new URLSearchParams(location.search);
  const seconds = Number(given.get("t"));
  return {
    video: given.get("video"),
    seconds: Number.isFinite(seconds) && seconds > 0 ? seconds : 0,
    query: given.get("q") ?? "",
    library: given.get("library"),
  };
}

const inAddress = { video: null, t: null, q: null };

function address(values) {
  const all = Object.entries({ ...values, library: currentLibrary() });
  const kept = all.filter(([, value]) => value !== null && value !== "");
  const search = new URLSearchParams(kept).toString();
  return search ? `./?${search}` : "./";
}

/** `step` makes it a place that the browser's back button returns to. */
export function writeAddress(values, step = false) {
  Object.assign(inAddress, values);
  const url = address(inAddress);
  if (new URL(url, document.baseURI).href === location.href) return;
  history[step ? "pushState" : "replaceState"](null, "", url);
}

/** Rounded up, as a little before a cut is another scene. */
export const addressTime = (seconds) => String(Math.ceil(seconds * 100 - 1e-6) / 100);

export const momentLink = (video, seconds) =>
  new URL(address({ video, t: addressTime(seconds) }), document.baseURI).href;

export const copyLink = (video, seconds) => copy(momentLink(video, seconds), "link_copied");

export async function copy(text, remark) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https (or permission) there is no clipboard but this one.
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  toast(remark);
}

on("player-closed", () => writeAddress({ video: null, t: null }));
