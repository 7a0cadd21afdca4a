"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run").textContent);
  const series = run.series;
  const names = run.pools.map((pool) => pool.name);
  const clock = (s) => { const w = Math.round(s); return Math.floor(w / 60) + ":" + String(w % 60).padStart(2, "0"); };
  const number = (value, digits, unit) => (value === null || value === undefined ? "not known" : value.toFixed(digits) + unit);
  const pool = (tick, name) => tick.pools.find((one) => one.name === name) || {};
  const each = (tick, say) => names.map((name) => [name, say(pool(tick, name)), "p" + (names.indexOf(name) % 8)]);
  const seconds = (ms) => (ms === null || ms === undefined ? "too few to say" : (ms / 1000).toFixed(2) + " s");
  const says = {
    load: (t) => [["all", number(t.requestsPerSecond, 1, " /s"), ""], ...each(t, (p) => number(p.requestsPerSecond, 1, " /s"))],
    share: (t) => each(t, (p) => number(p.sharePercent, 0, " %")),
    latency: (t) => [["all", seconds(t.attainedMilliseconds), ""], ...each(t, (p) => seconds(p.attainedMilliseconds))],
    cost: (t) => [["ready", number(t.costPerHour, 2, " $/h"), ""], ["needed", number(t.neededPerHour, 2, " $/h"), ""],
      ["all on " + run.fallbackPool, number(t.baselinePerHour, 2, " $/h"), ""]],
    tokens: (t) => [["as routed", number(t.referencePerHour, 2, " $/h"), ""],
      ["all on " + run.fallbackPool, number(t.referenceOnFallbackPerHour, 2, " $/h"), ""]],
  };
  const flight = (name) => (t) => {
    const p = pool(t, name);
    return [["in flight", number(p.inFlight, 0, ""), ""], ["limit", p.limit === null ? "none" : String(p.limit), ""],
      ["state", p.state, ""], ["ready replicas", p.ready === null ? "not known" : String(p.ready), ""]];
  };
  for (const svg of document.querySelectorAll("svg[data-chart]")) {
    const key = svg.dataset.chart;
    const say = key.startsWith("flight:") ? flight(key.slice(7)) : says[key];
    const box = svg.closest("figure");
    const cursor = svg.querySelector(".cursor");
    if (!say || !box || series.length < 2) continue;
    let tip = null;
    const hide = () => { if (tip) tip.remove(); tip = null; cursor.setAttribute("visibility", "hidden"); };
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("pointermove", (event) => {
      const area = svg.getBoundingClientRect();
      const scale = svg.viewBox.baseVal.width / area.width;
      const left = Number(svg.dataset.left), right = svg.viewBox.baseVal.width - Number(svg.dataset.right);
      const from = Number(svg.dataset.from), to = Number(svg.dataset.to);
      const x = (event.clientX - area.left) * scale;
      if (x < left || x > right) { hide(); return; }
      const at = from + ((x - left) / (right - left)) * (to - from);
      let best = 0;
      for (let i = 1; i < series.length; i += 1) if (Math.abs(series[i].at - at) < Math.abs(series[best].at - at)) best = i;
      const tick = series[best];
      const place = left + ((tick.at - from) / (to - from)) * (right - left);
      cursor.setAttribute("x1", place); cursor.setAttribute("x2", place);
      cursor.setAttribute("visibility", "visible");
      if (!tip) { tip = document.createElement("div"); tip.className = "tip"; box.append(tip); }
      tip.replaceChildren();
      const head = document.createElement("b"); head.textContent = clock(tick.at); tip.append(head);
      for (const [name, value, colour] of say(tick)) {
        const row = document.createElement("div");
        if (colour) { const dot = document.createElement("span"); dot.className = "swatch " + colour; row.append(dot); }
        row.append(name + "  " + value); tip.append(row);
      }
      const outer = box.getBoundingClientRect();
      const wanted = area.left - outer.left + place / scale + 14;
      tip.style.left = Math.max(0, Math.min(wanted, outer.width - tip.offsetWidth - 4)) + "px";
      tip.style.top = area.top - outer.top + 26 + "px";
    });
  }
})();
