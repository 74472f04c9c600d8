// The conversation: a question, what it was understood as, the answer as it comes, its sources.
// Markers such as [2] are buttons that take the player to the moment they name.

import { copy, momentLink } from "./address.js";
import { chat } from "./api.js";
import { emit, on } from "./bus.js";
import { byId, h, picture } from "./dom.js";
import { engine, follow, libraryName, model } from "./engine.js";
import { clip, filters } from "./filters.js";
import { range } from "./format.js";
import { say, sayAttribute } from "./i18n.js";
import { isOpen } from "./player.js";

const MARKER = /\[(\d{1,3})\]/;
// The end of what has come so far may be half a marker.
const HALF_MARKER = /\[\d{0,3}$/;

const section = byId("conversation");
let messages = []; // what the model is told of the conversation so far
let about = {}; // which videos it is about; follow-ups keep that
let running = null;
let turns, followUp;

on("ask", ({ question, image }) => {
  startOver();
  // One clip is asked about as it is; there is nothing left to filter.
  about = { index: libraryName(), ...(clip() ? { clip: clip() } : { filters: filters() }) };
  ask(question, image);
});
on("edited", () => collapse(true));
on("library", close);
on("home", close);

function startOver() {
  running?.abort();
  messages = [];
  turns = h("div", { class: "turns" });
  followUp = h("input", { autocomplete: "off", maxlength: "2000", enterkeyhint: "send", label: "follow_up" });
  sayAttribute(followUp, "placeholder", "follow_up");
  const form = h("form", { class: "follow-up", on: { submit: send } }, followUp, h("button", { class: "plain", type: "submit", say: "ask" }));
  const fold = h("button", { class: "fold", on: { click: () => collapse(!section.classList.contains("folded")) } });
  section.replaceChildren(
    h("header", {}, h("h2", { say: "answer" }), fold,
      h("button", { class: "plain icon", icon: "close", label: "close_answer", hint: "close_answer", on: { click: close } })),
    turns, form);
  section.hidden = false;
  collapse(false);
}

export function close() {
  running?.abort();
  section.hidden = true;
  section.replaceChildren();
}

export const isShown = () => !section.hidden && !section.classList.contains("folded");

/** Folded, the conversation makes room for the results of the next search. */
export function collapse(folded) {
  if (section.hidden) return;
  section.classList.toggle("folded", folded);
  const fold = section.querySelector(".fold");
  fold.setAttribute("aria-expanded", String(!folded));
  fold.textContent = "";
  if (folded) fold.append(turns.lastChild?.querySelector("h3").textContent ?? "");
  else say(fold, "fold");
}

function send(event) {
  event.preventDefault();
  const question = followUp.value.trim();
  if (!question || running) return;
  followUp.value = "";
  ask(question, null);
}

// ---------------------------------------------------------------- one question

async function ask(question, image) {
  const turn = makeTurn(question, image);
  turns.append(turn.node);
  turn.node.scrollIntoView({ block: "nearest" });
  const content = image ? [{ type: "text", text: question }, { type: "image_url", image_url: { url: image } }] : question;
  const asked = [...messages, { role: "user", content }];
  const mine = (running = new AbortController());
  turn.stop.onclick = () => mine.abort();
  const started = performance.now();
  try {
    await answered(turn, asked, mine.signal);
    turn.finish({ seconds: (performance.now() - started) / 1000 });
  } catch (error) {
    if (error.name === "AbortError" || mine.signal.aborted) turn.finish({ stopped: true });
    else turn.fail(error, () => { turn.node.remove(); ask(question, image); });
  }
  // A picture is shown to the model once. A conversation that was given up tells nothing to the next.
  if (turn.text && turn.node.isConnected) messages = [...messages, { role: "user", content: question }, { role: "assistant", content: turn.text }];
  if (running === mine) running = null;
}

/** Streams the answer into the turn; waits for the engine as long as it starts. */
async function answered(turn, asked, signal) {
  for (;;) {
    try {
      for await (const event of chat(bodyFor(asked), signal)) turn.hear(event);
      return;
    } catch (error) {
      if (error.status !== 503 || error.code === "engine_failed" || turn.text) throw error;
      turn.wait();
      await follow();
      turn.wait();
      await pause(error.retrySeconds ?? 3, signal);
    }
  }
}

function bodyFor(asked) {
  // The page lists the sources itself, with pictures.
  return { model: model(), messages: asked, vidqa: { ...about, sources: false } };
}

const pause = (seconds, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, seconds * 1000);
  signal.addEventListener("abort", () => { clearTimeout(timer); reject(new DOMException("", "AbortError")); });
});

// ---------------------------------------------------------------- how it looks

function makeTurn(question, image) {
  const state = h("p", { class: "thinking", role: "status" }, h("span", { class: "dots", "aria-hidden": "true" }), h("span", { say: "thinking_search" }));
  const understood = h("p", { class: "understood", hidden: true });
  const words = h("p", { class: "answer", "aria-live": "polite", "aria-busy": "true" });
  const after = h("div", { class: "after" });
  const stop = h("button", { class: "plain stop", icon: "stop" }, h("span", { say: "stop" }));
  const node = h("article", { class: "turn" },
    h("h3", {}, image ? picture(image, "", { loading: "eager" }) : null, question), understood, words, h("div", { class: "state" }, state, stop), after);
  let moments = [];
  let citations = null;
  let shown = 0;
  const told = state.lastChild;
  const turn = { node, stop, text: "", hear, wait, finish, fail };

  function hear(event) {
    if (event.vidqa?.moments) begin(event.vidqa);
    if (event.citations) citations = event.citations;
    const more = event.choices?.[0]?.delta?.content;
    if (!more) return;
    turn.text += more;
    node.classList.add("talking");
    write(false);
  }
  function begin({ query, moments: given }) {
    moments = given ?? [];
    say(told, "thinking_look", { n: moments.length });
    if (query && query.trim() !== question) {
      understood.hidden = false;
      say(understood, "understood", { query });
    }
    // The first moment stands ready beside the answer where there is room for it.
    if (moments.length && !isOpen() && matchMedia("(min-width: 64rem)").matches) show(moments[0], true);
  }
  function wait() {
    say(told, "thinking_engine", { detail: engine().detail || "" });
  }
  /** Adds what has come since; what is there already keeps its focus. */
  function write(whole) {
    const ready = whole ? turn.text : turn.text.replace(HALF_MARKER, "");
    for (const piece of ready.slice(shown).split(/(\[\d{1,3}\])/)) words.append(asNode(piece));
    shown = Math.max(shown, ready.length);
  }
  function asNode(piece) {
    const n = Number(MARKER.exec(piece)?.[1] ?? 0);
    const moment = moments.find((one) => one.n === n);
    if (!moment) return piece;
    return h("button", {
      class: "marker", label: ["play_source", { n, video: moment.video, time: range(moment.start_seconds, moment.end_seconds) }],
      title: `${moment.video} ${range(moment.start_seconds, moment.end_seconds)}`, on: { click: () => show(moment) },
    }, String(n));
  }
  function end() {
    write(true);
    words.setAttribute("aria-busy", "false");
    node.classList.add("ended");
    state.parentNode.remove();
  }
  function finish({ seconds, stopped }) {
    end();
    const named = new Set([...turn.text.matchAll(/\[(\d{1,3})\]/g)].map((found) => Number(found[1])));
    const cited = moments.filter((moment) => (citations ? citations.some((one) => one.n === moment.n) : named.has(moment.n)));
    const rest = moments.filter((moment) => !cited.includes(moment));
    const remark = stopped ? ["stopped"] : !turn.text.trim() ? ["no_answer"] : !cited.length ? ["no_source", { seconds }] : ["took", { seconds }];
    after.append(h("div", { class: "facts" }, h("span", { say: remark }),
      turn.text.trim() ? h("button", { class: "plain", say: "copy_answer", on: { click: () => copy(quoted(turn.text, cited), "answer_copied") } }) : null));
    if (cited.length) after.append(sources("sources", cited));
    if (rest.length && !stopped) after.append(h("details", {}, h("summary", { say: ["also_seen", { n: rest.length }] }), sources("also_seen_label", rest)));
  }
  function fail(error, again) {
    end();
    after.append(h("div", { class: "failed", role: "alert" },
      h("p", { say: [turn.text ? "answer_broke" : "answer_failed", { message: error.message }] }),
      h("button", { class: "plain", say: "try_again", on: { click: again } })));
  }
  return turn;
}

function show(moment, cue = false) {
  emit("play", { videoId: moment.video_id, start: moment.start_seconds, end: moment.end_seconds, n: moment.n, cue });
}

/** The answer with its sources as links, for a mail or a report. */
function quoted(text, cited) {
  const lines = cited.map((moment) =>
    `[${moment.n}] ${moment.video} ${range(moment.start_seconds, moment.end_seconds)} ${momentLink(moment.video_id, moment.start_seconds)}`);
  return [text.trim(), ...lines].join("\n");
}

function sources(label, moments) {
  return h("ol", { class: "sources", label }, ...moments.map((moment) => {
    const time = range(moment.start_seconds, moment.end_seconds);
    return h("li", {}, h("button", { label: ["play_source", { n: moment.n, video: moment.video, time }], on: { click: () => show(moment) } },
      picture(moment.thumbnail_urls?.[Math.floor(moment.thumbnail_urls.length / 2)], ""),
      h("span", { class: "badge" }, String(moment.n)),
      h("span", { class: "video-name" }, moment.video), h("span", { class: "times" }, time)));
  }));
}
