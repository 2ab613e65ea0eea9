// Writes numbers and times as this viewer does, and says when the page is no longer live. Nothing else needs scripts.
(() => {
  "use strict";
  const whole = new Intl.NumberFormat();
  const share = new Intl.NumberFormat(undefined, { style: "percent", minimumFractionDigits: 2 });
  const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
  const short = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
  const minute = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;

  const write = (node, text) => {
    if (node.textContent !== text) node.textContent = text;
  };

  const localise = () => {
    for (const node of document.querySelectorAll("data[value]")) {
      const value = Number(node.value);
      write(node, node.classList.contains("pct") ? share.format(value / 100) : whole.format(value));
    }
    for (const node of document.querySelectorAll("time[datetime]")) {
      const at = new Date(node.dateTime);
      if (Number.isNaN(at.getTime())) continue;
      const today = node.closest(".headline") && at.toDateString() === new Date().toDateString();
      write(node, (today || node.classList.contains("clock") ? short : full).format(at));
    }
    for (const node of document.querySelectorAll("svg [data-value]")) {
      write(node, node.dataset.of + whole.format(Number(node.dataset.value)));
    }
    for (const node of document.querySelectorAll("svg text[data-at]")) {
      write(node, minute.format(new Date(node.dataset.at)));
    }
  };

  write(document.getElementById("zone"), `Times are in ${zone}; UTC is shown where you point at one.`);
  localise();
  new MutationObserver(localise).observe(document.body, { childList: true, subtree: true, characterData: true });

  // A hidden tab asks for nothing; the stream pauses itself.
  document.addEventListener("htmx:config:request", (event) => {
    const trigger = event.target.getAttribute && event.target.getAttribute("hx-trigger");
    if (document.hidden && trigger && trigger.includes("every")) event.preventDefault();
  });

  const live = document.getElementById("live");
  const note = document.getElementById("live-note");
  if (!live || !note) return;
  const SILENT = 5000;
  let heard = Date.now();
  const hear = () => {
    heard = Date.now();
    note.hidden = true;
  };
  live.addEventListener("beat", (event) => {
    hear();
    const node = document.querySelector("#as-of time");
    if (node) node.dateTime = event.detail.data;
    localise();
  });
  setInterval(() => {
    if (document.hidden) {
      heard = Date.now();
    } else if (Date.now() - heard > SILENT) {
      write(note, `Not live since ${short.format(new Date(heard))}: trying again.`);
      note.hidden = false;
      // A first connection that failed is not tried again by itself.
      if (!live._htmx || !live._htmx.sse) window.htmx.ajax("GET", live.getAttribute("hx-sse:connect"), { source: live });
    }
  }, 2000);
})();
