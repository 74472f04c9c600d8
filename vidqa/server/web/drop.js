// Files dropped anywhere on the page, or pasted: a picture searches, anything else is added.

import { emit } from "./bus.js";
import { byId } from "./dom.js";

const overlay = byId("drop");
// Entering a child fires before leaving its parent, so the entered are counted.
let inside = 0;

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

function take(files) {
  const image = files.find((file) => file.type.startsWith("image/"));
  const videos = files.filter((file) => !file.type.startsWith("image/"));
  if (videos.length) emit("upload", videos);
  else if (image) emit("image", image);
}

addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  inside += 1;
  overlay.hidden = false;
});
addEventListener("dragleave", (event) => {
  if (hasFiles(event) && (inside -= 1) <= 0) hide();
});
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  hide();
  take([...event.dataTransfer.files]);
});
addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return;
  event.preventDefault();
  take(files);
});

function hide() {
  inside = 0;
  overlay.hidden = true;
}
