// The page starts here: languages, the key, what the server has, what the address asks for.

import { openMedia, useLibrary } from "./api.js";
import { readAddress } from "./address.js";
import { emit, on } from "./bus.js";
import { byId } from "./dom.js";
import { follow } from "./engine.js";
import { fillIcons } from "./icons.js";
import { nextLanguage, sayAll } from "./i18n.js";
import * as library from "./library.js";
import * as player from "./player.js";
import { clearQuery, query, setQuery } from "./search.js";
import { followJobs } from "./uploads.js";
import "./answer.js";
import "./drop.js";
import "./key.js";
import "./keys.js";

fillIcons();
sayAll();
byId("language").addEventListener("click", nextLanguage);
byId("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  player.close();
  emit("home");
  clearQuery();
  library.refresh();
});

/** Brings the page to what its address says: at the start, and on the browser's way back. */
function visit(back = false) {
  const wanted = readAddress();
  // What has been typed while the page was loading stays.
  if (wanted.query !== query() && (back || !query())) setQuery(wanted.query);
  if (wanted.video) emit("play", { videoId: wanted.video, start: wanted.seconds });
  else player.close();
}

// The cookie for pictures and videos lasts half a day; a page may stay open for longer.
setInterval(openMedia, 6 * 3600 * 1000);
addEventListener("popstate", () => visit(true));
on("library", () => player.close());

const { library: name } = readAddress();
useLibrary(name);
await openMedia();
await follow();
visit();
library.refresh();
followJobs().catch(() => null);
if (!player.isOpen() && matchMedia("(hover: hover)").matches) byId("query").focus();
