// A line of time that can be clicked, dragged and moved along with keys: the heat strips and the
// player's timeline are both one. Hovering shows the frame of that second.

import { frameUrl } from "./api.js";
import { byId, debounce, h, picture } from "./dom.js";
import { clock } from "./format.js";

// Less may be the start of a swipe that scrolls the page.
const DRAG_PIXELS = 10;

/** `onSeek(seconds)`; returns `set(seconds)`, which tells screen readers where the line stands. */
export function seekbar(node, { videoId, duration, onSeek, step = 1 }) {
  let now = 0;
  let pressedAt = 0;
  node.tabIndex = 0;
  node.setAttribute("role", "slider");
  node.setAttribute("aria-valuemin", "0");
  node.setAttribute("aria-valuemax", String(Math.round(duration)));

  function set(seconds) {
    now = Math.min(Math.max(seconds, 0), duration);
    node.setAttribute("aria-valuenow", String(Math.round(now)));
    node.setAttribute("aria-valuetext", `${clock(now)} / ${clock(duration)}`);
  }
  const secondsAt = (event) => {
    const box = node.getBoundingClientRect();
    return (Math.min(Math.max(event.clientX - box.left, 0), box.width) / box.width) * duration;
  };
  const seek = (seconds) => {
    set(seconds);
    onSeek(now);
  };

  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    node.setPointerCapture(event.pointerId);
    pressedAt = event.clientX;
    // A finger may only be about to scroll; when it was not, a click follows.
    if (event.pointerType === "mouse") seek(secondsAt(event));
  });
  node.addEventListener("click", (event) => event.pointerType !== "mouse" && seek(secondsAt(event)));
  node.addEventListener("pointermove", (event) => {
    const mouse = event.pointerType === "mouse";
    const dragged = mouse || Math.abs(event.clientX - pressedAt) > DRAG_PIXELS;
    if (event.buttons & 1 && node.hasPointerCapture(event.pointerId)) dragged && seek(secondsAt(event));
    else if (mouse) showTip(node, event.clientX, videoId, secondsAt(event));
  });
  for (const type of ["pointerleave", "pointerdown", "blur"]) node.addEventListener(type, hideTip);
  node.addEventListener("keydown", (event) => {
    const big = Math.max(step, duration / 10);
    const to = {
      ArrowLeft: now - step, ArrowRight: now + step, ArrowDown: now - step, ArrowUp: now + step,
      PageDown: now - big, PageUp: now + big, Home: 0, End: duration,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) {
      if (event.key === "Enter") seek(now);
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    seek(to);
  });
  set(0);
  return set;
}

// ---------------------------------------------------------------- the frame under the pointer

let tip = null;
const loadFrame = debounce((url) => tip && (tip.image.src = url), 60);

function showTip(node, x, videoId, seconds) {
  if (!tip) {
    const image = picture(null, "");
    const time = h("span");
    tip = { image, time, box: h("div", { class: "tip", "aria-hidden": "true" }, image, time) };
    byId("columns").append(tip.box);
  }
  const box = node.getBoundingClientRect();
  tip.box.hidden = false;
  tip.time.textContent = clock(seconds);
  const half = tip.box.offsetWidth / 2;
  tip.box.style.left = `${Math.min(Math.max(x, half + 4), innerWidth - half - 4)}px`;
  const above = box.top - tip.box.offsetHeight - 8;
  tip.box.style.top = `${above > 0 ? above : box.bottom + 8}px`;
  // Half seconds are as fine as frames are kept, and let the browser's cache help.
  loadFrame(frameUrl(videoId, Math.round(seconds * 2) / 2));
}

function hideTip() {
  loadFrame.cancel();
  if (tip) tip.box.hidden = true;
}
