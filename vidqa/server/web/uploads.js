// Videos on their way in: sent one after the other, then followed while the server takes them in.
// Also shows what others (or an earlier visit) have sent and is still being taken in.

import { json, path, upload } from "./api.js";
import { emit, on } from "./bus.js";
import { byId, h, iconButton, textButton } from "./dom.js";
import { limits } from "./engine.js";
import { bytes } from "./format.js";
import { say } from "./i18n.js";

const POLL_SECONDS = 1;
const tray = byId("tray");
const rows = new Map(); // by job id
let queue = Promise.resolve();
let timer = 0;

on("upload", (files) => {
  for (const file of files) {
    const row = makeRow(file.name);
    queue = queue.then(() => send(file, row));
  }
});

async function send(file, row) {
  const most = limits().upload_bytes;
  if (row.stop.signal.aborted) return;
  if (most && file.size > most) {
    row.fail(["upload_too_large", { size: bytes(file.size), most: bytes(most) }]);
    return;
  }
  try {
    const size = bytes(file.size);
    const sent = (part) => row.progress(part, ["uploading", { percent: Math.floor(part * 100), size }]);
    const job = await upload(file, sent, row.stop.signal);
    rows.set(job.id, row);
    hear(job);
    poll();
  } catch (error) {
    if (error.name !== "AbortError") row.fail(["failed_because", { message: error.message }]);
  }
}

/** Shows the jobs that are not done yet, whoever sent them. */
export async function followJobs() {
  const { data } = await json(path("v1/jobs"));
  for (const job of data) if (isOpen(job) && !rows.has(job.id)) rows.set(job.id, makeRow(job.video));
  data.forEach(hear);
  if (data.some(isOpen)) poll();
}

const isOpen = (job) => job.status === "queued" || job.status === "running";

function poll() {
  clearTimeout(timer);
  timer = setTimeout(() => followJobs().catch(() => poll()), POLL_SECONDS * 1000);
}

function hear(job) {
  const row = rows.get(job.id);
  if (!row || row.ended) return;
  if (job.status === "queued") row.progress(null, ["queued"]);
  else if (job.status === "running")
    row.progress(job.progress, ["ingesting", { percent: Math.floor((job.progress ?? 0) * 100) }]);
  else if (job.status === "failed") row.fail(["failed_because", { message: job.error ?? "" }]);
  else row.done(job.video_id);
  if (row.ended) emit("videos");
}

function makeRow(name) {
  const bar = h("progress", { max: "1" });
  const text = h("p", { class: "soft", role: "status" });
  const stop = new AbortController();
  const row = { ended: false, stop };
  row.node = h("article", { class: "job" }, h("span", { class: "video-name", title: name }, name),
    iconButton("close", "dismiss", () => row.remove()), bar, text);
  row.progress = (part, words) => {
    if (part === null) bar.removeAttribute("value");
    else bar.value = part;
    say(text, ...words);
  };
  row.fail = (words) => {
    row.ended = true;
    bar.remove();
    text.className = "bad";
    say(text, ...words);
  };
  row.done = (videoId) => {
    row.ended = true;
    bar.remove();
    say(text, "ingested");
    const opened = () => {
      emit("play", { videoId, cue: true });
      row.remove();
    };
    if (videoId) row.node.append(textButton("open", opened));
  };
  row.remove = () => {
    stop.abort();
    row.node.remove();
    tray.hidden = tray.childElementCount === 0;
  };
  row.progress(null, ["waiting"]);
  tray.append(row.node);
  tray.hidden = false;
  return row;
}

byId("add").addEventListener("click", () => byId("add-files").click());
byId("add-files").addEventListener("change", (event) => {
  emit("upload", [...event.target.files]);
  event.target.value = "";
});
on("library", () => {
  for (const row of rows.values()) row.remove();
  rows.clear();
  followJobs().catch(() => null);
});
