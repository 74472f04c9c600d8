// The row of buttons below the picture, and the player's keys.

import { h, iconButton } from "./dom.js";
import { sayAttribute } from "./i18n.js";
import { icon } from "./icons.js";

const SPEEDS = [0.25, 0.5, 1, 1.5, 2];
const SKIP_SECONDS = 5;
const VOLUME_STEP = 0.1;

/** `act`: toggle, step(by), skip(seconds), captions, fullscreen. */
export function controls(video, act) {
  const play = iconButton("play", "play", act.toggle);
  const time = h("span", { class: "times", "aria-hidden": "true" });
  const mute = iconButton("sound", "mute", () => (video.muted = !video.muted));
  const captions = iconButton("captions", "captions", act.captions);
  captions.hidden = true;
  const speed = h("select", {
    label: "speed", hint: "speed", on: { change: () => (video.playbackRate = Number(speed.value)) },
  }, ...SPEEDS.map((rate) => h("option", { value: rate, selected: rate === 1 }, `${rate}×`)));
  const node = h("div", { class: "controls" },
    iconButton("previous", "scene_before", () => act.step(-1)), play,
    iconButton("next", "scene_after", () => act.step(1)), time,
    h("span", { class: "gap" }), speed, captions, mute,
    iconButton("fullscreen", "fullscreen", act.fullscreen));

  function showState(playing) {
    play.replaceChildren(icon(playing ? "pause" : "play"));
    for (const name of ["aria-label", "title"]) sayAttribute(play, name, playing ? "pause" : "play");
    mute.replaceChildren(icon(video.muted ? "mute" : "sound"));
    mute.setAttribute("aria-pressed", String(video.muted));
  }
  function showCaptions(offered, shown) {
    captions.hidden = !offered;
    captions.setAttribute("aria-pressed", String(shown));
  }
  return { node, showState, showCaptions, showTime: (text) => (time.textContent = text) };
}

/** What a key does in the player, or undefined. */
export function keyAction({ key }, video, act) {
  return {
    " ": act.toggle, k: act.toggle, f: act.fullscreen, c: act.captions,
    m: () => (video.muted = !video.muted),
    "[": () => act.step(-1), "]": () => act.step(1),
    ArrowLeft: () => act.skip(-SKIP_SECONDS), ArrowRight: () => act.skip(SKIP_SECONDS),
    ArrowUp: () => (video.volume = Math.min(1, video.volume + VOLUME_STEP)),
    ArrowDown: () => (video.volume = Math.max(0, video.volume - VOLUME_STEP)),
  }[key];
}
