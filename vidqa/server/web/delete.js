// Taking a video out of the library, after a question.

import { json, videoUrl } from "./api.js";
import { emit } from "./bus.js";
import { byId, toast } from "./dom.js";
import { say } from "./i18n.js";

const dialog = byId("delete-dialog");

export function confirmDelete(video) {
  byId("delete-name").textContent = video.video;
  say(byId("delete-text"), video.uploaded ? "delete_uploaded" : "delete_text");
  dialog.returnValue = "cancel";
  dialog.showModal();
  dialog.onclose = () => dialog.returnValue === "delete" && remove(video);
}

async function remove(video) {
  try {
    await json(videoUrl(video.id), { method: "DELETE" });
  } catch (error) {
    toast("failed_because", { message: error.message });
    return;
  }
  toast("deleted", { video: video.video });
  emit("deleted", video.id);
  emit("videos");
}
