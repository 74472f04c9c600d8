// A moment as a card: its frames (move across them to leaf), where it is, how well it fits. It has
// no number: those belong to the sources of an answer, which are counted apart.

import { emit } from "./bus.js";
import { h, iconButton, picture } from "./dom.js";
import { range } from "./format.js";
import { copyLink } from "./address.js";

/** `best` is the highest score of the list, which fills the bar. */
export function momentCard(moment, best) {
  const start = moment.start_seconds;
  const time = range(start, moment.end_seconds);
  const share = best > 0 ? Math.max(moment.score, 0) / best : 0;
  const fill = h("i");
  fill.style.width = `${Math.round(100 * share)}%`;
  const open = h("button", {
    class: "card-open", label: ["play_moment", { video: moment.video, time }],
    on: { click: () => emit("play", { videoId: moment.video_id, start, end: moment.end_seconds }) },
  }, ...frames(moment));
  return h("li", { class: "card", data: { video: moment.video_id, start: String(start) } },
    open,
    h("div", { class: "card-text" },
      h("span", { class: "video-name", title: moment.video }, moment.video),
      h("span", { class: "times" }, time),
      h("span", { class: "score", hint: "score_hint" },
        h("span", { class: "meter", "aria-hidden": "true" }, fill), moment.score.toFixed(3)),
      moment.texts.length ? h("q", {}, moment.texts.map((text) => text.text).join(" ")) : null),
    h("div", { class: "card-tools" },
      iconButton("bubble", "ask_moment", () => askAbout(moment), "icon"),
      iconButton("link", "copy_link", () => copyLink(moment.video_id, start), "icon")));
}

function askAbout({ video_id: videoId, video, start_seconds: start, end_seconds: end }) {
  emit("scope", { kind: "clip", videoId, video, start, end });
}

/** What stands where cards will be. */
export function skeletonCards(count = 8) {
  const bones = Array.from({ length: count }, () =>
    h("li", { class: "card skeleton" }, h("span", { class: "frames" }), h("div", { class: "card-text" })));
  return h("ul", { class: "cards", "aria-hidden": "true" }, ...bones);
}

let shape = 16 / 9;

/** Places for pictures take the shape that most videos of the library have. */
export function takeShape(videos) {
  const counts = new Map();
  for (const { width, height } of videos) {
    const one = Math.round((20 * width) / height) / 20;
    counts.set(one, (counts.get(one) ?? 0) + 1);
  }
  const [most] = [...counts].sort((a, b) => b[1] - a[1])[0] ?? [shape];
  shape = Math.min(Math.max(most, 4 / 3), 16 / 9);
  document.documentElement.style.setProperty("--shape", shape);
}

/** A picture of quite another shape is shown whole, with room beside it. */
export function fitShape(image) {
  image.addEventListener("load", () => {
    const own = image.naturalWidth / image.naturalHeight;
    image.classList.toggle("whole", Math.abs(own / shape - 1) > 0.15);
  });
  return image;
}

/** The middle frame at rest; moving across the picture leafs through all of them. */
function frames(moment) {
  const urls = moment.thumbnail_urls;
  const rest = Math.floor(urls.length / 2);
  const image = fitShape(picture(urls[rest], ""));
  const ticks = h("span", { class: "ticks" }, ...urls.map(() => h("i")));
  const box = h("span", { class: "frames" }, image, urls.length > 1 ? ticks : null);
  let shown = rest;
  const show = (at) => {
    if (at === shown) return;
    ticks.children[shown]?.classList.remove("on");
    shown = at;
    image.src = urls[at];
    ticks.children[at]?.classList.toggle("on", at !== rest || box.matches(":hover"));
  };
  box.addEventListener("pointerenter", () => urls.forEach((url) => (new Image().src = url)), { once: true });
  box.addEventListener("pointermove", (event) => {
    const place = box.getBoundingClientRect();
    const at = Math.floor(((event.clientX - place.left) / place.width) * urls.length);
    show(Math.min(urls.length - 1, Math.max(0, at)));
  });
  box.addEventListener("pointerleave", () => show(rest));
  return [box];
}

/** Arrow keys move through a grid of cards; one card at a time is in the tab order. */
export function roving(list, selector = ".card-open") {
  const all = () => [...list.querySelectorAll(selector)];
  const enter = (node) => all().forEach((one) => (one.tabIndex = one === node ? 0 : -1));
  enter(all()[0]);
  list.addEventListener("focusin", (event) => event.target.matches(selector) && enter(event.target));
  list.addEventListener("keydown", (event) => {
    if (!event.target.matches(selector) || event.altKey || event.ctrlKey || event.metaKey) return;
    const cards = all();
    const at = cards.indexOf(event.target);
    const tops = cards.map((one) => one.getBoundingClientRect().top);
    const across = tops.filter((top) => Math.abs(top - tops[0]) < 4).length || 1;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    if (!step) return;
    event.preventDefault();
    const to = at + step;
    if (to < 0) document.getElementById("query").focus();
    else (cards[to] ?? cards.at(-1)).focus();
  });
}
