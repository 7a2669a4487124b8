// One enlarged image. Left and right: other photographs; up and down: other runs of the same photograph.
(() => {
  const dialog = document.getElementById("viewer"), stage = dialog.querySelector(".stage");
  const range = dialog.querySelector("input"), name = document.getElementById("viewer-name");
  const note = document.getElementById("viewer-note");
  let state = null, opener = null;

  page.view = (content, row, column, from) => {
    state = { content, row, column };
    opener = from;
    show();
    dialog.showModal();
    stage.focus({ preventScroll: true });
  };

  function show() {
    const { content, row, column } = state, photo = content.rows[row], cell = photo.cells[column];
    const place = dialog.open ? Number(range.value) : page.resting;
    name.textContent = photo.name;
    note.textContent = `${content.columns[column].label} · ${cell ? `CIEDE2000 ${cell.text}` : "no image kept"} · ${row + 1} of ${content.rows.length}`;
    dialog.classList.toggle("one-run", content.columns.length === 1);
    // A fresh stage has none of the listeners of the last image.
    const box = page.make("div", "image");
    stage.replaceChildren(box);
    if (!cell) return;
    const set = page.scrub(box, freshRange(), page.layers(box, cell, `${content.columns[column].label}, ${photo.name}`), { returns: false });
    set(place);
  }

  function freshRange() {
    const copy = range.cloneNode();
    const old = dialog.querySelector("input");
    const focused = document.activeElement === old;
    old.replaceWith(copy);
    current = copy;
    if (focused) copy.focus();
    return copy;
  }
  let current = range;

  function step(rows, columns) {
    const { content } = state, wrap = (value, count) => (value + count) % count;
    range.value = current.value;
    state.row = wrap(state.row + rows, content.rows.length);
    state.column = wrap(state.column + columns, content.columns.length);
    show();
  }

  const actions = {
    close: () => dialog.close(),
    previous: () => step(-1, 0),
    next: () => step(1, 0),
    up: () => step(0, -1),
    down: () => step(0, 1),
  };
  const keys = { ArrowLeft: "previous", ArrowRight: "next", ArrowUp: "up", ArrowDown: "down" };
  dialog.addEventListener("click", (event) => {
    const action = event.target.closest("[data-do]")?.dataset.do;
    if (action) actions[action]();
    else if (event.target === dialog) dialog.close(); // beside it
  });
  dialog.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.target.matches("input")) return;
    event.preventDefault();
    actions[keys[event.key]]();
  });
  dialog.addEventListener("close", () => opener?.isConnected && opener.focus());
})();
