// The player: shows a video at a moment. When the browser cannot play the file it plays the
// server's clip of the moment, and when there is none either it leafs through the kept frames.
//
// Times are always seconds of the whole video; a clip starts at `offset`.

import { clipUrl, frameUrl, json, request, videoUrl } from "./api.js";
import { addressTime, writeAddress } from "./address.js";
import { emit, on } from "./bus.js";
import { byId, h, iconButton, picture } from "./dom.js";
import { clock } from "./format.js";
import { say, sayAttribute } from "./i18n.js";
import { limits } from "./engine.js";
import { controls, keyAction } from "./player_controls.js";
import { details, sceneAt, scenesStrip, timeline, tools } from "./player_parts.js";

const panel = byId("player");
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
  parts.big = iconButton("play", "play", toggle, "big-play");
  parts.big.tabIndex = -1; // the row below has the same for keys
  parts.screen = h("div", { class: "screen", tabindex: "0", role: "group", label: "screen" },
    parts.video, parts.frame, parts.wait, parts.big);
  parts.note = h("p", { class: "note", role: "status", hidden: true });
  parts.controls = controls(parts.video, ACTIONS);
  parts.more = h("div", { class: "player-more" }, h("div", { class: "skeleton bones" }));
  listen(parts.video);
  panel.replaceChildren(
    h("header", {}, parts.title, parts.moment, iconButton("close", "close_player", close)),
    parts.screen, parts.controls.node, parts.note, parts.more);
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
  panel.style.setProperty("--ratio", `${detail.width || 16} / ${detail.height || 9}`);
  sayAttribute(parts.screen, "aria-label", "screen_of", { video: detail.video });
  parts.line = timeline(detail, seekTo);
  parts.strip = scenesStrip(detail, ({ start_seconds: start, end_seconds: end }) =>
    play({ videoId: detail.id, start, end, quiet: true }));
  parts.controls.node.before(parts.line.node);
  parts.tools = tools(detail, () => momentNow());
  parts.more.replaceChildren(parts.strip.node, parts.tools.node, details(detail, seekTo));
  parts.line.paint(detail, heatOf(detail.id), opened);
  addSubtitles(detail);
  markMoment();
  moved();
  if (opened.mode === "frames") noteFrames();
  else if (detail.state !== "ready" && opened.mode === "file") fallBack("frames");
}

function problem(error) {
  now.broken = true;
  note("player_problem", { message: error.message });
  now.parts.more.replaceChildren();
}

function note(key, values) {
  say(now.parts.note, key, values);
  now.parts.note.hidden = false;
}

/** Why frames are shown; the browser is to blame only where the file is as it was. */
function noteFrames() {
  const reasons = { "file away": "note_away", "file changed": "note_changed" };
  note(reasons[now.detail?.state] ?? "note_frames");
}

function addSubtitles(detail) {
  if (!detail.texts.length || now.mode !== "file") return;
  now.parts.video.append(h("track", { kind: "subtitles", src: videoUrl(detail.id, "/subtitles.vtt") }));
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
  const follows = () => now.mode !== "frames" && now.want === null;
  for (const type of ["timeupdate", "seeking"])
    heard(type, () => follows() && moved(video.currentTime + now.offset));
  const changes = ["play", "pause", "ended", "volumechange", "waiting", "playing", "canplay", "seeked"];
  for (const type of changes) heard(type, showState);
  // The next clip follows, as the file would go on.
  heard("ended", () => {
    const more = now.mode === "clip" && now.detail && now.clipEnd < now.detail.duration_seconds - 0.1;
    if (more && video.currentTime > 0) seek(now.clipEnd, true);
  });
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
    note("note_clip");
    if (opened.playing) run();
  } catch (error) {
    if (error.name !== "AbortError" && now === opened) failed();
  }
}

/** The moment itself, else the scene at that second; not longer than the server cuts. */
function clipAround(seconds) {
  const scene = now.detail && sceneAt(now.detail, seconds);
  const inMoment = now.end !== null && now.start <= seconds && seconds < now.end;
  const [start, end] = inMoment ? [now.start, now.end]
    : scene ? [scene.start_seconds, scene.end_seconds] : [seconds, seconds + 10];
  const longest = Math.min(CLIP_SECONDS, limits().clip_seconds ?? CLIP_SECONDS);
  const from = seconds < start + longest ? start : seconds;
  return [from, Math.min(end, from + longest)];
}

function failed() {
  if (!now.broken) fallBack(now.mode === "file" ? "clip" : "frames");
}

function fallBack(mode) {
  const playing = now.playing;
  now.at = now.want ?? now.at;
  load(mode);
  if (mode === "frames") noteFrames();
  showCaptions();
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

function seekTo(seconds) {
  const last = Math.max((now.detail?.duration_seconds ?? Infinity) - 0.05, 0);
  seek(Math.min(Math.max(seconds, 0), last), now.playing);
}

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
  const { video, controls: row } = now.parts;
  // The times of the track are those of the file, not of a clip.
  const offered = video.textTracks.length > 0 && now.mode === "file";
  for (const track of video.textTracks) track.mode = captions && offered ? "showing" : "hidden";
  row.showCaptions(offered, captions);
}

// ---------------------------------------------------------------- showing

function moved(seconds = now.at) {
  now.at = seconds;
  const { parts, detail } = now;
  if (now.mode === "frames") {
    const url = frameUrl(now.videoId, seconds);
    if (parts.frame.getAttribute("src") !== url) parts.frame.src = url;
  }
  parts.controls.showTime(detail ? `${clock(seconds)} / ${clock(detail.duration_seconds)}` : clock(seconds));
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
  parts.controls.showState(playing);
  parts.big.hidden = playing;
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

const ACTIONS = { toggle, step, fullscreen, captions: toggleCaptions, skip: (seconds) => seekTo(now.at + seconds) };

panel.addEventListener("keydown", (event) => {
  if (!now || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.target.closest("input, select, textarea, summary")) return;
  const onButton = event.target.closest("button, a") && (event.key === " " || event.key === "Enter");
  const act = keyAction(event, now.parts.video, ACTIONS);
  if (!act || onButton) return;
  event.preventDefault();
  act();
});
