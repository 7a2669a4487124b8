// Grids of photographs. A row's images are created when it is near the viewport, and removed when it is far away.
(() => {
  const GAP = 8, LABEL = 150, TALL_ROWS = 40, SMALLEST = 84, LARGEST = { 128: 168, 64: 104, 48: 88 };
  const grids = [];

  function makeCell(grid, row, place) {
    const column = grid.content.columns[place], cell = row.cells[place], name = `${column.label}, ${row.name}`;
    const figure = page.make("div", "cell");
    if (!cell) {
      figure.append(page.make("div", "image none"), caption(column.label, "not kept"));
      return figure;
    }
    const button = page.make("button", "image", { type: "button", tabindex: "-1", "aria-label": `Enlarge ${name}` });
    const range = page.make("input", "", { type: "range", min: 0, max: 100, step: 10, "aria-label": `Gray, colored, original: ${name}` });
    const layers = page.layers(button, cell, name);
    figure.set = page.scrub(button, range, layers, { returns: true });
    const open = () => page.view(grid.content, grid.content.rows.indexOf(row), place, range);
    button.addEventListener("click", open);
    range.addEventListener("keydown", (event) => { if (event.key === "Enter") open(); });
    figure.append(button, range, caption(column.label, cell.text));
    return figure;
  }

  function makeStill(number, label, name) {
    const figure = page.make("div", "cell still");
    const box = page.make("div", number === null ? "image none" : "image");
    if (number !== null) {
      const image = page.make("img", "", { alt: `${label}, ${name}`, decoding: page.printing ? "sync" : "async" });
      image.src = page.source(number);
      box.append(image);
    }
    figure.append(box, caption(label, ""));
    return figure;
  }

  function caption(label, text) {
    const line = page.make("div", "caption"), who = page.make("span", "who"), value = page.make("span", "value");
    who.textContent = label;
    value.textContent = text;
    line.append(who, value);
    return line;
  }

  function fill(grid, place) {
    const element = grid.elements[place], row = grid.rows[place];
    if (element.childElementCount) return;
    const label = page.make("div", "label");
    label.textContent = row.name;
    label.title = row.name;
    element.append(label, makeStill(row.gray, "Gray", row.name));
    row.cells.forEach((_, column) => element.append(makeCell(grid, row, column)));
    element.append(makeStill(row.original, "Original", row.name));
  }

  function empty(element) {
    if (!page.printing && !element.contains(document.activeElement)) element.replaceChildren();
  }

  function makeHead(grid) {
    const head = page.make("div", "row head", { "aria-hidden": "true" });
    const labels = ["", "Gray", ...grid.content.columns.map((column) => column.label), "Original"];
    labels.forEach((text, place) => {
      const cell = page.make("div", place ? "cell" : "label"), column = grid.content.columns[place - 2];
      const name = page.make("span", column ? "run" : "");
      if (column) name.style.setProperty("--run", `var(--run-${column.run % 12})`);
      name.textContent = name.title = text;
      cell.append(name);
      head.append(cell);
    });
    return head;
  }

  function lay(grid) {
    // As large as fits; if columns would be too narrow, the images of a photograph wrap.
    const { box, content } = grid, columns = content.columns.length + 2, width = box.clientWidth;
    if (!width) return;
    const largest = LARGEST[page.data.side] ?? 128;
    const beside = Math.floor((width - LABEL - columns * GAP) / columns);
    const wraps = content.cards || beside < SMALLEST;
    box.classList.toggle("wraps", wraps);
    const across = wraps ? Math.min(columns, Math.max(3, Math.floor((width + GAP) / (SMALLEST + 20 + GAP)))) : columns;
    const room = content.cards ? Math.min(width, 380) : width;
    const cell = wraps ? Math.min(largest, Math.floor((room - (across - 1) * GAP) / across)) : Math.min(largest, beside);
    for (const [key, value] of [["--cell", `${cell}px`], ["--across", across], ["--lines", Math.ceil(columns / across)]])
      box.style.setProperty(key, value);
  }

  function start(box) {
    const content = page.data.grids[box.dataset.grid]; // of which a box may show a part
    const grid = { box, content, rows: content.rows.slice(box.dataset.from ?? 0, box.dataset.to), elements: [] };
    box.style.setProperty("--columns", grid.content.columns.length + 2);
    const tall = grid.rows.length > TALL_ROWS;
    box.classList.toggle("tall", tall);
    box.classList.toggle("cards-grid", Boolean(grid.content.cards));
    if (tall) for (const [key, value] of [["tabindex", 0], ["role", "region"], ["aria-label", "Photographs"]]) box.setAttribute(key, value);
    if (!grid.content.cards) box.append(makeHead(grid));
    grid.elements = grid.rows.map(() => page.make("div", "row"));
    box.append(...grid.elements);
    lay(grid);
    const places = new Map(grid.elements.map((element, place) => [element, place]));
    const near = new IntersectionObserver((entries) => {
      for (const entry of entries)
        if (entry.isIntersecting) fill(grid, places.get(entry.target));
        else empty(entry.target);
    }, { root: tall ? box : null, rootMargin: "500px 0px" });
    for (const element of grid.elements) near.observe(element);
    new ResizeObserver(() => lay(grid)).observe(box);
    grids.push(grid);
  }

  for (const box of document.querySelectorAll(".grid")) start(box);
  page.onPrint.push((begins) => {
    if (begins) for (const grid of grids) grid.elements.forEach((_, place) => fill(grid, place));
  });

  const all = document.getElementById("all");
  const moveAll = () => {
    page.resting = Number(all.value);
    all.setAttribute("aria-valuetext", page.placeName(page.resting));
    for (const cell of document.querySelectorAll(".cell")) cell.set?.(page.resting);
  };
  all?.addEventListener("input", moveAll);
  if (all) moveAll();
})();
