(function () {
  "use strict";
  var root = document.documentElement, said = document.getElementById("said");
  function all(where, what) { return Array.prototype.slice.call(where.querySelectorAll(what)); }
  function button(text, act) {
    var made = document.createElement("button");
    made.type = "button"; made.textContent = text; made.addEventListener("click", act);
    return made;
  }

  // In a sandboxed frame, as in MLflow's UI, a link into the page leads nowhere by itself.
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest('a[href^="#"]');
    var target = link && document.getElementById(decodeURIComponent(link.getAttribute("href").slice(1)));
    if (!target || window.self === window.top) { return; }
    event.preventDefault(); target.scrollIntoView();
    if (!target.hasAttribute("tabindex")) { target.tabIndex = -1; }
    target.focus({ preventScroll: true });
  });

  // Theme: the system's until the reader chooses; a sandbox may have no storage.
  var system = window.matchMedia("(prefers-color-scheme: dark)"), theme = document.getElementById("theme");
  function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : system.matches; }
  function name() { theme.textContent = isDark() ? "Light" : "Dark"; }
  theme.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark"; name();
    try { localStorage.setItem("sharedenc-theme", root.dataset.theme); } catch (error) { /* not kept */ }
  });
  system.addEventListener("change", name); name(); theme.hidden = false;

  // Sorting: ascending, descending, as it was. Rows stay under the line of their group, what is
  // missing comes last both ways, and rows that are equal keep their order.
  function key(row, at) {
    var cell = row.cells[at], sort = cell.dataset.sort;
    if (sort === undefined) { return cell.textContent.trim() || null; }
    return sort === "" ? null : Number(sort);
  }
  function compare(one, other) {
    return typeof one === "number" && typeof other === "number" ? one - other
      : String(one).localeCompare(String(other), "en", { numeric: true });
  }
  function sort(table, head, order) {
    var at = Number(head.dataset.col);
    all(table, "th[aria-sort]").forEach(function (th) { th.removeAttribute("aria-sort"); });
    if (order) { head.setAttribute("aria-sort", order); }
    all(table, "tbody").forEach(function (body) {
      var rows = all(body, "tr:not(.group)");
      rows.forEach(function (row, place) { if (row.place === undefined) { row.place = place; } });
      var keyed = rows.map(function (row) { return [order ? key(row, at) : row.place, row]; });
      keyed.sort(function (a, b) {
        if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null); }
        return order === "descending" ? compare(b[0], a[0]) : compare(a[0], b[0]);
      });
      keyed.forEach(function (pair) { body.appendChild(pair[1]); });
    });
    said.textContent = order ? "Sorted by " + head.textContent + ", " + order : "Order restored";
  }
  all(document, "table[data-sorts]").forEach(function (table) {
    all(table, "th[data-col]").forEach(function (head) {
      var next = { null: "ascending", ascending: "descending", descending: "" };
      var made = button("", function () { sort(table, head, next[head.getAttribute("aria-sort")]); });
      while (head.firstChild) { made.appendChild(head.firstChild); }
      head.appendChild(made);
    });
  });

  // A box that filters a long list by its words.
  all(document, "[data-filter]").forEach(function (box) {
    var line = document.createElement("div"), label = document.createElement("label");
    var input = document.createElement("input"), count = document.createElement("span");
    var rows = all(box, "tbody tr:not(.group)");
    line.className = "filter"; label.textContent = "Filter "; input.type = "search";
    input.setAttribute("aria-label", "Filter: " + box.dataset.filter);
    count.setAttribute("role", "status");
    input.addEventListener("input", function () {
      var words = input.value.toLowerCase().split(/\s+/), shown = 0;
      rows.forEach(function (row) {
        var text = row.textContent.toLowerCase();
        row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
        shown += !row.hidden;
      });
      count.textContent = shown + " of " + rows.length;
    });
    label.appendChild(input); line.appendChild(label); line.appendChild(count);
    box.parentNode.insertBefore(line, box);
  });

  all(document, ".photos").forEach(function (table) {
    var made = button("Larger pictures", function () {
      made.setAttribute("aria-pressed", String(table.classList.toggle("large")));
    });
    made.setAttribute("aria-pressed", "false");
    table.parentNode.parentNode.insertBefore(made, table.parentNode);
  });

  // A study that still runs: load again, where the reader was, unless paused.
  var every = Number(root.dataset.refresh || 0), pause = document.getElementById("pause"), paused = false;
  if (every && pause) {
    pause.hidden = false;
    pause.addEventListener("click", function () { paused = !paused; pause.textContent = paused ? "Go on" : "Pause"; });
    setInterval(function () { if (!paused && !document.hidden) { location.reload(); } }, every * 1000);
  }

  // Paper shows what is folded, but for the long lists.
  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = all(document, "details:not([open]):not([data-long])");
    opened.forEach(function (one) { one.open = true; });
  });
  window.addEventListener("afterprint", function () { opened.forEach(function (one) { one.open = false; }); });
})();
