// Sortable tables, panels chosen from a list, and the config keys that do not differ.
(() => {
  const order = (row, column) => row.cells[column].dataset.order;

  function compare(one, other, direction) {
    if (one === "" || other === "") return (one === "") - (other === ""); // blanks last, either way
    const numbers = [Number(one), Number(other)];
    const difference = numbers.some(Number.isNaN)
      ? one.localeCompare(other, "en", { numeric: true })
      : numbers[0] - numbers[1];
    return direction * difference;
  }

  function sort(table, column) {
    const header = table.tHead.rows[0].cells[column], body = table.tBodies[0];
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const sorted = [...body.rows].sort((one, other) =>
      compare(order(one, column), order(other, column), ascending ? 1 : -1));
    body.append(...sorted);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) =>
      cell.querySelector("button").addEventListener("click", () => sort(table, column)));
  }
})();

(() => {
  for (const select of document.querySelectorAll("select[data-panels]")) {
    const panels = [...document.querySelectorAll(`[data-panel^="${select.dataset.panels}-"]`)];
    const show = () => panels.forEach((panel) => panel.classList.toggle("off", panel.dataset.panel !== select.value));
    select.addEventListener("change", show);
    show();
  }
})();

(() => {
  const button = document.getElementById("all-keys"), table = document.getElementById("config-table");
  button?.addEventListener("click", () => {
    const all = table.classList.toggle("differences") === false;
    button.setAttribute("aria-expanded", String(all));
    button.textContent = all ? "Show differences only" : `Show all ${table.tBodies[0].rows.length} keys`;
  });
})();
