// The player: shows a video at a moment. When the browser cannot play the file it plays the
// server's clip of the moment, and when there is none either it leafs through the kept frames.
//
// Times are always seconds of the whole video; a clip starts at `offset`.

import { clipUrl, frameUrl, json, request, videoUrl } from "./api.js";
import { addressTime, writeAddress } from "./address.js";
import { emit, on } from "./bus.js";
import { byId, h, picture } from "./dom.js";
import { clock } from "./format.js";
import { say, sayAttribute } from "./i18n.js";
import { icon } from "./icons.js";
import { limits } from "./engine.js";
import { details, sceneAt, scenesStrip, timeline, tools } from "./player_parts.js";

const panel = byId("player");
const SKIP_SECONDS = 5;
// A clip may have to be encoded while one waits.
const CLIP_SECONDS = 60;
// In place of a video: two frames a second, as they are kept.
const LEAF_SECONDS = 0.5;

let now = null; // what is open: {videoId, start, end, n, detail, mode, offset, at, want, parts}
let opener = null;
let captions = true;
let leafing = 0;

export const isOpen = () => now !== null;
export const openVideo = () => now?.videoId ?? null;

on("play", play);
on("deleted", (id) => now?.videoId === id && close());
on("heat", (rows) => {
  heat = rows;
  now?.parts.line?.paint(now.detail, heatOf(now.videoId), now);
});
let heat = [];
const heatOf = (videoId) => heat.find((row) => row.video_id === videoId);

/** Shows a moment; see bus.js. */
function play({ videoId, start = 0, end = null, n = null, cue = false, quiet = false }) {
  const same = now?.videoId === videoId;
  if (!now) opener = document.activeElement;
  if (!same) build(videoId);
  Object.assign(now, { start, end, n });
  seek(start, !cue);
  markMoment();
  writeAddress({ video: videoId, t: addressTime(start) }, !same && !cue);
  if (quiet || cue) return;
  now.parts.screen.focus({ preventScroll: true });
  // On a narrow screen the player may be far above the card.
  const { top, bottom } = now.parts.screen.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight)
    panel.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
}

export function close() {
  if (!now) return;
  leave();
  now = null;
  panel.hidden = true;
  panel.replaceChildren();
  byId("columns").classList.remove("with-player");
  emit("player-closed");
  (opener?.isConnected ? opener : byId("query")).focus?.({ preventScroll: true });
}

function leave() {
  stopLeafing();
  now.fetching?.abort();
  URL.revokeObjectURL(now.blob);
  unload(now.parts.video);
}

function unload(video) {
  video.pause();
  video.removeAttribute("src");
  video.load();
}

// ---------------------------------------------------------------- building

function build(videoId) {
  if (now) leave();
  const parts = {};
  now = { videoId, start: 0, end: null, n: null, detail: null, mode: "file", offset: 0, at: 0, want: null, parts };
  parts.title = h("h2", { class: "video-name" }, "\u00a0");
  parts.moment = h("span", { class: "times" });
  parts.video = h("video", { playsinline: true, preload: "metadata" });
  parts.frame = picture(null, "", { class: "frame", hidden: true });
  parts.wait = h("span", { class: "wait", hidden: true });
  parts.big = h("button", { class: "big-play", icon: "play", label: "play", tabindex: "-1", on: { click: toggle } });
  parts.screen = h("div", { class: "screen", tabindex: "0", role: "group", label: "screen" }, parts.video, parts.frame, parts.wait, parts.big);
  parts.note = h("p", { class: "note", role: "status", hidden: true });
  parts.controls = controls(parts);
  parts.more = h("div", { class: "player-more" }, h("div", { class: "skeleton bones" }));
  listen(parts.video);
  panel.replaceChildren(
    h("header", {}, parts.title, parts.moment,
      h("button", { class: "plain icon", icon: "close", label: "close_player", hint: "close_player", on: { click: close } })),
    parts.screen, parts.controls, parts.note, parts.more);
  panel.hidden = false;
  byId("columns").classList.add("with-player");
  load("file");
  describe(now);
}

/** What the server knows of the video comes in after it has begun to play. */
async function describe(opened) {
  let detail;
  try {
    detail = await json(videoUrl(opened.videoId));
  } catch (error) {
    if (now === opened) problem(error);
    return;
  }
  if (now !== opened) return;
  const { parts } = opened;
  opened.detail = detail;
  parts.title.textContent = detail.video;
  parts.title.title = detail.video;
  parts.screen.style.setProperty("--ratio", `${detail.width || 16} / ${detail.height || 9}`);
  sayAttribute(parts.screen, "aria-label", "screen_of", { video: detail.video });
  parts.line = timeline(detail, seekTo);
  parts.strip = scenesStrip(detail, (scene) => play({ videoId: detail.id, start: scene.start_seconds, end: scene.end_seconds, quiet: true }));
  parts.controls.before(parts.line.node);
  parts.tools = tools(detail, () => momentNow());
  parts.more.replaceChildren(parts.strip.node, parts.tools.node, details(detail, seekTo));
  parts.line.paint(detail, heatOf(detail.id), opened);
  addSubtitles(detail);
  markMoment();
  moved();
  if (detail.state !== "ready" && opened.mode === "file") fallBack("frames");
}

function problem(error) {
  say(now.parts.note, "player_problem", { message: error.message });
  now.parts.note.hidden = false;
  now.parts.more.replaceChildren();
}

function controls(parts) {
  const button = (name, label, click) => h("button", { class: "plain icon", icon: name, label, hint: label, on: { click } });
  parts.play = button("play", "play", toggle);
  parts.time = h("span", { class: "times", "aria-hidden": "true" });
  parts.mute = button("sound", "mute", () => (parts.video.muted = !parts.video.muted));
  parts.captions = button("captions", "captions", toggleCaptions);
  parts.captions.hidden = true;
  parts.speed = h("select", { label: "speed", hint: "speed", on: { change: () => (parts.video.playbackRate = Number(parts.speed.value)) } },
    ...[0.25, 0.5, 1, 1.5, 2].map((rate) => h("option", { value: rate, selected: rate === 1 }, `${rate}×`)));
  return h("div", { class: "controls" },
    button("previous", "scene_before", () => step(-1)), parts.play, button("next", "scene_after", () => step(1)), parts.time,
    h("span", { class: "gap" }), parts.speed, parts.captions, parts.mute,
    button("fullscreen", "fullscreen", fullscreen));
}

function addSubtitles(detail) {
  if (!detail.texts.length || now.mode !== "file") return;
  const { video } = now.parts;
  const track = h("track", { kind: "subtitles", label: "subtitles", src: videoUrl(detail.id, "/subtitles.vtt") });
  video.append(track);
  now.parts.captions.hidden = false;
  showCaptions();
}

// ---------------------------------------------------------------- playing

function listen(video) {
  const mine = () => now?.parts.video === video;
  const heard = (type, act) => video.addEventListener(type, () => mine() && act());
  heard("loadedmetadata", () => {
    // A codec that is not known plays as sound alone.
    if (!video.videoWidth) return failed();
    if (now.want !== null) video.currentTime = now.want - now.offset;
    now.want = null;
    showState();
  });
  heard("error", () => video.hasAttribute("src") && failed());
  for (const type of ["timeupdate", "seeking"]) heard(type, () => now.mode !== "frames" && now.want === null && moved(video.currentTime + now.offset));
  for (const type of ["play", "pause", "ended", "volumechange", "waiting", "playing", "canplay", "seeked"]) heard(type, showState);
  // The next clip follows, as the file would go on.
  heard("ended", () => now.mode === "clip" && video.currentTime > 0 && now.detail && now.clipEnd < now.detail.duration_seconds - 0.1 && seek(now.clipEnd, true));
  video.addEventListener("click", toggle);
}

function load(mode) {
  const { video, frame } = now.parts;
  now.mode = mode;
  frame.hidden = mode !== "frames";
  video.hidden = mode === "frames";
  now.parts.screen.classList.toggle("leafing", mode === "frames");
  if (mode === "file") {
    now.offset = 0;
    video.src = videoUrl(now.videoId, "/stream");
  } else if (mode === "clip") {
    loadClip(now, ...clipAround(now.at));
  } else {
    unload(video);
    moved(now.at);
  }
}

/**
 * A clip is cut when it is asked for, and a player would ask for it again and again, range by
 * range; so it is fetched whole.
 */
async function loadClip(opened, start, end) {
  const { video } = opened.parts;
  Object.assign(opened, { offset: start, clipEnd: end, want: Math.max(opened.at, start) });
  opened.fetching?.abort();
  opened.fetching = new AbortController();
  video.removeAttribute("src");
  try {
    const response = await request(clipUrl(opened.videoId, start, end), { signal: opened.fetching.signal });
    const blob = await response.blob();
    if (now !== opened || opened.clipEnd !== end) return;
    URL.revokeObjectURL(opened.blob);
    video.src = opened.blob = URL.createObjectURL(blob);
    if (opened.playing) run();
  } catch (error) {
    if (error.name !== "AbortError" && now === opened) failed();
  }
}

/** The moment itself, else the scene at that second; not longer than the server cuts. */
function clipAround(seconds) {
  const scene = now.detail && sceneAt(now.detail, seconds);
  const inMoment = now.end !== null && now.start <= seconds && seconds < now.end;
  const [start, end] = inMoment ? [now.start, now.end] : scene ? [scene.start_seconds, scene.end_seconds] : [seconds, seconds + 10];
  const longest = Math.min(CLIP_SECONDS, limits().clip_seconds ?? CLIP_SECONDS);
  const from = seconds < start + longest ? start : seconds;
  return [from, Math.min(end, from + longest)];
}

const failed = () => fallBack(now.mode === "file" ? "clip" : "frames");

function fallBack(mode) {
  const playing = now.playing;
  now.at = now.want ?? now.at;
  load(mode);
  say(now.parts.note, mode === "clip" ? "note_clip" : "note_frames");
  now.parts.note.hidden = false;
  if (mode === "clip") now.parts.captions.hidden = true;
  if (playing) run();
  showState();
}

function seek(seconds, andPlay) {
  now.at = seconds;
  now.want = null;
  const { video } = now.parts;
  if (now.mode === "clip" && (seconds < now.offset || seconds >= now.clipEnd)) load("clip");
  else if (now.mode !== "frames") {
    if (video.readyState > 0) video.currentTime = seconds - now.offset;
    else now.want = seconds;
  }
  moved(seconds);
  if (andPlay) run();
  else now.playing = false;
}

const seekTo = (seconds) => seek(Math.min(Math.max(seconds, 0), Math.max((now.detail?.duration_seconds ?? Infinity) - 0.05, 0)), now.playing);

async function run() {
  now.playing = true;
  if (now.mode === "frames") return startLeafing();
  const { video } = now.parts;
  showState();
  if (!video.hasAttribute("src")) return; // a clip that is on its way starts when it is there
  try {
    await video.play();
  } catch (error) {
    // A link opened from elsewhere may start without sound only.
    if (error.name !== "NotAllowedError" || video.muted) return;
    video.muted = true;
    await video.play().catch(() => null);
  }
}

function pause() {
  now.playing = false;
  stopLeafing();
  now.parts.video.pause();
  showState();
}

const isPlaying = () => {
  const { video } = now.parts;
  if (now.mode === "frames") return leafing !== 0;
  return video.hasAttribute("src") ? !video.paused : now.playing;
};
const toggle = () => now && (isPlaying() ? pause() : run());

function startLeafing() {
  stopLeafing();
  leafing = setInterval(() => {
    const next = now.at + LEAF_SECONDS;
    if (next >= (now.detail?.duration_seconds ?? 0)) pause();
    else moved(next);
  }, LEAF_SECONDS * 1000);
  showState();
}

function stopLeafing() {
  clearInterval(leafing);
  leafing = 0;
}

/** The next scene, or the one before; the start of this one when it is well under way. */
function step(by) {
  if (!now.detail) return;
  const { scenes } = now.detail;
  const at = scenes.indexOf(sceneAt(now.detail, now.at));
  const back = by < 0 && now.at - scenes[at].start_seconds > 1 ? 0 : by;
  const scene = scenes[Math.min(Math.max(at + back, 0), scenes.length - 1)];
  Object.assign(now, { start: scene.start_seconds, end: scene.end_seconds, n: null });
  seek(scene.start_seconds, now.playing);
  markMoment();
}

function fullscreen() {
  const { video } = now.parts;
  if (document.fullscreenElement) document.exitFullscreen();
  else if (video.requestFullscreen) video.requestFullscreen().catch(() => null);
  else video.webkitEnterFullscreen?.();
}
// Alone on the screen, the video needs the browser's own controls.
document.addEventListener("fullscreenchange", () => {
  if (now) now.parts.video.controls = document.fullscreenElement === now.parts.video;
});

function toggleCaptions() {
  captions = !captions;
  showCaptions();
}

function showCaptions() {
  for (const track of now.parts.video.textTracks) track.mode = captions ? "showing" : "hidden";
  now.parts.captions.setAttribute("aria-pressed", String(captions));
}

// ---------------------------------------------------------------- showing

function moved(seconds = now.at) {
  now.at = seconds;
  const { parts, detail } = now;
  if (now.mode === "frames") {
    const url = frameUrl(now.videoId, seconds);
    if (parts.frame.getAttribute("src") !== url) parts.frame.src = url;
  }
  parts.time.textContent = detail ? `${clock(seconds)} / ${clock(detail.duration_seconds)}` : clock(seconds);
  parts.line?.set(seconds);
  parts.strip?.set(seconds);
  emit("at", { videoId: now.videoId, seconds });
}

function markMoment() {
  const { parts, start: from, end, n } = now;
  parts.moment.textContent = end === null ? "" : `${n ? `[${n}] ` : ""}${clock(from)}–${clock(end)}`;
  parts.line?.mark(from, end);
  parts.tools?.reset();
}

function showState() {
  const { parts } = now;
  const playing = isPlaying();
  parts.play.replaceChildren(icon(playing ? "pause" : "play"));
  sayAttribute(parts.play, "aria-label", playing ? "pause" : "play");
  parts.big.hidden = playing;
  parts.mute.replaceChildren(icon(parts.video.muted ? "mute" : "sound"));
  parts.mute.setAttribute("aria-pressed", String(parts.video.muted));
  parts.wait.hidden = now.mode === "frames" || !(playing && parts.video.readyState < 3);
}

/** What "this moment" is right now: the one opened, or the scene where the player has come to. */
function momentNow() {
  const { detail, at, start: from, end } = now;
  if (end !== null && from - 0.5 <= at && at <= end + 0.5) return { start: from, end };
  const scene = sceneAt(detail, at);
  return { start: scene.start_seconds, end: scene.end_seconds };
}

// ---------------------------------------------------------------- keys

panel.addEventListener("keydown", (event) => {
  if (!now || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest("input, select, textarea, summary")) return;
  const onButton = event.target.closest("button, a") && (event.key === " " || event.key === "Enter");
  const { video } = now.parts;
  const act = {
    " ": toggle, k: toggle, f: fullscreen, c: toggleCaptions,
    m: () => (video.muted = !video.muted),
    ArrowLeft: () => seekTo(now.at - SKIP_SECONDS), ArrowRight: () => seekTo(now.at + SKIP_SECONDS),
    ArrowUp: () => (video.volume = Math.min(1, video.volume + 0.1)),
    ArrowDown: () => (video.volume = Math.max(0, video.volume - 0.1)),
    "[": () => step(-1), "]": () => step(1),
  }[event.key];
  if (!act || onButton) return;
  event.preventDefault();
  act();
});
