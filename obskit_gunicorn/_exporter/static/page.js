// Keeps the exporter's page current: asks for -/status, fills the tables that the server has
// written, and adds rates of two answers. Text is only ever set as textContent, so that no name
// can do anything. Nothing is asked while the page is hidden or paused.
"use strict";

(() => {
  const SECONDS = 2;
  const TIMEOUT_SECONDS = 10;
  const POINTS = 150;
  const WINDOW = 5; // answers that latencies are taken over
  const NOTHING = "-";
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);

  // ---- Figures as people read them; live_page.py writes the same

  const grouped = (value, digits) =>
    value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  const two = (value) => String(Math.floor(value)).padStart(2, "0");

  function bytes(value) {
    for (const unit of ["B", "KiB", "MiB"]) {
      if (value < 1024) return unit === "B" ? `${value.toFixed(0)} B` : `${value.toFixed(1)} ${unit}`;
      value /= 1024;
    }
    return `${value.toFixed(1)} GiB`;
  }

  function age(seconds) {
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} min ${two(seconds % 60)} s`;
    if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} min`;
    return `${Math.floor(minutes / 1440)} d ${two((minutes % 1440) / 60)} h`;
  }

  function shown(value, form) {
    if (value === null || value === undefined) return NOTHING;
    switch (form) {
      case "truth": return value ? "yes" : "no";
      case "text": case "id": return String(value);
      case "bytes": return bytes(value);
      case "duration": return value < 1 ? `${(value * 1000).toFixed(1)} ms` : `${value.toFixed(2)} s`;
      case "age": return age(value);
      case "time": return `${new Date(value * 1000).toISOString().slice(0, 19).replace("T", " ")} UTC`;
      case "rate": case "percent": return grouped(value, 1);
      default: return grouped(value, Number.isInteger(value) ? 0 : 1);
    }
  }

  // ---- Rates of two answers

  // A counter that has fallen has begun anew.
  const grown = (now, before) => (now === null || before === null || now < before ? null : now - before);

  function quantile(share, buckets) {
    const total = buckets.length ? buckets[buckets.length - 1].count : 0;
    const rank = share * total;
    let low = 0, below = 0;
    if (!(rank > 0)) return null;
    for (const { le, count } of buckets) {
      if (count >= rank) return le === "+Inf" ? low : low + ((le - low) * (rank - below)) / (count - below);
      low = le;
      below = count;
    }
    return low;
  }

  function between(now, before) {
    const first = new Map((before?.buckets ?? []).map(({ le, count }) => [le, count]));
    const buckets = (now?.buckets ?? []).map(({ le, count }) => ({ le, count: count - (first.get(le) ?? 0) }));
    return buckets.some(({ count }) => count < 0) ? [] : buckets;
  }

  function classRates(now, before, seconds) {
    const rates = {};
    for (const [name, count] of Object.entries(now)) {
      const more = grown(count, before[name] ?? 0);
      if (more !== null) rates[name] = more / seconds;
    }
    return rates;
  }

  // ---- Cards with a curve

  const cards = new Map();

  function card(title, lines) {
    let found = cards.get(title);
    if (!found) {
      const item = document.createElement("li");
      const head = item.appendChild(document.createElement("h3"));
      head.textContent = title;
      const value = item.appendChild(document.createElement("p"));
      value.className = "value";
      const detail = item.appendChild(document.createElement("p"));
      detail.className = "detail";
      const svg = item.appendChild(document.createElementNS(SVG, "svg"));
      svg.setAttribute("viewBox", `0 0 ${POINTS - 1} 100`);
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("aria-hidden", "true"); // the text says the same
      const curves = [];
      for (let number = 0; number < lines; number += 1) {
        const line = svg.appendChild(document.createElementNS(SVG, "polyline"));
        line.setAttribute("class", `line${number}`);
        curves.push({ line, points: [] });
      }
      byId("cards").append(item);
      found = { value, detail, curves };
      cards.set(title, found);
    }
    return found;
  }

  function draw(title, value, detail, ...numbers) {
    const { value: big, detail: small, curves } = card(title, numbers.length);
    big.textContent = value;
    small.textContent = detail;
    curves.forEach((curve, at) => {
      curve.points.push(numbers[at]);
      if (curve.points.length > POINTS) curve.points.shift();
    });
    const most = Math.max(1e-9, ...curves.flatMap(({ points }) => points.map((each) => each ?? 0)));
    for (const { line, points } of curves) {
      const first = POINTS - points.length;
      line.setAttribute("points", points
        .map((each, at) => (each === null ? null : `${first + at},${(98 - (each / most) * 96).toFixed(1)}`))
        .filter((each) => each !== null).join(" "));
    }
  }

  function forget() {
    for (const { curves } of cards.values()) for (const curve of curves) curve.points.length = 0;
  }

  // ---- Tables

  function fill(body, rows) {
    while (body.rows.length > rows.length) body.deleteRow(-1);
    rows.forEach((cells, at) => {
      const row = body.rows[at] ?? body.insertRow();
      cells.forEach((text, place) => {
        let cell = row.cells[place];
        if (!cell) {
          cell = row.appendChild(document.createElement(place ? "td" : "th"));
          if (!place) cell.scope = "row";
        }
        if (cell.textContent !== text) cell.textContent = text;
      });
    });
  }

  const body = (id) => byId(id).tBodies[0];
  const totals = (found) => Object.entries(found).map(([name, count]) => [name, shown(count)]);

  // ---- The table of workers

  const table = byId("workers");
  const heads = [...table.tHead.rows[0].cells];
  const columns = heads.map((head) => ({ key: head.dataset.key, form: head.dataset.form }));
  const sorting = { key: "slot", down: false };
  let workers = [];

  function compare(one, other) {
    const [a, b] = [one[sorting.key], other[sorting.key]];
    const missing = (a === null) - (b === null);
    if (missing) return missing; // what is not known is last
    const order = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return sorting.down ? -order : order;
  }

  function showWorkers() {
    const most = Number(table.dataset.most);
    const rows = [...workers].sort(compare).slice(0, most);
    fill(table.tBodies[0], rows.map((row) => columns.map(({ key, form }) => shown(row[key], form))));
    const note = workers.length > most ? `${most} of ${workers.length} workers`
      : workers.length ? "" : "No worker holds a slot.";
    if (byId("workers-note").textContent !== note) byId("workers-note").textContent = note;
    for (const head of heads) {
      if (head.dataset.key !== sorting.key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
    }
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const { key, form } = head.dataset;
      sorting.down = sorting.key === key ? !sorting.down : form !== "text" && form !== "id";
      sorting.key = key;
      showWorkers();
    });
  }

  function ratedWorkers(now, before) {
    const known = new Map((before?.workers.list ?? []).map((worker) => [worker.slot, worker]));
    const seconds = before ? now.time - before.time : 0;
    return now.workers.list.map((worker) => {
      const last = known.get(worker.slot);
      const isSame = last && last.pid === worker.pid && seconds > 0;
      const rate = (name) => {
        const more = isSame ? grown(worker[name], last[name]) : null;
        return more === null ? null : more / seconds;
      };
      const cpu = rate("cpu_seconds");
      return {
        ...worker,
        state: [worker.state, worker.reason].filter(Boolean).join(" "),
        requests_rate: rate("requests"),
        cpu_rate: cpu === null ? null : 100 * cpu,
      };
    });
  }

  // ---- One answer

  const answers = [];

  function show(status) {
    const last = answers[answers.length - 1];
    if (last && last.directory.generation_start !== status.directory.generation_start) {
      answers.length = 0;
      forget();
    }
    const before = answers[answers.length - 1];
    const { requests } = status;
    if (before && status.time > before.time) {
      const rates = classRates(requests.total, before.requests.total, status.time - before.time);
      const names = Object.keys(rates);
      const all = names.reduce((sum, name) => sum + rates[name], 0);
      const fast = between(requests.duration, answers[0].requests.duration);
      const [p50, p95, p99] = [0.5, 0.95, 0.99].map((share) => quantile(share, fast));
      const waiting = status.listeners.reduce((sum, each) => sum + (each.waiting ?? 0), 0);
      const limit = status.listeners.reduce((sum, each) => sum + (each.limit ?? 0), 0);
      const of = (most) => (most === null ? "" : `of ${shown(most)}`);
      byId("now").hidden = false;
      draw("Requests per second", shown(all, "rate"),
        names.map((name) => `${name} ${shown(rates[name], "rate")}`).join(" · "), all);
      draw("Latency", shown(p50, "duration"),
        `p95 ${shown(p95, "duration")} · p99 ${shown(p99, "duration")}`, p50, p95, p99);
      draw("Requests in progress", shown(requests.in_progress), of(requests.capacity), requests.in_progress);
      draw("Connections", shown(requests.connections), of(requests.capacity), requests.connections);
      draw("Waiting to be accepted", status.listeners.length ? shown(waiting) : NOTHING,
        limit ? of(limit) : "", status.listeners.length ? waiting : null);
      draw("Workers ready", shown(status.workers.ready), of(status.workers.wanted), status.workers.ready);
    }
    for (const cell of document.querySelectorAll("[data-figure]")) {
      const value = cell.dataset.figure.split(".").reduce((found, name) => found?.[name], status);
      const text = shown(value, cell.dataset.form);
      if (cell.textContent !== text) cell.textContent = text;
    }
    fill(body("classes"), totals(requests.total));
    fill(body("exits"), totals(status.workers.exits));
    fill(body("listeners"), status.listeners.map((each) => [each.address, shown(each.waiting), shown(each.limit)]));
    fill(body("metrics"), status.metrics.map((each) =>
      [each.name, shown(each.series), each.label || NOTHING, shown(each.label_values)]));
    byId("about").textContent = status.servers.map((server) =>
      `Gunicorn ${server.version}, Python ${server.python}, ${server.worker_class} workers`).join("; ");
    workers = ratedWorkers(status, before);
    showWorkers();
    answers.push(status);
    if (answers.length > WINDOW) answers.shift();
  }

  // ---- Asking

  let timer = 0, isPaused = false, isAsking = false;

  function say(text) { // read aloud, so only when it changes
    if (byId("state").textContent !== text) byId("state").textContent = text;
  }

  async function ask() {
    clearTimeout(timer);
    if (isPaused || isAsking || document.hidden) return;
    isAsking = true;
    const abort = new AbortController();
    const limit = setTimeout(() => abort.abort(), TIMEOUT_SECONDS * 1000);
    try {
      // Where the page was opened with a user and a password in its address, fetch refuses that.
      const url = new URL("-/status", location.href);
      url.username = url.password = "";
      const answer = await fetch(url, { cache: "no-store", signal: abort.signal });
      if (answer.status === 401) throw new Error("it asks who you are: load the page again");
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      const status = await answer.json();
      if (status.version !== 1) throw new Error("another release: load the page again");
      show(status);
      say(isPaused ? "Paused" : "Live");
    } catch (error) {
      say(error instanceof TypeError ? "The exporter does not answer" : `No figures: ${error.message}`);
    } finally {
      clearTimeout(limit);
      isAsking = false;
    }
    timer = setTimeout(ask, SECONDS * 1000);
  }

  const pause = byId("pause");
  pause.hidden = false;
  pause.addEventListener("click", () => {
    isPaused = !isPaused;
    pause.textContent = isPaused ? "Resume" : "Pause";
    if (isPaused) say("Paused");
    ask();
  });
  document.addEventListener("visibilitychange", ask);
  ask();
})();
