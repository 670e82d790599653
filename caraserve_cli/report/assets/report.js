"use strict";
// Draws the plots of a report from the data in the page, sorts its tables and filters its adapters.
(() => {
  const data = JSON.parse(document.getElementById("plots").textContent);
  let drawn = [];

  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = (more) => ({ stroke: color("--soft"), grid: { stroke: color("--line"), width: 1 }, ticks: { stroke: color("--line") }, ...more });
  const short = (value) => (value == null ? "" : value >= 1e6 ? +(value / 1e6).toPrecision(3) + "M" : value >= 1e4 ? +(value / 1e3).toPrecision(3) + "k" : String(+value.toPrecision(3)));
  const ticks = (_, splits) => splits.map(short);

  function draw(box, plot, height, x, series, values, cursor) {
    const options = {
      width: Math.max(box.clientWidth, 200), height, cursor: cursor ?? {}, legend: { live: true },
      scales: { x: x.scale, y: { range: (_, low, high) => [0, Math.max(high * 1.05, plot === "use" ? 1 : 0.001)] } },
      axes: [axis({ size: 32, ...x.axis }), axis({ values: ticks, size: 54 })],
      series: [{ label: x.label, value: (_, v) => (v == null ? "-" : short(v)) }, ...series.map(([label, stroke, fill, paths]) => ({ label, stroke: color(stroke), fill: fill && color(fill), paths, width: 1.5, points: { show: false }, value: (_, v) => (v == null ? "-" : short(v)) }))],
    };
    box.classList.toggle("single", series.length === 1);
    drawn.push(new uPlot(options, values, box));
  }

  const steps = uPlot.paths.stepped({ align: 1 });
  // A histogram as steps: the last count is held until the last edge.
  const outline = (histogram, factor = 1) => [histogram.edges.map((edge) => edge * factor), [...histogram.counts, histogram.counts.at(-1)]];

  function drawHistogram(box, name) {
    const histogram = data.histograms[name];
    // 1 to 9 of a decade where little more than one is shown, then 1, 2 and 5, then whole decades.
    const splits = (_, index, low, high) => {
      const digits = high < low * 12 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : high < low * 2000 ? [1, 2, 5] : [1];
      return Array.from({ length: 14 }, (_, power) => digits.map((digit) => digit * 10 ** (power - 5))).flat().filter((value) => value >= low && value <= high);
    };
    // Round numbers first; others only where their labels do not run into one another.
    const roundness = (value) => { const digit = Math.round(value / 10 ** Math.floor(Math.log10(value) + 1e-9)); return [1, 5, 2].indexOf(digit) + 1 || 4; };
    const apart = (plot, splits) => {
      const taken = [];
      for (const value of [...splits].sort((a, b) => roundness(a) - roundness(b))) {
        const at = plot.valToPos(value, "x");
        if (taken.every((other) => Math.abs(other.at - at) >= 34)) taken.push({ value, at });
      }
      return splits.map((value) => (taken.some((other) => other.value === value) ? value : null));
    };
    const ends = [histogram.edges[0], histogram.edges.at(-1)];
    const x = { label: "ms", scale: { time: false, distr: 3, range: (_, low, high) => [low ?? ends[0], high ?? ends[1]] }, axis: { splits, values: ticks, filter: apart } };
    draw(box, name, 190, x, [["requests", "--a", "--fill", steps]], outline(histogram));
  }

  function drawTimeline(box, name) {
    const line = data.timeline, seconds = line.interval_ms / 1000;
    const count = line.peaks.running.length;
    const times = Array.from({ length: count + 1 }, (_, index) => line.start_ms / 1000 + index * seconds);
    const held = (column, factor) => { const values = column.map((value) => value * factor); return [...values, values.at(-1)]; };
    const wanted = {
      requests: [["running", "--a", "--fill", line.peaks.running, 1], ["waiting", "--b", null, line.peaks.waiting, 1]],
      use: [["KV cache %", "--a", "--fill", line.peaks.kv_use, 100], ["adapter pool %", "--b", null, line.peaks.adapter_pool_use, 100]],
      tokens: [["prefill", "--b", null, line.sums.prefill_tokens, 1 / seconds], ["decode", "--a", "--fill", line.sums.decode_tokens, 1 / seconds]],
    }[name];
    const x = { label: "s", scale: { time: false }, axis: { values: ticks } };
    draw(box, name, 200, x, wanted.map(([label, stroke, fill]) => [label, stroke, fill, steps]), [times, ...wanted.map((row) => held(row[3], row[4]))], { sync: { key: "time" } });
  }

  function drawSlack(box) {
    const x = { label: "% of the deadline left", scale: { time: false }, axis: { values: ticks } };
    draw(box, "slack", 200, x, [["requests", "--a", "--fill", steps]], outline(data.slack, 100));
  }

  function drawAll() {
    drawn.forEach((plot) => plot.destroy());
    drawn = [];
    for (const box of document.querySelectorAll("[data-plot]")) {
      const name = box.dataset.plot;
      if (name === "slack") drawSlack(box);
      else if (name in data.histograms) drawHistogram(box, name);
      else drawTimeline(box, name);
    }
  }

  function sortBy(header) {
    const body = header.closest("table").tBodies[0], column = header.cellIndex;
    const descending = header.getAttribute("aria-sort") !== "descending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = (a, b) => {
      if (a === "" || b === "") return (a === "") - (b === "");  // undefined ones last either way
      const numeric = !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
      return descending ? -numeric : numeric;
    };
    body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
  }

  for (const header of document.querySelectorAll(".sortable th")) header.addEventListener("click", () => sortBy(header));
  const filter = document.querySelector(".filter");
  filter?.addEventListener("input", () => {
    for (const row of document.getElementById("adapters").tBodies[0].rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(filter.value.toLowerCase());
  });

  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  matchMedia("print").addEventListener("change", drawAll);
  drawAll();
  document.documentElement.dataset.drawn = String(drawn.length);
})();
