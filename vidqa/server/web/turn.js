// One question and its answer as they look: what it was understood as, the words as they come, the
// sources. Markers such as [2] are buttons that take the player to the moment they name.

import { copy, momentLink } from "./address.js";
import { emit } from "./bus.js";
import { h, picture, textButton } from "./dom.js";
import { engine } from "./engine.js";
import { range } from "./format.js";
import { say } from "./i18n.js";
import { isOpen } from "./player.js";

const MARKERS = /\[(\d{1,3})\]/g;
// The end of what has come so far may be half a marker.
const HALF_MARKER = /\[\d{0,3}$/;
const WIDE = matchMedia("(min-width: 64rem)");

/**
 * `hear(event)` takes the events of a stream; `wait()` says that the engine is not ready;
 * `finish` or `fail` ends it. `text` is what has been answered, `stop` the button for that.
 */
export function makeTurn(question, image) {
  const told = h("span", { say: "thinking_search" });
  const understood = h("p", { class: "understood", hidden: true });
  const words = h("p", { class: "answer", "aria-live": "polite", "aria-busy": "true" });
  const stop = h("button", { class: "plain stop", icon: "stop" }, h("span", { say: "stop" }));
  const state = h("div", { class: "state" },
    h("p", { class: "thinking", role: "status" }, h("span", { class: "dots", "aria-hidden": "true" }), told), stop);
  const node = h("article", { class: "turn" },
    h("h3", {}, image && picture(image, "", { loading: "eager" }), question), understood, words, state);
  const turn = { node, stop, text: "", hear, wait, finish, fail };
  let moments = [];
  let citations = null;
  let shown = 0;

  function hear(event) {
    if (event.vidqa?.moments) begin(event.vidqa);
    if (event.citations) citations = event.citations;
    const more = event.choices?.[0]?.delta?.content;
    if (!more) return;
    turn.text += more;
    node.classList.add("talking");
    write(turn.text.replace(HALF_MARKER, ""));
  }
  function begin({ query, moments: given }) {
    moments = given;
    say(told, "thinking_look", { n: moments.length });
    understood.hidden = !query || query.trim() === question;
    say(understood, "understood", { query });
    // The first moment stands ready beside the answer where there is room for it.
    if (moments.length && !isOpen() && WIDE.matches) show(moments[0], true);
  }
  function wait() {
    say(told, "thinking_engine", { detail: engine().detail || "" });
  }
  /** Adds what has come since; what is there already keeps its focus. */
  function write(text) {
    let at = shown;
    for (const found of text.matchAll(MARKERS)) {
      if (found.index < shown) continue;
      const moment = moments.find((one) => one.n === Number(found[1]));
      if (!moment) continue;
      words.append(text.slice(at, found.index), marker(moment));
      at = found.index + found[0].length;
    }
    words.append(text.slice(at));
    shown = Math.max(shown, text.length);
  }
  function end() {
    write(turn.text);
    words.setAttribute("aria-busy", "false");
    node.classList.add("ended");
    state.remove();
  }
  function finish({ seconds, stopped }) {
    end();
    const named = citations ?? [...turn.text.matchAll(MARKERS)].map((found) => ({ n: Number(found[1]) }));
    const cited = moments.filter((moment) => named.some((one) => one.n === moment.n));
    const rest = moments.filter((moment) => !cited.includes(moment));
    const answered = turn.text.trim() !== "";
    const remark = stopped ? "stopped" : !answered ? "no_answer" : cited.length ? "took" : "no_source";
    const copied = () => copy(quoted(turn.text, cited), "answer_copied");
    node.append(h("div", { class: "facts" }, h("span", { say: [remark, { seconds }] }),
      answered && textButton("copy_answer", copied)));
    if (cited.length) node.append(sources("sources", cited));
    if (rest.length && !stopped)
      node.append(h("details", {}, h("summary", { say: ["also_seen", { n: rest.length }] }),
        sources("also_seen_label", rest)));
  }
  function fail({ message }, again) {
    end();
    node.append(h("div", { class: "failed", role: "alert" },
      h("p", { say: [turn.text ? "answer_broke" : "answer_failed", { message }] }),
      textButton("try_again", again)));
  }
  return turn;
}

const timeOf = (moment) => range(moment.start_seconds, moment.end_seconds);

function show({ video_id: videoId, start_seconds: start, end_seconds: end, n }, cue = false) {
  emit("play", { videoId, start, end, n, cue });
}

const played = (moment) => ["play_source", { n: moment.n, video: moment.video, time: timeOf(moment) }];

function marker(moment) {
  const title = `${moment.video} ${timeOf(moment)}`;
  return h("button", { class: "marker", label: played(moment), title, on: { click: () => show(moment) } },
    String(moment.n));
}

function sources(label, moments) {
  return h("ol", { class: "sources", label }, ...moments.map((moment) => {
    const urls = moment.thumbnail_urls;
    return h("li", {}, h("button", { label: played(moment), on: { click: () => show(moment) } },
      picture(urls[Math.floor(urls.length / 2)], ""),
      h("span", { class: "badge" }, String(moment.n)),
      h("span", { class: "video-name" }, moment.video), h("span", { class: "times" }, timeOf(moment))));
  }));
}

/** The answer with its sources as links, for a mail or a report. */
function quoted(text, cited) {
  const link = (moment) => momentLink(moment.video_id, moment.start_seconds);
  const lines = cited.map((moment) => `[${moment.n}] ${moment.video} ${timeOf(moment)} ${link(moment)}`);
  return [text.trim(), ...lines].join("\n");
}
