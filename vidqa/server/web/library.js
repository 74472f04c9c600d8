// The library: its videos, newest first, and the files that could not be taken in.

import { json, path } from "./api.js";
import { emit, on } from "./bus.js";
import { fitShape, roving, skeletonCards, takeShape } from "./cards.js";
import { confirmDelete } from "./delete.js";
import { byId, h, iconButton, picture, textButton } from "./dom.js";
import { filters } from "./filters.js";
import { clock } from "./format.js";

const PAGE = 60;
const section = byId("library");
const ORDERS = {
  newest: (a, b) => String(b.ingested_at).localeCompare(String(a.ingested_at)),
  name: (a, b) => a.video.localeCompare(b.video, undefined, { numeric: true }),
  longest: (a, b) => b.duration_seconds - a.duration_seconds,
};
let order = "newest";
let shown = PAGE;
let listing = null;

export async function refresh() {
  if (!listing) section.replaceChildren(skeletonCards());
  try {
    listing = await all();
    takeShape(listing.data);
    render();
  } catch (error) {
    listing = null;
    section.replaceChildren(h("div", { class: "empty", role: "alert" },
      h("h2", { say: "library_failed" }), h("p", {}, error.message), textButton("try_again", refresh)));
  }
}

async function all() {
  const whole = await json(path("v1/videos"));
  for (let page = whole; page.has_more; whole.data.push(...page.data))
    page = await json(path("v1/videos", { after: page.data.at(-1).id }));
  return whole;
}

function render() {
  const { data, failures } = listing;
  const parts = data.length ? filled(data) : [nothing()];
  section.replaceChildren(...parts, failures.length ? failed(failures) : "");
}

function filled(data) {
  const sorted = data.filter(fits(filters())).sort(ORDERS[order]);
  const seconds = sorted.reduce((sum, video) => sum + video.duration_seconds, 0);
  const list = h("ul", { class: "cards videos" }, ...sorted.slice(0, shown).map(card));
  roving(list);
  const reorder = () => {
    order = choice.value;
    render();
  };
  const choice = h("select", { label: "order", on: { change: reorder } },
    ...Object.keys(ORDERS).map((name) =>
      h("option", { value: name, selected: name === order, say: `order_${name}` })));
  const size = h("h2", { say: ["library_size", { n: sorted.length, length: clock(seconds) }] });
  const rest = sorted.length - shown;
  const showMore = () => {
    shown += PAGE;
    render();
  };
  const more = rest > 0 ? textButton(["more_videos", { n: rest }], showMore, "plain more") : "";
  return [h("div", { class: "section-head" }, size, choice), list, more];
}

/** The filters of the form as far as the list tells; what is said in a video, only a search can. */
function fits({ video, min_seconds: shortest = 0, max_seconds: longest = Infinity, after = "", before = "" }) {
  const pattern = video?.replace(/[.+^${}()|\\]/g, "\\$&").replaceAll("*", ".*").replaceAll("?", ".");
  const name = pattern && new RegExp(`^${pattern}$`, "i");
  return (video) => (!name || name.test(video.video))
    && shortest <= video.duration_seconds && video.duration_seconds <= longest
    && after <= video.ingested_at && (!before || video.ingested_at < before);
}

function card(video) {
  const away = { "file away": "file_away", "file changed": "file_changed" }[video.state];
  const about = () => emit("scope", { kind: "video", videoId: video.id, video: video.video });
  return h("li", { class: "card", data: { video: video.id } },
    h("button", {
      class: "card-open", label: ["open_video", { video: video.video }],
      on: { click: () => emit("play", { videoId: video.id, cue: true }) },
    }, h("span", { class: "frames" }, fitShape(picture(video.thumbnail_url, "")),
      h("span", { class: "length times" }, clock(video.duration_seconds)))),
    h("div", { class: "card-text" },
      h("span", { class: "video-name", title: video.video }, video.video),
      h("span", { class: "times", say: ["scenes", { n: video.scenes }] }),
      away && h("span", { class: "state-away", say: away })),
    h("div", { class: "card-tools" },
      iconButton("bubble", "ask_video", about, "icon"),
      iconButton("bin", ["delete_label", { video: video.video }], () => confirmDelete(video), "icon")));
}

function nothing() {
  return h("div", { class: "empty first" },
    h("h2", { say: "empty_library" }), h("p", { say: "empty_library_next" }),
    textButton("add_videos", () => byId("add-files").click(), "primary"),
    h("p", { class: "soft" }, h("span", { say: "empty_library_cli" }), " ", h("code", {}, "vidqa ingest FOLDER")));
}

function failed(failures) {
  return h("details", { class: "failures" }, h("summary", { say: ["failures", { n: failures.length }] }),
    h("ul", {}, ...failures.map((one) => h("li", {}, h("strong", {}, one.video), h("span", {}, one.error)))));
}

on("videos", refresh);
on("filters", () => listing && render());
on("library", () => { listing = null; refresh(); });
