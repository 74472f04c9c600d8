// The box: finds moments while one types, and hands the question on when Enter is pressed. A new
// search ends the one before, so that a slow answer never overwrites a later one.

import { ApiError, currentLibrary, json } from "./api.js";
import { writeAddress } from "./address.js";
import { emit, on } from "./bus.js";
import { momentCard, roving, skeletonCards } from "./cards.js";
import { byId, debounce, h, iconButton, picture, textButton, toast } from "./dom.js";
import { filters } from "./filters.js";
import { heatStrips } from "./heat.js";
import { say } from "./i18n.js";

const TYPING_PAUSE = 180;
const PAGE = 12;
const MOST = 96; // the server gives a hundred
// The model sees less than this; a photograph of a telephone would only be slow to send.
const IMAGE_SIDE = 1024;

const box = byId("query");
const results = byId("results");
let image = null; // a data URL
let count = PAGE;
let running = null;

export const query = () => box.value.trim();
export const clearQuery = () => setQuery("");

export function setQuery(text) {
  box.value = text;
  image = null;
  showImage();
  searchNow();
}

const soon = debounce(() => searchNow(), TYPING_PAUSE);

export async function searchNow(k = PAGE) {
  soon.cancel();
  running?.abort();
  count = k;
  writeAddress({ q: query() });
  document.title = query() ? `${query()} · vidqa` : "vidqa";
  const wanted = filters();
  // Words in subtitles are a search of their own.
  const asked = query() || (image ? "" : (wanted.text ?? ""));
  const empty = !asked && !image;
  results.hidden = empty;
  byId("library").hidden = !empty;
  if (empty) {
    results.replaceChildren();
    emit("heat", []);
    return;
  }
  const mine = (running = new AbortController());
  if (results.querySelector(".cards")) results.classList.add("stale");
  else results.replaceChildren(skeletonCards());
  try {
    const body = { query: asked, image, k, filters: wanted, library: currentLibrary(), heat: true };
    const found = await json("v1/search", { method: "POST", body, signal: mine.signal });
    if (running === mine) show(found);
  } catch (error) {
    if (running === mine && error.name !== "AbortError") showError(error);
  } finally {
    if (running === mine) results.classList.remove("stale");
  }
}

function show({ moments, heat }) {
  emit("heat", heat ?? []);
  if (!moments.length) {
    say(byId("status"), "nothing_found");
    results.replaceChildren(h("div", { class: "empty" },
      h("h2", { say: "nothing_found" }), h("p", { say: "nothing_found_next" })));
    return;
  }
  const best = Math.max(...moments.map((moment) => moment.score));
  const cards = h("ul", { class: "cards" }, ...moments.map((moment) => momentCard(moment, best)));
  roving(cards);
  const videos = new Set(moments.map((moment) => moment.video_id)).size;
  say(byId("status"), "found", { n: moments.length, videos });
  results.replaceChildren(
    h("div", { class: "section-head" }, h("h2", { say: ["found", { n: moments.length, videos }] })),
    ...(heat?.length ? heatStrips(heat, moments) : []),
    cards,
    moments.length >= count && count < MOST
      ? textButton("more_moments", () => searchNow(count + PAGE), "plain more")
      : "");
}

function showError(error) {
  const message = error instanceof ApiError ? error.message : String(error);
  results.replaceChildren(h("div", { class: "empty", role: "alert" },
    h("h2", { say: "search_failed" }), h("p", {}, message),
    textButton("try_again", () => searchNow())));
}

// ---------------------------------------------------------------- a picture as the query

on("image", async (file) => {
  try {
    image = await shrunk(file);
  } catch {
    toast("not_a_picture", { name: file.name ?? "" });
    return;
  }
  showImage();
  emit("edited");
  searchNow();
});

async function shrunk(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, IMAGE_SIDE / Math.max(bitmap.width, bitmap.height));
  const side = (pixels) => Math.max(1, Math.round(pixels * scale));
  const canvas = h("canvas", { width: side(bitmap.width), height: side(bitmap.height) });
  const pen = canvas.getContext("2d");
  // JPEG has no transparency; what shows through is white, as on most pages.
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.9);
}

function showImage() {
  const place = byId("query-image");
  place.hidden = image === null;
  place.replaceChildren(...(image === null ? [] : [
    picture(image, "", { loading: "eager" }),
    iconButton("close", "remove_image", removeImage, "icon"),
  ]));
}

function removeImage() {
  image = null;
  showImage();
  box.focus();
  searchNow();
}

// ---------------------------------------------------------------- what moves it

box.addEventListener("input", () => {
  emit("edited");
  soon();
});
box.addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown") return;
  const first = document.querySelector("#results:not([hidden]) .card-open, #library:not([hidden]) .card-open");
  if (!first) return;
  event.preventDefault();
  first.focus();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!query()) {
    box.focus();
    return;
  }
  if (!running || results.hidden) searchNow();
  emit("ask", { question: query(), image });
});
on("filters", () => searchNow());
on("videos", () => (query() || image) && searchNow(count));
on("library", () => searchNow());
byId("pick-image").addEventListener("click", () => byId("image-file").click());
byId("image-file").addEventListener("change", (event) => {
  if (event.target.files[0]) emit("image", event.target.files[0]);
  event.target.value = "";
});
