// The page of `vidqa finetune review`. What a row says is set as text, never as markup.

const $ = (id) => document.getElementById(id);
const state = { rows: [], items: new Map(), at: -1, current: null, editing: false, shown: 0 };

async function call(place, body) {
  const how = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let reply;
  try {
    reply = await fetch(place, how);
  } catch {
    throw new Error("vidqa finetune review does not run any more; nothing is saved");
  }
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error);
  return answer;
}

/** Does some work, and says what went wrong. */
async function tried(work) {
  try {
    await work();
    $("problem").hidden = true;
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

function visible(row) {
  const filter = $("filter").value;
  return filter === "all" || filter === (row.state ?? "open");
}

function showList() {
  const items = [];
  state.items.clear();
  for (const row of state.rows.filter(visible)) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.n = row.n;
    item.append(button);
    items.push(item);
    state.items.set(row.n, button);
    showItem(row);
  }
  $("list").replaceChildren(...items);
  showCounts();
  markCurrent();
}

function showItem(row) {
  const button = state.items.get(row.n);
  if (!button) return;
  button.textContent = row.question;
  button.dataset.state = row.state ?? "open";
  button.setAttribute("aria-label", `${row.n + 1}, ${row.state ?? "no decision"}: ${row.question}`);
}

function showCounts() {
  const counts = { kept: 0, edited: 0, dropped: 0, open: 0 };
  for (const row of state.rows) counts[row.state ?? "open"] += 1;
  $("counts").textContent =
    `${counts.kept} kept, ${counts.edited} edited, ${counts.dropped} dropped, ${counts.open} left`;
  $("rest").disabled = counts.open === 0;
}

function markCurrent() {
  state.current?.removeAttribute("aria-current");
  state.current = state.items.get(state.at);
  state.current?.setAttribute("aria-current", "true");
  state.current?.scrollIntoView({ block: "nearest" });
}

function showRow(n) {
  state.at = n;
  state.editing = false;
  location.replace(`#${n}`);
  markCurrent();
  fill();
  tried(() => showPictures(n));
}

function fill() {
  const row = state.rows[state.at];
  $("where").textContent = `${row.n + 1} of ${state.rows.length} · ${row.where}`;
  $("question").value = row.question;
  $("answer").value = row.answer;
  $("facts").textContent = row.facts.join(" · ");
  $("texts").textContent = row.texts.join("\n");
  $("texts").hidden = row.texts.length === 0;
  $("question").readOnly = $("answer").readOnly = !state.editing;
  $("deciding").hidden = state.editing;
  $("editing").hidden = !state.editing;
  $("edit").disabled = !row.editable;
  for (const [id, name] of [["keep", "kept"], ["edit", "edited"], ["drop", "dropped"]]) {
    $(id).setAttribute("aria-pressed", String(row.state === name));
  }
}

async function showPictures(n) {
  const turn = ++state.shown;
  $("pictures").replaceChildren();
  const { pictures, error } = await call(`rows/${n}`);
  if (turn !== state.shown) return; // another row is shown by now
  for (const picture of pictures) {
    const item = document.createElement("li");
    const figure = document.createElement("figure");
    const image = document.createElement("img");
    image.src = picture.source;
    image.alt = `frame at ${picture.at}`;
    const caption = document.createElement("figcaption");
    caption.textContent = picture.at;
    figure.append(image, caption);
    item.append(figure);
    $("pictures").append(item);
  }
  if (error) throw new Error(error);
}

function move(step) {
  const numbers = state.rows.filter(visible).map((row) => row.n);
  const next = step > 0
    ? numbers.find((n) => n > state.at)
    : numbers.findLast((n) => n < state.at);
  if (next !== undefined) showRow(next);
}

function decide(decision, edits = {}) {
  const n = state.at;
  return tried(async () => {
    state.rows[n] = await call(`rows/${n}`, { state: decision, ...edits });
    showItem(state.rows[n]);
    showCounts();
    state.editing = false;
    fill();
    if (decision) move(1);
  });
}

function edit() {
  if (!state.rows[state.at].editable) return;
  state.editing = true;
  fill();
  $("answer").focus();
  $("answer").select();
}

function leaveEditing() {
  state.editing = false;
  fill();
  $("row").focus();
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  y: () => decide("kept"),
  e: edit,
  d: () => decide("dropped"),
  u: () => decide(null),
};

document.addEventListener("keydown", (event) => {
  if (state.at < 0 || event.isComposing) return;
  if (state.editing) {
    if (event.key === "Escape") leaveEditing();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
    return;
  }
  const typing = event.target instanceof HTMLSelectElement;
  if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key === "d") {
    return;
  }
  const action = KEYS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!state.editing) return;
  await decide("edited", { question: $("question").value, answer: $("answer").value });
  if (!state.editing) $("row").focus();
});
$("keep").addEventListener("click", () => decide("kept"));
$("drop").addEventListener("click", () => decide("dropped"));
$("undo").addEventListener("click", () => decide(null));
$("edit").addEventListener("click", edit);
$("cancel").addEventListener("click", leaveEditing);
$("filter").addEventListener("change", showList);
$("list").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) showRow(Number(button.dataset.n));
});
$("rest").addEventListener("click", () => tried(async () => {
  const open = state.rows.filter((row) => row.state === null).length;
  if (!confirm(`Keep ${open} rows without a look at each?`)) return;
  state.rows = (await call("rest", {})).rows;
  showList();
  fill();
}));

tried(async () => {
  state.rows = (await call("rows")).rows;
  showList();
  const wanted = Number(location.hash.slice(1));
  const first = state.rows.findIndex((row) => row.state === null);
  showRow(location.hash && state.rows[wanted] ? wanted : Math.max(first, 0));
});
