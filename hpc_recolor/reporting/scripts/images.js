// One image that blends between the gray copy, the colored result and the original: 0 (gray), 50 (colored), 100 (original).
page.resting = 50; // the position of images that are not being moved

page.blend = (layers, place) => {
  // Near each end and in the middle only one image is visible, so that it is easy to reach.
  const share = (from) => Math.min(1, Math.max(0, (place - from) / 34));
  if (layers.model) layers.model.style.opacity = share(8);
  if (layers.original) layers.original.style.opacity = share(58);
};

page.placeName = (place) => {
  if (place <= 8) return "gray";
  if (place < 42) return "between gray and colored";
  if (place <= 58) return "colored";
  return place < 92 ? "between colored and original" : "original";
};

page.layers = (box, cell, alt) => {
  const layers = {};
  for (const kind of ["gray", "model", "original"]) {
    if (cell[kind] === null || cell[kind] === undefined) continue;
    const image = page.make("img", kind, { alt: kind === "model" ? alt : "", decoding: page.printing ? "sync" : "async", draggable: "false" });
    image.src = page.source(cell[kind]);
    box.append(image);
    layers[kind] = image;
  }
  return layers;
};

// Mouse, finger and the range input move the blend. Returns a function that sets its position.
page.scrub = (box, range, layers, { returns }) => {
  let start = null, dragged = false;
  const set = (place) => {
    range.value = place;
    range.setAttribute("aria-valuetext", page.placeName(place));
    page.blend(layers, place);
  };
  const at = (event) => {
    const area = box.getBoundingClientRect();
    return Math.min(100, Math.max(0, (100 * (event.clientX - area.left)) / area.width));
  };
  box.addEventListener("pointerdown", (event) => { start = event.clientX; dragged = false; });
  box.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse") {
      if (start === null || (!dragged && Math.abs(event.clientX - start) < 6)) return;
      if (!dragged) box.setPointerCapture(event.pointerId);
      dragged = true;
    }
    set(at(event));
  });
  for (const end of ["pointerup", "pointercancel"]) box.addEventListener(end, () => { start = null; });
  box.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse" && returns) set(page.resting);
  });
  box.addEventListener("click", (event) => { // the end of a drag is not a click
    if (!dragged) return;
    dragged = false;
    event.stopImmediatePropagation();
    event.preventDefault();
  }, true);
  range.addEventListener("input", () => set(Number(range.value)));
  set(page.resting);
  return set;
};
