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
  const hour = new Intl.DateTimeFormat(language, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  const step = data.times[1] - data.times[0];
  const stamp = (seconds) => (step > 3600 ? day : hour).format(seconds * 1000);
  const faint = colour("faint"), line = colour("line");
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  const axis = { stroke: faint, font, grid: { show: false }, ticks: { show: false } };
  const grid = { stroke: line, width: 1 };

  function plot(name, rows, series, unit, range) {
    const place = frame.querySelector(`[data-plot="${name}"]`);
    place.replaceChildren();
    const size = () => ({ width: place.clientWidth, height: place.clientHeight });
    const chart = new uPlot({
      ...size(),
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 7 } },
      padding: [8, 20, 0, 0],
      scales: { x: { time: true, range: [data.times[0] - step / 2, data.times.at(-1) + step / 2] }, y: { range } },
      axes: [
        { ...axis, size: 28, space: 70, values: (_, ticks) => ticks.map(stamp) },
        { ...axis, grid, size: 58, values: (_, ticks) => ticks.map((value) => value.toLocaleString(language) + unit) },
      ],
      series: [{}, ...series],
    }, [data.times, ...rows], place);
    new ResizeObserver(() => chart.setSize(size())).observe(place);
  }

  const bars = uPlot.paths.bars({ size: [0.68, 40], radius: 0.12 });
  const bar = (name) => ({ fill: colour(name), width: 0, paths: bars, points: { show: false } });
  const curve = (name, extra) => ({ stroke: colour(name), width: 2, spanGaps: false, points: { show: true, size: 5, fill: colour(name) }, ...extra });
  const from0 = (least) => (_, low, high) => [0, Math.max(least, (high || 0) * 1.08)];
  const all = data.success.map((value, i) => value + data.failed[i]);
  plot("deliveries", [all, data.success], [bar("bad"), bar("good")], "", from0(4));
  plot("rate", [data.rate], [curve("good")], "%", () => [0, 104]);
  plot("latency", [data.p50, data.p99], [curve("accent"), curve("warn")], " ms", from0(10));
}

document.addEventListener("DOMContentLoaded", () => {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
});
