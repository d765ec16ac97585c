// Sorting, filtering and paging of tables, data that pages load, and a choice of colours. Pages are complete without it.
//
// A table's rows are kept beside it as { keys, words, element() }: sorting and filtering work on those, and one page of
// them stands in the document, so that thousands of rows stay quick. Words of strangers become text, never HTML.
(function () {
  "use strict";

  const PAGE_ROWS = 100;
  const FILTERED_ROWS = 8;
  const TYPING_MS = 40;
  const SVG = "http://www.w3.org/2000/svg";

  // ---- data files: one script each, which calls flowkit.data(value)

  const received = new Map(), loading = new Map();

  function data(value) {
    received.set(document.currentScript, value);
  }

  function load(path) {
    if (!loading.has(path)) {
      loading.set(path, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.onload = () => {
          if (received.has(script)) resolve(received.get(script));
          else reject(new Error(path + " holds no data"));
        };
        script.onerror = () => {
          loading.delete(path); // another try may find it
          reject(new Error(path + " could not be loaded: keep the files of the report together"));
        };
        script.src = path;
        document.head.append(script);
      }));
    }
    return loading.get(path);
  }

  // ---- elements

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function curveOf(points) {
    const drawing = document.createElementNS(SVG, "svg"), line = document.createElementNS(SVG, "polyline");
    drawing.setAttribute("class", "curve");
    drawing.setAttribute("viewBox", "0 0 100 24");
    drawing.setAttribute("aria-hidden", "true");
    line.setAttribute("points", points);
    drawing.append(line);
    return drawing;
  }

  // One cell as `tables.packed` writes it: its text, or text, note, number, mark (1 best, 2 missing), page and curve.
  function cellOf(packed, head, isFirst, root) {
    const [text, note, , mark, page, curve] = typeof packed === "string" ? [packed] : packed;
    const cell = make(isFirst ? "th" : "td", head && head.classList.contains("number") ? "number" : "");
    if (isFirst) cell.scope = "row";
    if (curve) cell.append(curveOf(curve));
    if (page) {
      const link = make("a", "", text);
      link.href = root + page;
      cell.append(link);
    } else if (mark === 2) {
      const missing = make("span", "muted", text);
      missing.title = "not measured";
      cell.append(missing);
    } else if (mark === 1) {
      const best = make("strong", "best", text + " ");
      const sign = make("span", "", "▲");
      sign.setAttribute("aria-hidden", "true");
      best.append(sign, make("span", "hidden", " best trained run"));
      cell.append(best);
    } else {
      cell.append(text);
    }
    if (note) cell.append(make("small", "", note));
    return cell;
  }

  function row(cells, heads, kind, root) {
    const element = make("tr", kind);
    element.append(...cells.map((packed, at) => cellOf(packed, heads[at], at === 0, root)));
    return element;
  }

  // ---- rows of a table, from its data file or from the page

  // The filter looks at names, not at figures, in which any digit would be found.
  function rowOf(texts, numbers, isNumeric, element) {
    return {
      keys: texts.map((text, at) => isNumeric[at] ? numbers[at] : text),
      words: texts.filter((text, at) => !isNumeric[at]).join(" ").toLowerCase(),
      element,
    };
  }

  function packedRow([kind, ...cells], heads, isNumeric, root) {
    const texts = cells.map((cell) => typeof cell === "string" ? cell : cell[0] + " " + cell[1]);
    const numbers = cells.map((cell) => typeof cell === "string" || cell.length < 3 ? null : cell[2]);
    let element = null;
    return rowOf(texts, numbers, isNumeric, () => (element = element || row(cells, heads, kind, root)));
  }

  function printedRow(element, isNumeric) {
    const cells = Array.from(element.cells);
    const texts = cells.map((cell) => Array.from(cell.childNodes, (node) => node.textContent.trim()).join(" ").trim());
    const numbers = cells.map((cell) => cell.dataset.sort === undefined ? null : Number(cell.dataset.sort));
    return rowOf(texts, numbers, isNumeric, () => element);
  }

  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // What was not measured stays below everything that was, whichever way a column is sorted.
  function comparison(column, sign) {
    return (a, b) => {
      const one = a.keys[column], other = b.keys[column];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * (typeof one === "number" ? one - other : collator.compare(one, other));
    };
  }

  // ---- one table

  const count = (number) => number.toLocaleString("en");

  function setUp(table, all, pageRows) {
    const body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
    const region = table.closest(".scroll"), tools = make("div", "tools"), status = make("output", "muted");
    const back = addButton("Previous " + pageRows, () => turn(back, -pageRows));
    const next = addButton("Next " + pageRows, () => turn(next, pageRows));
    let order = all, wanted = [], first = 0;

    function show() {
      const found = order.filter((one) => wanted.every((word) => one.words.includes(word)));
      const last = Math.min(first + pageRows, found.length), isPaged = found.length > pageRows;
      body.replaceChildren(...found.slice(first, last).map((one) => one.element()));
      back.setAttribute("aria-disabled", String(first === 0));
      next.setAttribute("aria-disabled", String(last === found.length));
      back.hidden = next.hidden = !isPaged;
      const words = wanted.length ? `${count(found.length)} of ${count(all.length)} rows match` : "";
      const part = isPaged ? `rows ${count(first + 1)} to ${count(last)}` : "";
      status.textContent = words && part ? `${words}, ${part}` : words || (part && `${part} of ${count(all.length)}`);
    }

    function turn(button, step) {
      if (button.getAttribute("aria-disabled") === "true") return;
      first += step;
      show();
    }

    // A column goes from its better order to the other one and back to how the table came.
    function sortBy(head, column) {
      const orders = head.classList.contains("number") ? ["descending", "ascending", ""] : ["ascending", "descending", ""];
      const wish = orders[(orders.indexOf(head.getAttribute("aria-sort") || "") + 1) % orders.length];
      for (const one of heads) one.removeAttribute("aria-sort");
      if (wish) head.setAttribute("aria-sort", wish);
      order = wish ? all.slice().sort(comparison(column, wish === "ascending" ? 1 : -1)) : all;
      first = 0;
      show();
    }

    function addFilter() {
      const label = make("label", "filter", "Show rows with "), input = make("input");
      input.type = "search";
      label.append(input);
      let timer = 0;
      input.addEventListener("input", () => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
          first = 0;
          show();
        }, TYPING_MS);
      });
      tools.append(label);
    }

    if (table.classList.contains("sortable")) {
      heads.forEach((head, column) => head.replaceChildren(addButton(head.textContent, () => sortBy(head, column))));
      if (all.length > FILTERED_ROWS) addFilter();
    }
    tools.append(status, back, next);
    if (tools.childElementCount > 3 || all.length > pageRows) region.before(tools);
    for (const cut of table.querySelectorAll("caption .cut")) cut.remove();
    show();
  }

  function addButton(words, act) {
    const button = make("button", "", words);
    button.type = "button";
    button.addEventListener("click", act);
    return button;
  }

  function begin(table) {
    const heads = table.tHead.rows[0].cells, printed = table.tBodies[0].rows;
    const isNumeric = Array.from(heads, (head) => head.classList.contains("number"));
    if (!table.dataset.rows) {
      setUp(table, Array.from(printed, (element) => printedRow(element, isNumeric)), PAGE_ROWS);
      return;
    }
    load(table.dataset.rows).then((found) => {
      const rows = found.rows.map((one) => packedRow(one, heads, isNumeric, table.dataset.root));
      setUp(table, rows, printed.length);
    }).catch((error) => table.querySelector("caption .cut").append(" (" + error.message + ".)"));
  }

  // ---- colours

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
    const names = Object.keys(THEMES), now = () => names.indexOf(document.documentElement.dataset.theme || "");
    const button = addButton("", () => choose(names[(now() + 1) % names.length], button));
    button.className = "theme";
    choose(remembered(), button);
    header.append(button);
  }

  window.flowkit = { data, load, make, row, count };
  addThemes(document.querySelector("header.top"));
  for (const table of document.querySelectorAll("table.sortable, table[data-rows]")) {
    const closed = table.closest("details:not([open])");
    // a table that nobody sees yet waits with its data
    if (closed && table.dataset.rows) closed.addEventListener("toggle", () => begin(table), { once: true });
    else begin(table);
  }
})();
