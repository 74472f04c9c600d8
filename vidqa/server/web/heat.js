// Relevance over time: one strip for each video of the results, as high and as strong as the
// frames of that second fit the query. A click plays from there.

import { emit, on } from "./bus.js";
import { h } from "./dom.js";
import { clock } from "./format.js";
import { seekbar } from "./seekbar.js";

const drawn = new Set();

/** All strips share one scale, so that a video where nothing fits looks like one. */
export function heatStrips(rows, moments) {
  const scores = rows.flatMap((row) => row.scores);
  const scale = { low: quantile(scores, 0.4), high: Math.max(...scores, 0) };
  const shown = innerWidth < 640 ? 3 : 5;
  const list = h("ul", { class: "heat" });
  const add = (some) => list.append(...some.map((row) => strip(row, scale, moments)));
  add(rows.slice(0, shown));
  if (rows.length <= shown) return [list];
  const more = h("button", {
    class: "plain more", say: ["more_strips", { n: rows.length - shown }],
    on: { click: () => { more.remove(); add(rows.slice(shown)); } },
  });
  return [list, more];
}

// Below this most frames lie: a strip of noise would hide where something is.
function quantile(values, part) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor((sorted.length - 1) * part)] : 0;
}

function strip(row, scale, moments) {
  const canvas = h("canvas");
  const head = h("span", { class: "head", hidden: true });
  const line = h("div", { class: "line", label: ["heat_label", { video: row.video }] }, canvas, head);
  const own = moments.filter((moment) => moment.video_id === row.video_id);
  const play = (seconds) => {
    const inside = own.find((moment) => moment.start_seconds <= seconds && seconds < moment.end_seconds);
    emit("play", { videoId: row.video_id, start: seconds, end: inside?.end_seconds ?? null, quiet: true });
  };
  const set = seekbar(line, { videoId: row.video_id, duration: row.duration_seconds, onSeek: play });
  head.at = (at) => {
    head.hidden = at?.videoId !== row.video_id;
    if (head.hidden) return;
    head.style.left = `${(100 * at.seconds) / row.duration_seconds}%`;
    set(at.seconds);
  };
  draw(canvas, { ...row, duration: row.duration_seconds, ...scale, moments: own });
  return h("li", {},
    h("span", { class: "video-name", title: row.video }, row.video),
    line,
    h("span", { class: "times" }, clock(row.duration_seconds)));
}

for (const name of ["at", "player-closed"])
  on(name, (at) => document.querySelectorAll(".heat .head").forEach((head) => head.at?.(at)));

// ---------------------------------------------------------------- drawing

/**
 * Draws on a canvas and keeps it sharp in its size and in the theme's colours.
 *
 * `what`: duration, seconds and scores (of frames), low and high (of the scale), moments (marked
 * below), scenes (their borders, as fine lines).
 */
export function draw(canvas, what) {
  canvas.paint = () => paint(canvas, what);
  canvas.paint();
  drawn.add(canvas);
  sizes.observe(canvas);
}

function repaint() {
  for (const canvas of drawn) {
    if (canvas.isConnected) canvas.paint();
    else {
      drawn.delete(canvas);
      sizes.unobserve(canvas);
    }
  }
}
const sizes = new ResizeObserver((entries) => entries.forEach(({ target }) => target.paint()));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);

/** Many are drawn faintly, and none where it would touch its neighbour. */
function marks(pen, places, colour, high) {
  pen.fillStyle = colour;
  pen.globalAlpha = Math.min(1, Math.max(0.35, pen.canvas.clientWidth / ((places.length || 1) * 12)));
  let last = -Infinity;
  for (const place of places) {
    if (place - last < 4) continue;
    pen.fillRect(place - 0.5, 0, 1, high);
    last = place;
  }
  pen.globalAlpha = 1;
}

function paint(canvas, what) {
  const { clientWidth: wide, clientHeight: high } = canvas;
  if (!wide || !high) return;
  const sharp = Math.min(devicePixelRatio || 1, 3);
  canvas.width = Math.round(wide * sharp);
  canvas.height = Math.round(high * sharp);
  const pen = canvas.getContext("2d");
  pen.scale(sharp, sharp);
  const colour = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  const x = (seconds) => (seconds / what.duration) * wide;

  pen.fillStyle = colour("--accent");
  const count = what.seconds?.length ?? 0;
  for (let at = 0; at < count; at += 1) {
    const share = Math.min(Math.max((what.scores[at] - what.low) / (what.high - what.low || 1), 0), 1);
    // A frame stands for the time halfway to its neighbours.
    const left = at ? (what.seconds[at - 1] + what.seconds[at]) / 2 : 0;
    const right = at + 1 < count ? (what.seconds[at] + what.seconds[at + 1]) / 2 : what.duration;
    if (share === 0) continue;
    pen.globalAlpha = 0.2 + 0.7 * share;
    const tall = Math.max(1, share * (high - 4));
    // On whole pixels, or fine seams would show between neighbours.
    const from = Math.round(x(left) * sharp) / sharp;
    pen.fillRect(from, high - 3 - tall, Math.max(Math.round(x(right) * sharp) / sharp - from, 1 / sharp), tall);
  }
  pen.globalAlpha = 1;
  for (const moment of what.moments ?? []) {
    const left = x(moment.start_seconds) + 0.5;
    pen.fillRect(left, high - 2, Math.max(x(moment.end_seconds) - 0.5 - left, 2), 2);
  }
  marks(pen, (what.scenes ?? []).slice(1).map((scene) => x(scene.start_seconds)), colour("--mark"), high);
}
