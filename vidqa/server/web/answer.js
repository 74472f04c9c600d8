// The conversation: sends questions with what was said before, streams the answers, and keeps what
// the next question needs. How a question and its answer look is in turn.js.

import { chat } from "./api.js";
import { on } from "./bus.js";
import { byId, h, iconButton } from "./dom.js";
import { follow, libraryName, model } from "./engine.js";
import { clip, filters } from "./filters.js";
import { say, sayAttribute } from "./i18n.js";
import { makeTurn } from "./turn.js";

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
  const form = h("form", { class: "follow-up", on: { submit: send } },
    followUp, h("button", { class: "plain", type: "submit", say: "ask" }));
  const fold = h("button", { class: "fold", on: { click: () => collapse(!section.classList.contains("folded")) } });
  section.replaceChildren(
    h("header", {}, h("h2", { say: "answer" }), fold, iconButton("close", "close_answer", close)),
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
  const seen = image && [{ type: "text", text: question }, { type: "image_url", image_url: { url: image } }];
  const asked = [...messages, { role: "user", content: seen ?? question }];
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
  if (turn.text && turn.node.isConnected)
    messages.push({ role: "user", content: question }, { role: "assistant", content: turn.text });
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
