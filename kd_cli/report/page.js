"use strict";
(() => {
  const charts = JSON.parse(document.getElementById("data").textContent);
  const tip = document.getElementById("tip");
  const said = document.getElementById("said");
  const views = (window.kdViews = {});
  const TABLE_ROWS = 500;
  const ERRORS = 1; // what of Vega's log is shown

  const element = (name, text, properties) => {
    const made = Object.assign(document.createElement(name), properties);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const rowsOf = (packed) => {
    const whole = ([key, column]) => [key, column.names ? column.places.map((place) => column.names[place]) : column];
    const columns = Object.entries(packed).map(whole);
    return (columns[0]?.[1] ?? []).map((_, index) => Object.fromEntries(columns.map(([key, column]) => [key, column[index]])));
  };

  // Names may hold anything: text only, never markup.
  const showTip = (handler, event, item, value) => {
    if (value === null || value === undefined || value === "") {
      tip.hidden = true;
      return;
    }
    const table = element("table");
    for (const [name, content] of Object.entries(typeof value === "object" ? value : { "": value })) {
      const row = table.insertRow();
      row.append(element("th", name), element("td", content));
    }
    tip.replaceChildren(table);
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - box.width - 8);
    const below = event.clientY + 14 + box.height < window.innerHeight;
    tip.style.transform = `translate(${Math.max(8, left)}px, ${below ? event.clientY + 14 : Math.max(8, event.clientY - box.height - 10)}px)`;
  };

  const zoom = (view, factor) => {
    if (factor === "reset") return view.signal("zoom_tuple", null).signal("zoom_epoch", null).signal("zoom_value", null).runAsync();
    for (const [signal, scale] of [["zoom_epoch", "x"], ["zoom_value", "y"]]) {
      const [low, high] = view.scale(scale).domain();
      const half = ((high - low) / 2) * Number(factor);
      view.signal(signal, [(low + high) / 2 - half, (low + high) / 2 + half]);
    }
    return view.runAsync();
  };

  const connect = (figure, view) => {
    const boxes = [...figure.querySelectorAll("[data-toggle]")];
    const hide = () => view.signal("hidden", boxes.filter((box) => !box.checked).map((box) => box.value)).runAsync();
    boxes.forEach((box) => box.addEventListener("change", hide));
    figure.querySelectorAll("[data-all]").forEach((button) =>
      button.addEventListener("click", () => {
        boxes.forEach((box) => (box.checked = button.dataset.all === "true"));
        hide();
      }),
    );
    figure.querySelectorAll("[data-signal]").forEach((input) =>
      input.addEventListener("change", () => {
        view.signal(input.dataset.signal, input.type === "checkbox" ? input.checked : input.value);
        if (input.type === "radio") zoom(view, "reset");
        view.runAsync();
      }),
    );
    figure.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => zoom(view, button.dataset.zoom)));
    if (boxes.some((box) => !box.checked)) hide(); // a browser that reloads keeps what was ticked
  };

  const table = (chart) => {
    const keys = Object.keys(chart.headings).filter((key) => chart.columns[key]);
    const rows = rowsOf(chart.columns);
    const made = element("table");
    const head = made.createTHead().insertRow();
    keys.forEach((key) => head.append(element("th", chart.headings[key], { scope: "col" })));
    const body = made.createTBody();
    for (const row of rows.slice(0, TABLE_ROWS)) {
      const line = body.insertRow();
      for (const key of keys) {
        const value = row[key] ?? "–";
        const number = typeof value === "number";
        line.append(element("td", number ? String(Number(value.toPrecision(6))) : value, { className: number ? "n" : "" }));
      }
    }
    const parts = [made];
    if (rows.length > TABLE_ROWS) parts.push(element("p", `The first ${TABLE_ROWS} of ${rows.length} rows; all are in results.json.`, { className: "note" }));
    return parts;
  };

  const draw = async (chart) => {
    const figure = document.querySelector(`[data-chart="${chart.id}"]`);
    const target = figure.querySelector(".drawing");
    const details = figure.querySelector("details.data");
    details.addEventListener("toggle", () => details.lastElementChild.replaceChildren(...table(chart)), { once: true });
    const specification = { ...chart.specification, datasets: { rows: rowsOf(chart.columns) } };
    try {
      const options = { actions: false, ast: true, defaultStyle: false, logLevel: ERRORS, renderer: "svg", tooltip: showTip };
      const { view } = await vegaEmbed(target, specification, options);
      views[chart.id] = view;
      connect(figure, view);
    } catch (error) {
      target.replaceChildren(element("p", `This chart cannot be drawn: ${error.message}`, { className: "failed" }));
      throw error;
    }
  };

  const theme = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const name = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    name();
  });
  dark.addEventListener("change", name);
  name();

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", text); // a page from a disk may be refused the clipboard
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    await copy(button.previousElementSibling.textContent);
    button.focus();
    button.textContent = "Copied";
    said.textContent = "Copied to the clipboard";
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hidden = true;
  });

  (async () => {
    for (const chart of charts) await draw(chart).catch((error) => console.error(error));
    document.documentElement.dataset.drawn = "all";
  })();
})();
