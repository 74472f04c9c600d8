// The icons, as paths of 24 x 24 with round strokes; made as elements, since the page runs no markup.

const PATHS = {
  logo: "M4 6.6a1.5 1.5 0 0 1 2.3-1.3l9 5.4a1.5 1.5 0 0 1 0 2.6l-9 5.4A1.5 1.5 0 0 1 4 17.4z M20 5v.01",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14z M16.2 16.2 21 21",
  image: "M5 4h14a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2z M3 17l5-5 4 4 3-3 6 6 M15.5 8.5v.01",
  filter: "M4 6h16 M7 12h10 M10 18h4",
  plus: "M12 5v14 M5 12h14",
  keyboard: "M4 6h16a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2H4a2 2 0 0 1-2-2V8a2 2 0 0 1 2-2z M6 10v.01 M10 10v.01 M14 10v.01 M18 10v.01 M8 14h8",
  close: "M6 6l12 12 M18 6 6 18",
  play: "M7 5.2a1 1 0 0 1 1.5-.9l10.4 6.8a1 1 0 0 1 0 1.8L8.5 19.700a1 1 0 0 1-1.5-.900z",
  pause: "M8 5v14 M16 5v14",
  previous: "M18 6v12l-9-6z M6 6v12",
  next: "M6 6v12l9-6z M18 6v12",
  sound: "M4 10v4h3l5 4V6L7 10z M16 9a4 4 0 0 1 0 6 M18.5 6.500a8 8 0 0 1 0 11",
  mute: "M4 10v4h3l5 4V6L7 10z M16 9.500l5 5 M21 9.500l-5 5",
  captions: "M5 5h14a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V7a2 2 0 0 1 2-2z M10.5 10.500a2 2 0 1 0 0 3 M17 10.500a2 2 0 1 0 0 3",
  fullscreen: "M4 9V5a1 1 0 0 1 1-1h4 M20 9V5a1 1 0 0 0-1-1h-4 M4 15v4a1 1 0 0 0 1 1h4 M20 15v4a1 1 0 0 1-1 1h-4",
  link: "M10 14a4 4 0 0 0 5.7 0l3-3A4 4 0 0 0 13 5.300l-1 1 M14 10a4 4 0 0 0-5.7 0l-3 3A4 4 0 0 0 11 18.700l1-1",
  bubble: "M5 5h14a2 2 0 0 1 2 2v8a2 2 0 0 1-2 2h-7l-5 4v-4H5a2 2 0 0 1-2-2V7a2 2 0 0 1 2-2z",
  download: "M12 4v11 M7 11l5 5 5-5 M5 20h14",
  bin: "M4 7h16 M9 7V4h6v3 M6 7l1 13h10l1-13 M10 11v5 M14 11v5",
  stop: "M7 7h10v10H7z",
  warn: "M12 4 2.5 20h19z M12 10v4 M12 17v.01",
};

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.classList.add("icon-svg", `icon-${name}`);
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

export function fillIcons(root = document) {
  for (const place of root.querySelectorAll("[data-icon]")) place.replaceChildren(icon(place.dataset.icon));
}
