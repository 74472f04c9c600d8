// The dialog that asks for the server's key. It stays in this tab's session storage (see api.js).

import { onKeyNeeded } from "./api.js";
import { byId } from "./dom.js";

const dialog = byId("key-dialog");

onKeyNeeded((wrong) => new Promise((resolve) => {
  const field = byId("key");
  field.value = "";
  byId("key-wrong").hidden = !wrong;
  dialog.returnValue = "";
  dialog.onclose = () => resolve(dialog.returnValue === "given" ? field.value.trim() : null);
  dialog.showModal();
  field.focus();
}));

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  dialog.close("given");
});
