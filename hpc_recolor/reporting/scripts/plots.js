// Plots with zoom: by drag, wheel, buttons and keys.
(() => {
  const HEIGHT = 260, ZOOM = 0.6;
  const figures = [...document.querySelectorAll(".plot")];
  const hidden = new Set();
  let over = "epochs", smoothing = 3;
  const charts = new Map();

  const format = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(4)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(4)}k`;
    return size && size < 1e-3 ? value.toExponential(1) : String(+value.toPrecision(4));
  };

  function lineOf(series) {
    const color = page.color(`--run-${series.run % 12}`), shared = { label: series.label, spanGaps: true };
    if (series.line === "reference") return { ...shared, stroke: page.color("--ink-2"), width: 1, dash: [3, 4], points: { show: series.y.length === 1, size: 5, stroke: page.color("--ink-2") } };
    if (series.line === "pale") return { ...shared, stroke: color, alpha: 0.22, width: 1, points: { show: false } };
    if (series.line === "solid") return { ...shared, stroke: color, width: 1.75, points: { show: series.y.length === 1, size: 5, fill: color } };
    const dash = series.line === "dots" ? [6, 3] : [];
    return { ...shared, stroke: color, width: 1.5, dash, points: { show: true, size: 5, fill: color, stroke: color, filter: () => null } };
  }

  function axes(plot) {
    const base = { stroke: page.color("--ink-2"), font: `12px ${page.color("--font")}`, grid: { stroke: page.color("--line"), width: 1 }, ticks: { show: false } };
    return [
      { ...base, grid: { show: false }, values: (_, splits) => splits.map(format), space: 70, label: plot.x_label || (over === "epochs" ? "epochs" : "images seen"), labelSize: 18, labelFont: base.font, size: 28, gap: 6 },
      { ...base, values: (_, splits) => splits.map(format), size: 58, gap: 6, space: 44 },
    ];
  }

  // The point nearest to the mouse, of all series: [series, index, distance in px] or null.
  function nearest(chart) {
    const { left, top } = chart.cursor;
    if (left < 0) return null;
    const x = chart.data[0], middle = chart.posToIdx(left);
    let best = null;
    for (let number = 1; number < chart.series.length; number++) {
      if (chart.series[number].alpha < 1) continue; // the raw values behind a running mean
      const values = chart.data[number];
      for (const step of [-1, 1]) {
        let index = step < 0 ? middle : middle + 1;
        while (index >= 0 && index < x.length && (values[index] === null || values[index] === undefined)) index += step;
        if (index < 0 || index >= x.length) continue;
        const far = Math.hypot(chart.valToPos(x[index], "x") - left, chart.valToPos(values[index], "y") - top);
        if (!best || far < best[2]) best = [number, index, far];
      }
    }
    return best;
  }

  function showTooltip(plot, chart) {
    let tip = chart.over.querySelector(".tip");
    if (!tip) chart.over.append((tip = page.make("div", "tip", { "aria-hidden": "true" })));
    const found = nearest(chart);
    tip.hidden = !found || found[2] > 60;
    if (tip.hidden) return;
    const [number, index] = found, x = chart.data[0][index], y = chart.data[number][index];
    const left = chart.valToPos(x, "x"), top = chart.valToPos(y, "y");
    const unit = plot.x_label ? `at ${format(x)}` : over === "epochs" ? `epoch ${format(x)}` : `${Math.round(x).toLocaleString("en")} images`;
    tip.textContent = `${chart.series[number].label}  ${format(y)}  ${unit}`;
    const side = left > chart.over.clientWidth / 2 ? "right" : "left";
    tip.style.left = side === "left" ? `${left + 10}px` : "auto";
    tip.style.right = side === "right" ? `${chart.over.clientWidth - left + 10}px` : "auto";
    tip.style.top = `${Math.max(0, top - 30)}px`;
  }

  function visible(plot) {
    const shown = plot.series.filter((series) => series.y.length && !hidden.has(series.run));
    if (!plot.noisy || smoothing === 0) return shown;
    const isTraining = (series) => series.line === "solid" && series.y.length > 20;
    const pale = shown.filter(isTraining).map((series) => ({ ...series, line: "pale" }));
    return [...pale, ...shown.map((series) => (isTraining(series) ? { ...series, y: runningMean(series.y) } : series))];
  }

  // Means over the nearest readings, `smoothing` percent of all; fewer near the ends.
  function runningMean(values) {
    const half = Math.round((values.length * smoothing) / 200), sums = [0];
    for (const value of values) sums.push(sums.at(-1) + value);
    return values.map((_, place) => {
      const from = Math.max(0, place - half), to = Math.min(values.length, place + half + 1);
      return (sums[to] - sums[from]) / (to - from);
    });
  }

  function describe(plot, shown) {
    const last = shown.filter((series) => !["reference", "pale"].includes(series.line))
      .map((series) => `${series.label} ends at ${format(series.y.at(-1))}`);
    return `${plot.title}. ${last.join(", ") || "No data"}.`;
  }

  function draw(figure) {
    const plot = page.data.plots[figure.dataset.plot], box = figure.querySelector(".canvas"), shown = visible(plot);
    charts.get(figure)?.destroy();
    charts.delete(figure);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", describe(plot, shown));
    figure.classList.toggle("nothing", !shown.length);
    if (!shown.length) return;
    const data = uPlot.join(shown.map((series) => [series[over], series.y]));
    const options = {
      width: widthOf(figure), height: HEIGHT, legend: { show: false },
      scales: { x: { time: false } },
      cursor: { y: false, drag: { x: true, y: false, dist: 4 }, points: { show: false } },
      axes: axes(plot),
      series: [{}, ...shown.map(lineOf)],
      hooks: { setCursor: [(chart) => showTooltip(plot, chart)], setScale: [(chart, key) => key === "x" && mark(figure, chart)] },
    };
    const chart = new uPlot(options, data, box);
    charts.set(figure, chart);
    chart.over.addEventListener("wheel", (event) => wheel(figure, event), { passive: false });
    chart.over.addEventListener("mousedown", () => box.focus({ preventScroll: true }));
  }

  const widthOf = (figure) => (page.printing ? 470 : Math.max(200, figure.querySelector(".canvas").clientWidth));

  function limits(chart) {
    const x = chart.data[0];
    return [x[0], x.at(-1)];
  }

  // For tests and styles: whether the plot is zoomed.
  function mark(figure, chart) {
    const [low, high] = limits(chart), { min, max } = chart.scales.x;
    figure.classList.toggle("zoomed", min > low + 1e-9 || max < high - 1e-9);
    figure.dataset.from = min;
    figure.dataset.to = max;
  }

  function zoom(figure, factor, center = 0.5, shift = 0) {
    const chart = charts.get(figure);
    if (!chart) return;
    const [low, high] = limits(chart), { min, max } = chart.scales.x, width = Math.min((max - min) * factor, high - low);
    let from = min + ((max - min) - width) * center + shift * (max - min);
    from = Math.max(low, Math.min(from, high - width));
    if (width > 0) chart.setScale("x", { min: from, max: from + width });
  }

  function reset(figure) {
    const chart = charts.get(figure);
    if (!chart) return;
    const [min, max] = limits(chart);
    if (max > min) chart.setScale("x", { min, max });
    else chart.setData(chart.data);
  }

  function wheel(figure, event) {
    if (!event.ctrlKey && !event.metaKey && !figure.contains(document.activeElement)) return; // the page scrolls
    event.preventDefault();
    const area = charts.get(figure).over.getBoundingClientRect();
    zoom(figure, event.deltaY < 0 ? ZOOM : 1 / ZOOM, (event.clientX - area.left) / area.width);
  }

  const actions = {
    in: (figure) => zoom(figure, ZOOM), out: (figure) => zoom(figure, 1 / ZOOM), reset,
    left: (figure) => zoom(figure, 1, 0.5, -0.2), right: (figure) => zoom(figure, 1, 0.5, 0.2),
  };
  const keys = { "+": "in", "=": "in", "-": "out", 0: "reset", ArrowLeft: "left", ArrowRight: "right" };
  const drawAll = () => figures.forEach(draw);
  for (const figure of figures) {
    figure.querySelector(".tools").addEventListener("click", (event) => {
      const action = event.target.closest("[data-do]")?.dataset.do;
      if (action) actions[action](figure);
    });
    figure.querySelector(".canvas").addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      actions[keys[event.key]](figure);
    });
  }
  for (const box of document.querySelectorAll("input[data-run]"))
    box.addEventListener("change", () => {
      hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      drawAll();
    });
  for (const radio of document.querySelectorAll("input[name=over]"))
    radio.addEventListener("change", () => { over = radio.value; drawAll(); });
  const smooth = document.getElementById("smooth");
  const showSmoothing = () => {
    smoothing = Number(smooth.value);
    smooth.nextElementSibling.value = smoothing ? `${smoothing} % of the readings` : "off";
  };
  smooth?.addEventListener("input", () => { showSmoothing(); drawAll(); });
  if (smooth) showSmoothing();
  page.onTheme.push(drawAll);
  page.onPrint.push(drawAll);
  // Resized with the page.
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const figure = target.closest(".plot"), chart = charts.get(figure);
      if (chart && chart.width !== widthOf(figure)) chart.setSize({ width: widthOf(figure), height: HEIGHT });
    }
  });
  drawAll();
  for (const figure of figures) resized.observe(figure.querySelector(".canvas"));
})();
