// Shortcuts of the whole page; those of the player are in player.js. `?` shows them all.

import * as answer from "./answer.js";
import { byId, h } from "./dom.js";
import { say } from "./i18n.js";
import * as player from "./player.js";
import { clearQuery, query } from "./search.js";

const SHORTCUTS = [
  ["/", "key_box"], ["Enter", "key_ask"], ["↓ ← → ↑", "key_cards"], ["Esc", "key_close"],
  ["Space", "key_play"], ["← →", "key_skip"], ["[ ]", "key_scene"], ["↑ ↓", "key_volume"],
  ["m", "key_mute"], ["c", "key_captions"], ["f", "key_fullscreen"], ["?", "key_help"],
];

const inField = (event) => event.target.closest("input, textarea, select");

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") escape(event);
  else if (inField(event)) return;
  else if (event.key === "/") {
    event.preventDefault();
    byId("query").focus();
    byId("query").select();
  } else if (event.key === "?") showHelp();
});

/** Closes what was opened last: the player, then the answer, then the search. */
function escape(event) {
  if (document.fullscreenElement) return;
  event.preventDefault();
  if (player.isOpen()) player.close();
  else if (answer.isShown()) answer.close();
  else if (query()) clearQuery();
}

export function showHelp() {
  byId("shortcuts").replaceChildren(...SHORTCUTS.flatMap(([keys, key]) => [
    h("dt", {}, ...keys.split(" ").map((one) => h("kbd", {}, one))), say(h("dd"), key),
  ]));
  byId("help-dialog").showModal();
}
byId("help").addEventListener("click", showHelp);
