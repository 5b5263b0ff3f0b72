"use strict";
// Draws the overview's charts with uPlot, in the colours of the page.

function colour(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function draw() {
  const frame = document.querySelector("[data-chart]");
  const data = JSON.parse(frame.dataset.chart);
  const daily = frame.dataset.daily === "yes";
  const language = document.documentElement.lang === "ar" ? "ar-u-nu-latn" : navigator.language || "en";
  const zone = daily ? { timeZone: "UTC" } : {};
  const day = new Intl.DateTimeFormat(language, { day: "numeric", month: "short", ...zone });
  const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  const hour = new Intl.DateTimeFormat(language, clock);
  const moment = daily ? day : new Intl.DateTimeFormat(language, { day: "numeric", month: "short", ...clock });
  const step = data.times[1] - data.times[0];
  // A canvas writes from left to right, unless the text says otherwise: a day goes before its month.
  const isolated = (text) => (document.documentElement.dir === "rtl" ? `\u2067${text}\u2069` : text);
  const stamp = (seconds) => isolated((step > 3600 ? day : hour).format(seconds * 1000));
  const faint = colour("faint"), line = colour("line");
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: faint, font, grid: { show: false }, ticks: { show: false } };
  const grid = { stroke: line, width: 1 };

  // `told` is what the legend names, in its order; the pointer shows it.
  function plot(name, rows, series, unit, range, told) {
    const place = frame.querySelector(`[data-plot="${name}"]`);
    const labels = Array.from(place.parentElement.querySelectorAll(".legend span"), (it) => `${it.textContent}: `);
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.dir = document.documentElement.dir;
    tip.hidden = true;
    place.replaceChildren();

    function tell(chart) {
      const i = chart.cursor.idx;
      tip.hidden = i == null;
      if (tip.hidden) return;
      const text = (value) => (value == null ? "—" : value.toLocaleString(language) + unit);
      const lines = told.map((values, n) => (labels[n] || "") + text(values[i]));
      tip.textContent = [moment.format(data.times[i] * 1000), ...lines].join("\n");
      const middle = chart.over.offsetLeft + chart.cursor.left - tip.offsetWidth / 2;
      tip.style.left = `${Math.max(0, Math.min(middle, place.clientWidth - tip.offsetWidth))}px`;
    }

    const size = () => ({ width: place.clientWidth, height: place.clientHeight });
    const chart = new uPlot({
      ...size(),
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      padding: [8, 20, 0, 0],
      hooks: { setCursor: [tell] },
      scales: { x: { time: true, range: [data.times[0] - step / 2, data.times.at(-1) + step / 2] }, y: { range } },
      axes: [
        { ...axis, size: 28, space: 70, values: (_, ticks) => ticks.map(stamp) },
        { ...axis, grid, size: 58, values: (_, ticks) => ticks.map((value) => value.toLocaleString(language) + unit) },
      ],
      series: [{}, ...series],
    }, [data.times, ...rows], place);
    place.append(tip);
    new ResizeObserver(() => chart.setSize(size())).observe(place);
  }

  const bars = uPlot.paths.bars({ size: [0.68, 40], radius: 0.12 });
  const bar = (name) => ({ fill: colour(name), width: 0, paths: bars, points: { show: false } });
  const curve = (name, extra) => ({ stroke: colour(name), width: 2, spanGaps: false, points: { show: true, size: 5, fill: colour(name) }, ...extra });
  const from0 = (least) => (_, low, high) => [0, Math.max(least, (high || 0) * 1.08)];
  const all = data.success.map((value, i) => value + data.failed[i]);
  plot("deliveries", [all, data.success], [bar("bad"), bar("good")], "", from0(4), [data.success, data.failed]);
  plot("rate", [data.rate], [curve("good")], "%", () => [0, 104], [data.rate]);
  plot("latency", [data.p50, data.p99], [curve("accent"), curve("warn")], " ms", from0(10), [data.p50, data.p99]);
}

document.addEventListener("DOMContentLoaded", () => {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
});
