// What stands below the picture: the timeline with scene marks, the scenes, the tools, the details.

import { clipUrl, videoUrl } from "./api.js";
import { copyLink } from "./address.js";
import { emit } from "./bus.js";
import { confirmDelete } from "./delete.js";
import { h, picture } from "./dom.js";
import { bytes, clock, parseClock, range, tenths } from "./format.js";
import { draw } from "./heat.js";
import { say } from "./i18n.js";
import { limits } from "./engine.js";
import { seekbar } from "./seekbar.js";

// A player that is told to go to a cut says that it stands a little before it.
const CUT_SECONDS = 0.05;

/** The scene that holds a second; the last one for whatever lies beyond. */
export function sceneAt(detail, seconds) {
  return detail.scenes.find((scene) => seconds + CUT_SECONDS < scene.end_seconds) ?? detail.scenes.at(-1);
}

export function timeline(detail, onSeek) {
  const duration = detail.duration_seconds;
  const canvas = h("canvas");
  const head = h("span", { class: "head" });
  const span = h("span", { class: "span", hidden: true });
  const node = h("div", { class: "line timeline", label: "timeline" }, span, canvas, head);
  const setLine = seekbar(node, { videoId: detail.id, duration, onSeek });
  return {
    node,
    set(seconds) {
      head.style.left = `${(100 * Math.min(seconds, duration)) / duration}%`;
      setLine(seconds);
    },
    mark(start, end) {
      span.hidden = end === null;
      if (end === null) return;
      span.style.left = `${(100 * start) / duration}%`;
      span.style.width = `${(100 * (Math.min(end, duration) - start)) / duration}%`;
    },
    paint({ scenes }, heat) {
      const scores = heat?.scores ?? [];
      draw(canvas, { duration, scenes, ...heat, low: Math.min(...scores), high: Math.max(...scores), moments: [] });
    },
  };
}

export function scenesStrip(detail, onOpen) {
  const items = detail.scenes.map((scene) => {
    const time = range(scene.start_seconds, scene.end_seconds);
    const label = ["play_scene", { n: scene.index + 1, time }];
    return h("li", {}, h("button", { label, title: time, on: { click: () => onOpen(scene) } },
      picture(scene.thumbnail_url, ""), h("span", { class: "times" }, clock(scene.start_seconds))));
  });
  const node = h("ol", { class: "scenes", label: ["scenes", { n: items.length }] }, ...items);
  let here = -1;
  return {
    node,
    set(seconds) {
      const at = detail.scenes.indexOf(sceneAt(detail, seconds));
      if (at === here) return;
      items[here]?.firstChild.removeAttribute("aria-current");
      items[at].firstChild.setAttribute("aria-current", "true");
      here = at;
      // Not scrollIntoView, which would move the whole page as well.
      node.scrollLeft = items[at].offsetLeft - node.clientWidth / 2 + items[at].offsetWidth / 2;
    },
  };
}

export function tools(detail, momentNow) {
  const cut = cutter(detail, momentNow);
  const button = (name, key, click) =>
    h("button", { class: "plain", icon: name, on: { click } }, h("span", { say: key }));
  const opener = button("download", "export", () => cut.toggle(opener));
  opener.setAttribute("aria-expanded", "false");
  const node = h("div", { class: "tools" },
    button("bubble", "ask_moment", () => {
      emit("scope", { kind: "clip", videoId: detail.id, video: detail.video, ...momentNow() });
    }),
    button("bubble", "ask_video", () => emit("scope", { kind: "video", videoId: detail.id, video: detail.video })),
    button("link", "copy_link", () => copyLink(detail.id, momentNow().start)),
    opener,
    button("bin", "delete", () => confirmDelete(detail)),
    cut.node);
  return { node, reset: cut.reset };
}

/** Start and end of a clip, and the link that downloads it. */
function cutter(detail, momentNow) {
  const field = () => h("input", { class: "clock", inputmode: "decimal", autocomplete: "off" });
  const [start, end] = [field(), field()];
  const link = h("a", { class: "primary", download: true, icon: "download" }, h("span", { say: "download" }));
  const wrong = h("p", { class: "bad", role: "alert", hidden: true });
  const node = h("div", { class: "cutter", hidden: true },
    h("label", {}, h("span", { say: "start" }), start),
    h("label", {}, h("span", { say: "end" }), end), link, wrong);

  function check() {
    const [from, to] = [parseClock(start.value), parseClock(end.value)];
    const longest = limits().clip_seconds;
    const bad = from === null || to === null ? ["cut_form"]
      : from >= to || to > detail.duration_seconds + 0.5 ? ["cut_range", { end: clock(detail.duration_seconds) }]
      : longest && to - from > longest ? ["cut_long", { n: longest }]
      : null;
    wrong.hidden = bad === null;
    if (bad) {
      say(wrong, ...bad);
      link.removeAttribute("href");
    } else link.href = clipUrl(detail.id, from, Math.min(to, detail.duration_seconds));
    link.classList.toggle("off", bad !== null);
  }
  function reset() {
    if (node.hidden) return;
    const moment = momentNow();
    start.value = tenths(moment.start);
    end.value = tenths(Math.min(moment.end, detail.duration_seconds));
    check();
  }
  for (const field of [start, end]) field.addEventListener("input", check);
  return {
    node,
    reset,
    toggle(opener) {
      node.hidden = !node.hidden;
      opener.setAttribute("aria-expanded", String(!node.hidden));
      reset();
      if (!node.hidden) start.focus();
    },
  };
}

export function details(detail, onSeek) {
  const fact = (key, value) => [h("dt", { say: key }), h("dd", {}, value)];
  const words = detail.texts.map((text) =>
    h("li", {}, h("button", { on: { click: () => onSeek(text.start_seconds) } },
      h("span", { class: "times" }, clock(text.start_seconds)), text.text)));
  const spoken = h("details", {},
    h("summary", { say: ["words", { n: words.length }] }), h("ol", { class: "words" }, ...words));
  return h("div", { class: "details" },
    words.length > 0 && spoken,
    h("details", {}, h("summary", { say: "about_file" }),
      h("dl", {},
        ...fact("length", clock(detail.duration_seconds)),
        ...fact("picture", `${detail.width} × ${detail.height}, ${Math.round(detail.fps * 100) / 100} fps`),
        ...fact("codec", detail.codec), ...fact("size", bytes(detail.size_bytes)),
        ...fact("added", String(detail.ingested_at).slice(0, 10))),
      h("a", { class: "plain", href: videoUrl(detail.id, "/stream"), download: detail.video, say: "download_file" })));
}
