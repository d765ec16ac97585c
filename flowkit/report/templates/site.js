// Sorting of tables by a click on a column head, a filter above them, and a choice of colours. Pages are complete without it.
(function () {
  "use strict";

  function key(row, column) {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim().toLowerCase() : Number(cell.dataset.sort);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? 1 : -1; // what was not measured is below every number
  }

  function sortBy(table, column) {
    const heads = table.tHead.rows[0].cells;
    const numeric = heads[column].classList.contains("number");
    const now = heads[column].getAttribute("aria-sort");
    const order = now ? (now === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = Array.from(table.tBodies[0].rows);
    rows.sort(function (a, b) { return sign * compare(key(a, column), key(b, column)); });
    table.tBodies[0].append(...rows);
  }

  function makeSortable(table) {
    Array.from(table.tHead.rows[0].cells).forEach(function (head, column) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", function () { sortBy(table, column); });
    });
  }

  function addFilter(table) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    label.className = "filter";
    label.textContent = "Show rows with ";
    input.type = "search";
    label.append(input);
    input.addEventListener("input", function () {
      const wanted = input.value.trim().toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    table.closest(".scroll").before(label);
  }

  const THEMES = { "": "as the system", light: "light", dark: "dark" };

  function remembered() {
    try {
      const theme = localStorage.getItem("flowkit-theme");
      return theme in THEMES ? theme : "";
    } catch (error) {
      return ""; // storage is forbidden: the choice holds for this page
    }
  }

  function choose(theme, button) {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    button.textContent = "Colours: " + THEMES[theme];
    try { localStorage.setItem("flowkit-theme", theme); } catch (error) { /* as above */ }
  }

  function addThemes(header) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "theme";
    choose(remembered(), button);
    button.addEventListener("click", function () {
      const names = Object.keys(THEMES);
      choose(names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length], button);
    });
    header.append(button);
  }

  addThemes(document.querySelector("header.top"));
  for (const table of document.querySelectorAll("table.sortable")) {
    makeSortable(table);
    if (table.tBodies[0].rows.length > 8) addFilter(table);
  }
})();
