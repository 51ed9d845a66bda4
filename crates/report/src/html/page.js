"use strict";
(() => {
  const { head, units } = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const GLYPH = { pass: "✓", flaky: "≈", fail: "✗", timeout: "◷", crash: "✸", error: "!", skip: "–", "not-run": "·", unfinished: "…", "expected-fail": "≈", missing: "?" };
  const LABEL = { pass: "passed", flaky: "flaky", fail: "failed", timeout: "timed out", crash: "crashed", error: "error", skip: "skipped", "not-run": "not run", unfinished: "did not end", "expected-fail": "expected failure", missing: "missing" };
  const ORDER = ["fail", "timeout", "crash", "error", "unfinished", "flaky", "pass", "skip", "not-run"];
  const BAD = new Set(["fail", "timeout", "crash", "error", "unfinished"]);
  const CHUNK = 150;

  // Every text of the run goes in as the text of a node, and nowhere else.
  const el = (tag, attrs = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [k, v] of Object.entries(attrs)) {
      if (v === undefined || v === null || v === false) continue;
      if (k === "class") node.className = v;
      else if (k === "on") for (const [name, f] of Object.entries(v)) node.addEventListener(name, f);
      else node.setAttribute(k, v === true ? "" : v);
    }
    for (const c of children.flat()) if (c !== null && c !== undefined && c !== false) node.append(c);
    return node;
  };
  const SVG = "http://www.w3.org/2000/svg";
  const svg = (tag, attrs = {}, ...children) => {
    const node = document.createElementNS(SVG, tag);
    for (const [k, v] of Object.entries(attrs)) if (v !== undefined && v !== null) node.setAttribute(k, v);
    node.append(...children);
    return node;
  };
  const glyph = (o) => el("span", { class: `glyph v-${o}`, "aria-hidden": "true" }, GLYPH[o] || "?");
  const time = (ms) => {
    if (ms === null || ms === undefined) return "";
    const s = Math.floor(ms / 1000);
    if (s < 1) return `${ms} ms`;
    if (s < 60) return `${(ms / 1000).toFixed(1)} s`;
    if (s < 3600) return `${Math.floor(s / 60)}m ${String(s % 60).padStart(2, "0")}s`;
    return `${Math.floor(s / 3600)}h ${String(Math.floor(s / 60) % 60).padStart(2, "0")}m`;
  };
  const size = (n) => n < 1024 ? `${n} B` : n < 1048576 ? `${(n / 1024).toFixed(1)} KiB` : `${(n / 1048576).toFixed(1)} MiB`;
  const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;
  const href = (path) => {
    const base = head.base === "" ? "." : head.base.startsWith("/") || head.base.startsWith(".") ? head.base : `./${head.base}`;
    return [...base.split("/"), ...path.split("/")].map(encodeURIComponent).join("/");
  };
  const store = {
    get(k) { try { return localStorage.getItem(k); } catch { return null; } },
    set(k, v) { try { localStorage.setItem(k, v); } catch { /* a file page may have none */ } },
  };

  units.forEach((u, i) => {
    u.index = i;
    u.id = `${u.suite}/${u.test}@${u.guest}`;
    u.hay = [u.id, u.tags.join(" "), u.message || "", u.why || ""].join("\n").toLowerCase();
  });
  const byId = new Map(units.map((u) => [u.id, u]));
  const counts = {};
  for (const u of units) counts[u.outcome] = (counts[u.outcome] || 0) + 1;

  const state = { q: "", only: new Set(), guest: "", suite: "", sort: "bad", view: "list", unit: null, attempt: 0, zoom: 1 };
  let shown = [];

  /* what the address says, and back */
  const readHash = () => {
    const h = new URLSearchParams(location.hash.slice(1));
    state.q = h.get("q") || "";
    state.only = new Set((h.get("only") || "").split(",").filter((o) => ORDER.includes(o)));
    state.guest = h.get("guest") || "";
    state.suite = h.get("suite") || "";
    state.sort = ["bad", "plan", "slow", "name"].includes(h.get("sort")) ? h.get("sort") : "bad";
    state.view = ["list", "matrix", "time"].includes(h.get("view")) ? h.get("view") : "list";
    state.unit = byId.get(h.get("test")) || null;
  };
  const writeHash = () => {
    const h = new URLSearchParams();
    if (state.q) h.set("q", state.q);
    if (state.only.size) h.set("only", [...state.only].join(","));
    if (state.guest) h.set("guest", state.guest);
    if (state.suite) h.set("suite", state.suite);
    if (state.sort !== "bad") h.set("sort", state.sort);
    if (state.view !== "list") h.set("view", state.view);
    if (state.unit) h.set("test", state.unit.id);
    const text = h.toString();
    try { history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search); } catch { /* not from a file */ }
  };

  /* the head of the page */
  const drawHead = () => {
    const sum = (...all) => all.reduce((n, o) => n + (counts[o] || 0), 0);
    // An error is no failed test: our side, or the host's.
    const failed = sum("fail", "timeout", "crash"), errors = sum("error", "unfinished"), bad = failed + errors;
    const parts = [failed ? `${plural(failed, "test")} failed` : "", errors ? plural(errors, "error") : ""].filter(Boolean).join(", ");
    const said = head.cutOff ? "The run was cut off" : parts ? parts : head.incomplete ? "Parts are missing" : !units.length ? "No tests"
      : counts["not-run"] ? "The run stopped early" : sum("pass", "flaky") ? "All tests passed" : "All tests were skipped";
    $("headline").textContent = said;
    const mark = head.cutOff || (bad && !failed) || (head.incomplete && !failed) ? "error" : failed ? "fail" : sum("pass", "flaky") && !counts["not-run"] ? "pass" : "skip";
    document.documentElement.style.setProperty("--mark", `var(--${mark})`);
    const facts = [plural(units.length, "test"), time(head.millis)];
    if (head.first !== null) facts.push(new Date(head.first).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }));
    if (head.host && head.host.name) facts.push(`${head.host.name}${head.host.accelerator ? ` (${head.host.accelerator})` : ""}`);
    if (head.profile) facts.push(`profile ${head.profile}`);
    if (head.partition) facts.push(`partition ${head.partition}`);
    if (head.exit !== null) facts.push(`exit code ${head.exit}`);
    $("facts").append(...facts.map((f) => el("span", {}, f)));
    if (head.run) $("facts").append(el("code", { title: `Belljar ${head.version}: ${head.command}` }, head.run));
    const present = ORDER.filter((o) => counts[o]);
    const bar = $("bar");
    bar.setAttribute("aria-label", present.map((o) => `${counts[o]} ${LABEL[o]}`).join(", "));
    for (const o of present) {
      const part = el("span", { class: `v-${o}`, title: `${counts[o]} ${LABEL[o]}` });
      part.style.flexGrow = counts[o];
      bar.append(part);
    }
    for (const o of present) {
      $("chips").append(el("button", {
        type: "button", class: `chip v-${o}`, "data-only": o, "aria-pressed": "false",
        on: { click: () => { state.only.has(o) ? state.only.delete(o) : state.only.add(o); refresh(); } },
      }, el("span", { class: "glyph", "aria-hidden": "true" }, GLYPH[o]), el("b", {}, String(counts[o])), LABEL[o]));
    }
    const lines = [];
    if (head.cutOff) lines.push("The event log lacks its end: what had not ended is shown as such.");
    if (head.incomplete) lines.push(head.incomplete);
    if (head.stopping) lines.push(`Stopped early: ${head.stopping}`);
    if (head.message) lines.push(head.message);
    for (const [kind, a, b] of head.notes) if (kind !== "choice") lines.push(b ? `${a}: ${b}` : a);
    for (const s of head.setups) if (s.outcome !== "pass") lines.push(`Set-up ${s.script} on ${s.guest}: ${s.why || "did not end"}${s.tail ? `\n${s.tail}` : ""}`);
    if (lines.length) { $("banner").hidden = false; $("banner").textContent = lines.slice(0, 20).join("\n"); }
    const fill = (id, all, values) => $(id).append(el("option", { value: "" }, all), ...values.map((v) => el("option", { value: v }, v)));
    fill("guest", "All guests", [...new Set(units.map((u) => u.guest))].sort());
    fill("suite", "All suites", [...new Set(units.map((u) => u.suite))].sort());
  };

  /* which units are shown */
  const select = () => {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    shown = units.filter((u) =>
      (!state.only.size || state.only.has(u.outcome)) && (!state.guest || u.guest === state.guest) &&
      (!state.suite || u.suite === state.suite) && words.every((w) => u.hay.includes(w)));
    const rank = (u) => ORDER.indexOf(u.outcome);
    if (state.sort === "bad") shown.sort((a, b) => (BAD.has(a.outcome) || a.outcome === "flaky" ? rank(a) : 9) - (BAD.has(b.outcome) || b.outcome === "flaky" ? rank(b) : 9) || a.index - b.index);
    if (state.sort === "slow") shown.sort((a, b) => (b.ms || 0) - (a.ms || 0));
    if (state.sort === "name") shown.sort((a, b) => a.id.localeCompare(b.id));
    $("count").textContent = shown.length === units.length ? plural(units.length, "test") : `${shown.length} of ${plural(units.length, "test")}`;
  };

  /* more rows are made when the end of those there comes into sight */
  let watcher = null;
  const lazily = (place, items, make) => {
    if (watcher) watcher.disconnect();
    const end = el("div", { class: "sentinel" });
    let next = 0;
    const more = () => {
      const part = document.createDocumentFragment();
      for (const stop = Math.min(next + CHUNK, items.length); next < stop; next++) part.append(make(items[next], next));
      place.append(part);
      if (next >= items.length) { watcher.disconnect(); end.remove(); }
    };
    watcher = new IntersectionObserver((seen) => { if (seen.some((s) => s.isIntersecting)) more(); }, { root: innerWidth > 900 ? $("tests") : null, rootMargin: "600px" });
    more();
    if (next < items.length) { ($("tests")).append(end); watcher.observe(end); }
    lazily.until = (n) => { while (next <= n && next < items.length) more(); };
  };

  const mark = (text, cls = "") => el("span", { class: `mark ${cls}` }, text);
  const row = (u) => {
    const a = u.attempts[u.telling ?? u.attempts.length - 1];
    const marks = [mark(u.guest)];
    if (u.attempts.length + u.dropped > 1) marks.push(mark(plural(u.attempts.length + u.dropped, "try", "tries"), u.outcome === "flaky" ? "v v-flaky" : ""));
    if (a && a.slow) marks.push(mark("slow", "v v-timeout"));
    if (a) {
      const all = Object.values(a.caseCounts).reduce((x, y) => x + y, 0);
      if (all) marks.unshift(mark(`${a.caseCounts.pass || 0}/${all}`));
    }
    const first = u.outcome === "flaky" && u.attempts.find((t) => BAD.has(t.outcome));
    const tell = first ? `try ${first.attempt}: ${first.message || first.why}` : u.outcome !== "pass" && (u.message || u.why);
    return el("li", {}, el("button", {
      type: "button", class: `row v-${u.outcome}`, "data-i": u.index, "aria-current": state.unit === u ? "true" : null,
      "aria-label": `${u.test}, suite ${u.suite}, guest ${u.guest}: ${LABEL[u.outcome]}${u.ms !== null ? `, ${time(u.ms)}` : ""}`,
      on: { click: () => open(u) },
    }, glyph(u.outcome), el("span", { class: "name" }, el("span", { class: "suite" }, `${u.suite}/`), u.test),
      el("span", { class: "marks" }, marks), el("span", { class: "time" }, time(u.ms)),
      tell ? el("span", { class: `why ${BAD.has(u.outcome) ? "bad" : ""}` }, tell.split("\n")[0]) : null));
  };

  const drawList = (main) => {
    const list = el("ul", { class: "rows", id: "rows" });
    main.append(list);
    lazily(list, shown, row);
  };

  const drawMatrix = (main) => {
    const guests = [...new Set(shown.map((u) => u.guest))].sort();
    const tests = new Map();
    for (const u of [...shown].sort((a, b) => a.index - b.index)) {
      const key = JSON.stringify([u.suite, u.test]);
      if (!tests.has(key)) tests.set(key, { suite: u.suite, test: u.test, cells: new Map() });
      tests.get(key).cells.set(u.guest, u);
    }
    const items = [];
    let suite = null;
    const order = [...new Set([...tests.values()].map((t) => t.suite))];
    for (const t of [...tests.values()].sort((a, b) => order.indexOf(a.suite) - order.indexOf(b.suite))) {
      if (t.suite !== suite) { suite = t.suite; items.push({ group: suite }); }
      items.push(t);
    }
    const body = el("tbody");
    main.append(el("table", { class: "matrix" },
      el("caption", { class: "sr" }, "Tests by guest"),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Test"), guests.map((g) => el("th", { scope: "col" }, g)))), body));
    lazily(body, items, (t) => t.group !== undefined
      ? el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: guests.length + 1 }, t.group))
      : el("tr", {}, el("th", { scope: "row", title: t.test }, t.test), guests.map((g) => {
        const u = t.cells.get(g);
        if (!u) return el("td", {}, el("span", { class: "none", "aria-label": "not planned" }, "·"));
        return el("td", {}, el("button", {
          type: "button", class: `cell ${u.outcome} v-${u.outcome}`, "data-i": u.index, "aria-current": state.unit === u ? "true" : null,
          title: `${u.id}: ${LABEL[u.outcome]} ${time(u.ms)}`, "aria-label": `${u.test} on ${g}: ${LABEL[u.outcome]}`, on: { click: () => open(u) },
        }, GLYPH[u.outcome]));
      })));
  };

  const drawTimeline = (main) => {
    const set = new Set(shown);
    const known = new Map(head.guests.map((g) => [g.i, g]));
    const end = Math.max(head.length, 1);
    const runs = [];
    for (const u of units) u.attempts.forEach((a, n) => runs.push({ u, a, n, from: a.from, to: a.to ?? end, lane: known.get(a.guest)?.slot }));
    // Without a machine a try finds the first free lane below those of the machines.
    const slots = head.guests.reduce((n, g) => Math.max(n, g.slot + 1), 0);
    const free = [];
    for (const r of runs.filter((r) => r.lane === undefined).sort((a, b) => a.from - b.from)) {
      let lane = free.findIndex((t) => t <= r.from);
      if (lane < 0) lane = free.length;
      free[lane] = r.to;
      r.lane = slots + lane;
    }
    const lanes = Math.max(1, slots + free.length);
    const LANE = 36, TOP = 24, LEFT = 34;
    const scroll = el("div", { class: "timescroll", tabindex: "0", role: "group", "aria-label": "Timeline of guests" });
    const step = (by) => { state.zoom = Math.min(64, Math.max(1, state.zoom * by)); refresh(); };
    main.append(el("div", { class: "timehead" },
      el("span", { class: "key" }, el("span", { class: "swatch boot" }), "a guest starts"),
      el("span", { class: "key" }, el("span", { class: "swatch alive" }), "ready"),
      el("span", { class: "key" }, el("span", { class: "swatch run" }), "a test runs"),
      el("span", {}, `${plural(lanes, "lane")}, ${plural(head.guests.length, "machine")}`),
      el("span", { class: "zoom" }, "zoom",
        el("button", { type: "button", "aria-label": "Zoom out", on: { click: () => step(0.5) } }, "−"),
        el("button", { type: "button", "aria-label": "Zoom in", on: { click: () => step(2) } }, "+"))), scroll);
    const width = Math.max(320, main.clientWidth - 44) * state.zoom;
    const x = (t) => LEFT + (t / end) * (width - LEFT - 12);
    const w = (a, b) => Math.max(1.5, x(b) - x(a));
    const art = svg("svg", { class: "time-svg", width, height: TOP + lanes * LANE + 8, role: "group" });
    art.append(svg("defs", {}, svg("pattern", { id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" }, svg("line", { class: "hatch-line", x1: 0, y1: 0, x2: 0, y2: 6 }))));
    const rough = end / Math.max(2, width / 110);
    const unitStep = [100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 9e5, 18e5, 36e5, 72e5, 144e5].find((s) => s >= rough) || 288e5;
    for (let t = 0; t <= end; t += unitStep) {
      const label = svg("text", { x: x(t) + 3, y: 14 });
      label.textContent = t === 0 ? "0" : unitStep < 1000 ? `${(t / 1000).toFixed(1)} s` : time(t).replace(".0 s", " s");
      art.append(svg("line", { class: "tick", x1: x(t), x2: x(t), y1: 0, y2: TOP + lanes * LANE }), label);
    }
    for (const [from, to] of head.pauses) art.append(svg("rect", { class: "pause", x: x(from), width: w(from, to ?? end), y: TOP, height: lanes * LANE }));
    for (let l = 0; l < lanes; l++) {
      const label = svg("text", { x: 8, y: TOP + l * LANE + 21 });
      label.textContent = String(l + 1);
      art.append(label);
    }
    for (const g of head.guests) {
      const to = g.to ?? end, ready = Math.min(g.ready ?? to, to), y = TOP + g.slot * LANE + 3;
      const about = `${g.name} (${g.how}), ${time(to - g.from)}, ready after ${g.ready === null ? "–" : time(ready - g.from)}${g.memory ? `, ${size(g.memory)}` : ""}${g.why ? `: ${g.why}` : ""}`;
      for (const [cls, a, b] of [["boot", g.from, ready], ["alive", ready, to]]) {
        if (b <= a && cls === "alive") continue;
        const title = svg("title");
        title.textContent = about;
        art.append(svg("rect", { class: cls, x: x(a), width: w(a, b), y, height: LANE - 6, rx: 4 }, title));
      }
    }
    for (const r of runs) {
      if (!set.has(r.u)) continue;
      const command = r.a.phases.find(([p]) => p === "running");
      const from = command ? command[1] : r.from;
      const title = svg("title");
      title.textContent = `${r.u.id}${r.u.attempts.length > 1 ? ` try ${r.a.attempt}` : ""}: ${LABEL[r.a.outcome]}, ${time(r.to - from)}`;
      const rect = svg("rect", {
        class: `run v-${r.a.outcome}`, x: x(from), width: w(from, r.to), y: TOP + r.lane * LANE + 9, height: LANE - 18, rx: 3, tabindex: "0", role: "button",
        "aria-label": title.textContent, "data-i": r.u.index, "aria-current": state.unit === r.u ? "true" : null,
      }, title);
      const go = () => open(r.u, r.n);
      rect.addEventListener("click", go);
      rect.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); e.stopPropagation(); go(); } });
      art.append(rect);
      const room = Math.floor((w(from, r.to) - 8) / 6.4);
      if (room >= 5) {
        const name = svg("text", { class: "runname", x: x(from) + 5, y: TOP + r.lane * LANE + 22 });
        name.textContent = r.u.test.length > room ? `${r.u.test.slice(0, room - 1)}…` : r.u.test;
        art.append(name);
      }
    }
    scroll.append(art);
  };

  /* one test */
  const section = (name, note, ...body) => [el("h3", {}, name, note ? el("span", { class: "note" }, note) : null), ...body];
  const link = (path, text, guestMade) => el("a", { href: href(path), rel: "noopener noreferrer", download: guestMade ? "" : null, target: guestMade ? null : "_blank" }, text || path);

  const drawDetail = () => {
    const box = $("detail");
    box.replaceChildren();
    const u = state.unit;
    box.hidden = !u;
    if (!u) return;
    box.scrollTop = 0;
    const a = u.attempts[state.attempt];
    box.append(el("div", { class: "head" }, glyph(u.outcome),
      el("h2", { id: "detail-title", tabindex: "-1" }, el("span", { class: "dim" }, `${u.suite}/`), u.test, el("span", { class: "dim" }, ` @ ${u.guest}`)),
      el("button", { type: "button", class: "quiet", "aria-label": "Close", on: { click: close } }, "✕")));
    const said = [el("b", {}, LABEL[u.outcome])];
    if (u.why && u.outcome !== "pass" && u.outcome !== "flaky") said.push(` — ${u.why}`);
    if (u.message && u.message !== u.why) said.push(`\n${u.message}`);
    box.append(el("div", { class: `verdict v-${u.outcome}` }, said));
    const meta = [];
    if (u.ms !== null) meta.push(time(u.ms));
    if (u.file) meta.push(el("code", {}, u.file));
    meta.push(...u.tags.map((t) => mark(t)));
    box.append(el("div", { class: "meta" }, meta.map((m) => el("span", {}, m))));
    if (u.attempts.length > 1) {
      box.append(el("div", { class: "tries", role: "group", "aria-label": "Tries" }, u.attempts.map((t, n) => el("button", {
        type: "button", "aria-pressed": String(n === state.attempt), on: { click: () => { state.attempt = n; drawDetail(); } },
      }, glyph(t.outcome), ` try ${t.attempt}${u.attempts.some((x) => x.repeat > 1) ? ` of repetition ${t.repeat}` : ""}`, t.ms !== null ? ` · ${time(t.ms)}` : "")),
        u.dropped ? mark(`${u.dropped} more, not kept`) : null));
    }
    if (!a) return;
    if (u.attempts.length > 1 && (a.why || a.message)) box.append(el("div", { class: `verdict v-${a.outcome}` }, el("b", {}, LABEL[a.outcome]), ` — ${a.why || ""}${a.message ? `\n${a.message}` : ""}`));
    if (a.cases.length) box.append(...cases(a));
    for (const o of a.outputs) {
      const note = el("span", { class: "note" }, o.bytes > o.kept ? `the last ${size(o.kept)} of ${size(o.bytes)}` : size(o.bytes), o.cut ? ", cut" : "", o.path ? " · " : "", o.path ? link(o.path, "whole file") : "");
      box.append(el("h3", {}, o.stream, note), o.tail ? el("pre", { tabindex: "0", "aria-label": o.stream }, o.tail) : el("p", { class: "time" }, "empty"));
    }
    if (a.console.length) box.append(...section("Console", "its last lines", el("pre", { tabindex: "0", "aria-label": "console" }, a.console.join("\n"))));
    if (a.files.length) box.append(...section("Files", `${plural(a.files.length + a.more, "file")} left by the test`, el("ul", { class: "files" },
      a.files.map(([path, bytes]) => el("li", {}, link(`${a.dir}/${path}`, path, true), el("span", { class: "time" }, size(bytes)))))));
    if (a.phases.length) {
      const ends = [...a.phases.slice(1).map((p) => p[1]), a.to ?? head.length];
      const bar = el("div", { class: "phases", role: "img", "aria-label": a.phases.map(([p, t], n) => `${p} ${time(ends[n] - t)}`).join(", ") });
      a.phases.forEach(([p, t], n) => {
        const part = el("span", { title: `${p}: ${time(ends[n] - t)}` }, `${p} ${time(ends[n] - t)}`);
        part.style.flexGrow = Math.max(1, ends[n] - t);
        part.style.flexBasis = "0";
        part.style.setProperty("--p", `${15 + n * 12}%`);
        bar.append(part);
      });
      box.append(...section("Time", "", bar));
    }
    if (a.notes.length) box.append(...section("Notes", "", el("ul", { class: "notes" }, a.notes.map(([kind, x, y]) =>
      el("li", {}, kind === "choice" ? "" : `${kind}: `, x, y ? el("span", { class: "dim" }, ` — ${y}`) : "")))));
  };

  const cases = (a) => {
    const bad = ["fail", "error", "missing"];
    const list = [...a.cases].sort((x, y) => bad.includes(y[0]) - bad.includes(x[0]));
    const total = Object.values(a.caseCounts).reduce((x, y) => x + y, 0);
    const note = Object.entries(a.caseCounts).map(([r, n]) => `${n} ${LABEL[r]}`).join(", ");
    const body = el("tbody");
    let next = 0;
    const button = el("button", { type: "button", class: "more", on: { click: () => add(200) } });
    const add = (n) => {
      for (const stop = Math.min(next + n, list.length); next < stop; next++) {
        const [r, name, message, ms] = list[next];
        body.append(el("tr", {}, el("td", {}, glyph(r), el("span", { class: "sr" }, LABEL[r])),
          el("td", {}, name, message ? el("div", { class: "msg" }, message) : null), el("td", { class: "time" }, time(ms))));
      }
      button.hidden = next >= list.length;
      button.textContent = `${list.length - next} more`;
    };
    add(Math.max(12, list.filter((c) => bad.includes(c[0])).length > 50 ? 50 : list.filter((c) => bad.includes(c[0])).length));
    return section("Cases", `${note}${total > list.length ? `; ${total - list.length} not kept` : ""}`, el("table", { class: "cases" }, body), button);
  };

  /* moving about */
  const current = (u) => document.querySelectorAll("#tests [data-i]").forEach((n) => {
    if (u && n.dataset.i === String(u.index)) n.setAttribute("aria-current", "true"); else n.removeAttribute("aria-current");
  });
  const open = (u, attempt) => {
    state.unit = u;
    state.attempt = attempt ?? u.telling ?? Math.max(0, u.attempts.length - 1);
    drawDetail();
    current(u);
    writeHash();
  };
  const close = () => {
    const was = state.unit;
    state.unit = null;
    drawDetail();
    current(null);
    writeHash();
    if (was) document.querySelector(`#tests [data-i="${was.index}"]`)?.focus();
  };
  const move = (by, only) => {
    let list = state.view === "list" ? shown : [...shown].sort((a, b) => a.index - b.index);
    if (only) list = list.filter((u) => BAD.has(u.outcome) || u === state.unit);
    if (!list.length) return;
    const focused = document.activeElement?.dataset?.i;
    const from = list.findIndex((u) => u === state.unit || (!state.unit && focused === String(u.index)));
    const to = from < 0 ? (by > 0 ? 0 : list.length - 1) : Math.min(list.length - 1, Math.max(0, from + by));
    const u = list[to];
    if (state.view === "list") lazily.until?.(shown.indexOf(u)); else lazily.until?.(Infinity);
    open(u);
    const node = document.querySelector(`#tests [data-i="${u.index}"]`);
    node?.focus({ preventScroll: true });
    node?.scrollIntoView({ block: "nearest" });
  };

  const refresh = () => {
    select();
    const main = $("tests");
    main.replaceChildren();
    lazily.until = null;
    main.setAttribute("aria-labelledby", `tab-${state.view}`);
    if (!shown.length) main.append(el("p", { class: "empty" }, units.length ? "No test matches. Esc clears the search." : "No tests were run."));
    else ({ list: drawList, matrix: drawMatrix, time: drawTimeline })[state.view](main);
    for (const b of document.querySelectorAll("[data-view]")) {
      const on = b.dataset.view === state.view;
      b.setAttribute("aria-selected", String(on));
      b.tabIndex = on ? 0 : -1;
    }
    for (const c of document.querySelectorAll("[data-only]")) c.setAttribute("aria-pressed", String(state.only.has(c.dataset.only)));
    $("sort-label").hidden = state.view !== "list";
    $("q").value = state.q; $("guest").value = state.guest; $("suite").value = state.suite; $("sort").value = state.sort;
    writeHash();
  };
  const view = (v) => { state.view = v; refresh(); };

  const dark = () => {
    const set = document.documentElement.dataset.theme;
    return set ? set === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const flip = () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    store.set("belljar-theme", theme);
  };

  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || $("keys").open) return;
    const typing = e.target.matches("input, select, textarea");
    if (e.key === "Escape") {
      if (e.target === $("q") && state.q) { state.q = ""; refresh(); }
      else if (typing) e.target.blur();
      else if (state.unit) close();
      else if (state.q || state.only.size || state.guest || state.suite) { state.q = ""; state.only.clear(); state.guest = ""; state.suite = ""; refresh(); }
      else return;
      e.preventDefault();
      return;
    }
    if (typing) {
      if (e.target === $("q") && (e.key === "ArrowDown" || e.key === "Enter")) { e.preventDefault(); move(1); }
      return;
    }
    if (e.target.matches("[role=tab]") && (e.key === "ArrowRight" || e.key === "ArrowLeft")) {
      const all = [...document.querySelectorAll("[data-view]")];
      const n = (all.indexOf(e.target) + (e.key === "ArrowRight" ? 1 : all.length - 1)) % all.length;
      view(all[n].dataset.view);
      all[n].focus();
      e.preventDefault();
      return;
    }
    const inText = e.target.closest("pre, .timescroll");
    const keys = {
      "/": () => { $("q").focus(); $("q").select(); }, j: () => move(1), k: () => move(-1), n: () => move(1, true), p: () => move(-1, true),
      1: () => view("list"), 2: () => view("matrix"), 3: () => view("time"), d: flip, "?": () => $("keys").showModal(),
      f: () => { const all = ORDER.filter((o) => BAD.has(o) && counts[o]); const on = all.length && all.every((o) => state.only.has(o)); state.only = new Set(on ? [] : all); refresh(); },
    };
    if (!inText) { keys.ArrowDown = keys.j; keys.ArrowUp = keys.k; }
    if (e.key === "Enter" && state.unit && e.target.matches("#tests [aria-current]")) { e.preventDefault(); $("detail-title")?.focus(); return; }
    const act = Object.hasOwn(keys, e.key) ? keys[e.key] : null;
    if (act) { e.preventDefault(); act(); }
  });
  let waiting = 0;
  $("q").addEventListener("input", () => { state.q = $("q").value; cancelAnimationFrame(waiting); waiting = requestAnimationFrame(refresh); });
  for (const id of ["guest", "suite", "sort"]) $(id).addEventListener("change", () => { state[id] = $(id).value; refresh(); });
  for (const b of document.querySelectorAll("[data-view]")) b.addEventListener("click", () => view(b.dataset.view));
  $("theme").addEventListener("click", flip);
  $("keys-button").addEventListener("click", () => $("keys").showModal());
  addEventListener("hashchange", () => { readHash(); refresh(); if (state.unit) open(state.unit); else drawDetail(); });

  // The timeline is as wide as its place.
  let width = 0;
  new ResizeObserver(() => {
    const now = $("tests").clientWidth;
    if (state.view !== "time" || now === width) return;
    width = now;
    const focused = $("tests").contains(document.activeElement) ? document.activeElement.dataset.i : null;
    refresh();
    if (focused) document.querySelector(`#tests [data-i="${focused}"]`)?.focus({ preventScroll: true });
  }).observe($("tests"));

  const theme = store.get("belljar-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
  readHash();
  drawHead();
  refresh();
  if (state.unit) open(state.unit);
  document.documentElement.dataset.ready = "true";
})();
