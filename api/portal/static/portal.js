"use strict";
// The little that a browser does by itself: local times, copying, live rows. Every page works without it.

const language = document.documentElement.lang === "ar" ? "ar-u-nu-latn" : navigator.language || "en";
const date = { day: "numeric", month: "short", year: "numeric" };
const formats = {
  full: new Intl.DateTimeFormat(language, { ...date, hour: "2-digit", minute: "2-digit", second: "2-digit" }),
  date: new Intl.DateTimeFormat(language, date),
};
const relative = new Intl.RelativeTimeFormat(language, { numeric: "auto", style: "short" });

function ago(moment) {
  const seconds = (moment - Date.now()) / 1000;
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (Math.abs(seconds) >= length) return relative.format(Math.round(seconds / length), unit);
  }
  return relative.format(Math.round(seconds), "second");
}

function showTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    const style = element.dataset.style;
    element.textContent = style === "ago" ? ago(moment) : formats[style].format(moment);
    element.title = element.dateTime;
  }
}

function say(text) {
  const toast = document.getElementById("toast");
  toast.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => { toast.textContent = ""; }, 6000);
}

async function copy(button) {
  const source = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // Without https there is no clipboard: select it, so that a key press is enough.
    getSelection().selectAllChildren(source);
    return;
  }
  const label = button.querySelector("span");
  const before = label.textContent;
  label.textContent = button.dataset.done;
  say(button.dataset.done);
  setTimeout(() => { label.textContent = before; }, 2000);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button);
});

// Live rows: no request while nobody looks or when they were switched off; none of the answer's cost if nothing is new.
document.addEventListener("htmx:configRequest", (event) => {
  const rows = event.target;
  if (!rows.matches || !rows.matches("[data-live]")) return;
  const live = document.getElementById("live");
  if (document.hidden || (live && !live.checked)) {
    event.preventDefault();
    return;
  }
  const first = rows.querySelector("[data-id]");
  event.detail.parameters.seen = first ? first.dataset.id : "";
});

let known = new Set();
document.addEventListener("htmx:beforeSwap", (event) => {
  known = new Set(Array.from(event.target.querySelectorAll("[data-id]"), (row) => row.dataset.id));
});
document.addEventListener("htmx:afterSwap", (event) => {
  showTimes(event.target);
  for (const row of event.target.querySelectorAll("[data-id]")) {
    row.classList.toggle("fresh", !known.has(row.dataset.id));
  }
});
document.addEventListener("htmx:oobAfterSwap", () => showTimes(document));
document.addEventListener("htmx:responseError", (event) => say(event.detail.xhr.responseText.trim().slice(0, 300)));

document.addEventListener("DOMContentLoaded", () => {
  showTimes(document);
  // A page that answers a form and shows a secret: loading it anew shall not send the form again.
  const shown = document.querySelector("[data-replace]");
  if (shown) history.replaceState(null, "", shown.dataset.replace);
});
