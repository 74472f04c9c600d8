// The server, as functions. Every URL is relative, so the page works below any root path; errors
// come out as ApiError with a sentence to show.

import { t } from "./i18n.js";

const KEY = "vidqa-key";
let library = null;
let askForKey = async () => false;

export class ApiError extends Error {
  constructor(status, message, { code = null, retrySeconds = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retrySeconds = retrySeconds;
  }
}

/** `name` is null for the server's first library. */
export const useLibrary = (name) => (library = name);
export const currentLibrary = () => library;
/** `ask(wrong)` resolves to a key, or to null when the user gives none. */
export const onKeyNeeded = (ask) => (askForKey = ask);

export function path(route, query = {}) {
  const values = Object.entries({ ...query, library }).filter(([, value]) => value !== null && value !== undefined);
  const search = new URLSearchParams(values).toString();
  return search ? `${route}?${search}` : route;
}

export const frameUrl = (videoId, seconds) =>
  path(`v1/frames/${encodeURIComponent(videoId)}/${seconds.toFixed(2)}.jpg`);
export const videoUrl = (videoId, what = "", query = {}) =>
  path(`v1/videos/${encodeURIComponent(videoId)}${what}`, query);
export const clipUrl = (videoId, start, end) =>
  path(`v1/clips/${encodeURIComponent(videoId)}`, { start: start.toFixed(3), end: end.toFixed(3) });

/** The response of a route; asks for the key and tries again when one is needed. */
export async function request(url, { method = "GET", body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(url, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(0, t("error_unreachable"));
    }
    if (response.ok) return response;
    if (response.status === 401 && (await renewKey(key))) continue;
    throw await errorOf(response);
  }
}

export const json = async (url, options) => (await request(url, options)).json();

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  return errorFrom(response.status, body, response.headers.get("Retry-After"));
}

function errorFrom(status, body, retryAfter = null) {
  const said = body?.error?.message;
  const fallback = status === 413 ? t("error_too_large") : t("error_status", { status });
  return new ApiError(status, said || fallback, {
    code: body?.error?.code ?? null,
    retrySeconds: retryAfter === null ? null : Number(retryAfter) || 2,
  });
}

let asking = null;

/** Asks once, however many requests failed together; true when there is another key to try. */
function renewKey(failed) {
  if (sessionStorage.getItem(KEY) !== failed) return true;
  asking ??= (async () => {
    const key = await askForKey(failed !== null);
    if (!key) return false;
    sessionStorage.setItem(KEY, key);
    await openMedia();
    return true;
  })().finally(() => (asking = null));
  return asking;
}

/** Images and videos cannot send the key, so the server gives them a cookie for it. */
export async function openMedia() {
  const key = sessionStorage.getItem(KEY);
  if (key === null) return;
  await fetch("v1/session", { method: "POST", headers: { Authorization: `Bearer ${key}` } }).catch(() => null);
}

/** Sends a file with progress, which fetch cannot tell; resolves to the job. */
export function upload(file, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const send = new XMLHttpRequest();
    send.open("POST", path("v1/videos", { name: file.name }));
    const key = sessionStorage.getItem(KEY);
    if (key) send.setRequestHeader("Authorization", `Bearer ${key}`);
    send.setRequestHeader("Content-Type", "application/octet-stream");
    send.upload.onprogress = (event) => event.lengthComputable && onProgress(event.loaded / event.total);
    send.onload = () => {
      const body = parsed(send.responseText);
      if (send.status < 300 && body) resolve(body);
      else reject(errorFrom(send.status, body));
    };
    send.onerror = () => reject(new ApiError(0, t("error_upload_broke")));
    send.onabort = () => reject(new DOMException("", "AbortError"));
    signal.addEventListener("abort", () => send.abort());
    send.send(file);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** The events of a streamed chat completion, until [DONE]; a failure in mid-stream throws. */
export async function* chat(body, signal) {
  const streamed = { method: "POST", body: { ...body, stream: true }, signal };
  const response = await request("v1/chat/completions", streamed);
  let whole = false;
  for await (const data of sse(response)) {
    if (data === "[DONE]") {
      whole = true;
      break;
    }
    const event = parsed(data);
    if (event?.error) throw errorFrom(502, event);
    if (event) yield event;
  }
  if (!whole) throw new ApiError(0, t("error_broke_off"));
}

/** The `data` of each server-sent event. Lines may end in \n or \r\n, and split anywhere. */
async function* sse(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
    }
  } finally {
    reader.cancel().catch(() => null);
  }
}
