// The page: shows each picture that the collector sends. No framework and no build step.
// Text from outside is only ever set as textContent.
"use strict";

const CLASSES = {
  free: "free", held_no_process: "held, no process", held_no_context: "held, no context",
  memory_held: "memory held", stalled: "stalled", host_bound: "host-bound", active: "active",
  down: "down", unknown: "unknown",
};
const WITHHELD = {
  busy: "no: in use", unknown: "no: not known to be idle", unhealthy: "no: health",
  silent: "no: node is silent", gone: "no: agent has gone",
};
const MORE = 50;
// Two pictures that did not come: with one per second this is no hiccup.
const LATE_MS = 4000;

const byId = (id) => document.getElementById(id);
let source = null;
let shownNodes = MORE;
let lastPicture = null;
let brokenSince = null;

// === values ===

function age(ms) {
  if (ms === null || ms === undefined) return "–";
  const s = Math.floor(ms / 1000);
  if (s < 60) return `${s}s`;
  const two = (n) => String(n).padStart(2, "0");
  if (s < 3600) return `${Math.floor(s / 60)}m ${two(s % 60)}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h ${two(Math.floor(s / 60) % 60)}m`;
  return `${Math.floor(s / 86400)}d ${Math.floor(s / 3600) % 24}h`;
}

// A duration that somebody chose: without an empty tail.
const span = (ms) => age(ms).replace(/ 00?[smh]$/, "");

// The first group of a UUID tells devices apart; the whole is in the title and in the JSON.
const shortUuid = (uuid) => (uuid.length > 16 ? `${uuid.slice(0, 12)}…` : uuid);

function bytes(n) {
  if (n === null || n === undefined) return "–";
  const gib = n / 2 ** 30;
  return gib >= 100 ? `${gib.toFixed(0)} GiB` : gib >= 1 ? `${gib.toFixed(1)} GiB` : `${(n / 2 ** 20).toFixed(0)} MiB`;
}

function part(used, total) {
  if (used === null && total === null) return "–";
  const [a, b] = [bytes(used), bytes(total)];
  const unit = b.split(" ")[1];
  return unit && (used === 0 || a.endsWith(unit)) ? `${a.split(" ")[0]} of ${b}` : `${a} of ${b}`;
}

const percent = (ratio) => (ratio === null || ratio === undefined ? "–" : `${Math.round(ratio * 100)} %`);
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

function watts(mw, limit) {
  if (mw === null) return "–";
  const now = (mw / 1000).toFixed(0);
  return limit === null ? `${now} W` : `${now} / ${(limit / 1000).toFixed(0)} W`;
}

function gpuName(gpu) {
  const number = gpu.index === null ? "" : `${gpu.index} · `;
  return number + (gpu.model === null ? gpu.gpu_uuid : gpu.model);
}

function holderName(holder) {
  const place = [holder.namespace, holder.pod, holder.container].filter((it) => it !== null);
  return place.length === 0 ? `${holder.kind.replace("_", " ")} ${holder.id}` : place.join(" / ");
}

// === the document ===

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// Keeps one child of `parent` per key, in order, and makes only those that are new: what a reader has
// selected or focused stays.
function keyed(parent, items, key, create, update) {
  const old = new Map([...parent.children].filter((it) => it.dataset.key).map((it) => [it.dataset.key, it]));
  let last = null;
  for (const item of items) {
    const name = key(item);
    let element = old.get(name);
    old.delete(name);
    if (!element) {
      element = create(item);
      element.dataset.key = name;
    }
    const place = last ? last.nextElementSibling : [...parent.children].find((it) => it.dataset.key);
    if (place !== element) parent.insertBefore(element, last ? last.nextSibling : place || null);
    update(element, item);
    last = element;
  }
  for (const element of old.values()) element.remove();
}

// Narrow screens lay rows out as cards, which takes a table's meaning away unless the roles say it.
function withRole(tag, role, className) {
  const element = make(tag, className);
  element.setAttribute("role", role);
  return element;
}

function row(labels) {
  const tr = withRole("tr", "row");
  for (const [name, label] of labels) {
    const td = withRole("td", "cell", name);
    td.dataset.label = label;
    // One child, so that on a narrow screen a cell is its label and its value.
    td.append(make("div"));
    tr.append(td);
  }
  return tr;
}

const cell = (tr, index) => tr.children[index].firstChild;

function fill(target, main, small, title) {
  if (target.childNodes.length !== 2) target.replaceChildren(make("span"), make("small"));
  setText(target.firstChild, main);
  setText(target.lastChild, small || "");
  if (title && target.lastChild.title !== title) target.lastChild.title = title;
}

function showClass(target, name) {
  target.className = `class c-${name in CLASSES ? name : "unknown"}`;
  setText(target, CLASSES[name] || name);
}

function showBar(target, text, ratio) {
  if (target.childNodes.length !== 2) {
    const bar = make("div", "bar");
    bar.setAttribute("aria-hidden", "true");
    bar.append(make("span"));
    target.replaceChildren(make("span", "value"), bar);
  }
  setText(target.firstChild, text);
  target.firstChild.classList.toggle("none", text === "–");
  target.lastChild.hidden = ratio === null;
  if (ratio !== null) target.lastChild.firstChild.style.width = `${Math.min(100, Math.max(0, ratio * 100))}%`;
}

function showHolders(target, holders) {
  if (holders.length === 0) {
    target.replaceChildren(make("span", "none", "none"));
    return;
  }
  if (target.firstChild && !target.firstChild.dataset.key) target.replaceChildren();
  keyed(target, holders, (it) => `${it.kind} ${it.id}`, () => {
    const div = make("div", "holder");
    div.append(make("span"), make("small"));
    return div;
  }, (div, it) => {
    setText(div.firstChild, it.tenant);
    const facts = [holderName(it), bytes(it.memory_bytes)];
    if (it.last_launch_age_ms !== null) facts.push(`last launch ${age(it.last_launch_age_ms)} ago`);
    setText(div.lastChild, facts.join(" · "));
  });
}

// === the parts of the picture ===

function showSummary(fleet, offers) {
  const it = fleet.summary;
  const away = [];
  if (it.silent) away.push(`${it.silent} silent`);
  if (it.gone) away.push(`${it.gone} gone`);
  const numbers = [
    ["nodes live", String(it.live), away.join(", ")],
    ["GPU instances", String(it.instances), ""],
    ["open offers", String(offers.open), ""],
    ["idle, dwell running", String(it.dwelling), ""],
  ];
  keyed(byId("numbers"), numbers, (n) => n[0], (n) => {
    const div = make("div");
    div.append(make("dt", "", n[0]), make("dd"));
    return div;
  }, (div, n) => {
    fill(div.lastChild, n[1], n[2] ? ` · ${n[2]}` : "");
  });
  const counts = Object.keys(CLASSES).map((name) => [name, it.classes[name] || 0]).filter((n) => n[1] > 0);
  keyed(byId("share"), counts, (n) => n[0], (n) => make("span", `c-${n[0]}`), (span, n) => {
    span.style.flexGrow = n[1];
  });
  keyed(byId("legend"), counts, (n) => n[0], (n) => make("li", `class c-${n[0]}`), (li, n) => {
    setText(li, `${CLASSES[n[0]]} ${n[1]}`);
  });
}

const OFFER_CELLS = [
  ["gpu", "GPU"], ["", "Class"], ["time", "Idle for"], ["number", "Memory free"], ["", "Holder"], ["why", "Why now"],
];

function showOffers(offers, dwellMs) {
  const dwell = `Held capacity is offered once it has been idle for ${span(dwellMs)} without interruption; free capacity at once.`;
  const left = offers.offers_left_out ? ` ${offers.offers_left_out} more match and are not shown.` : "";
  const none = offers.open ? `None of the ${plural(offers.open, "open offer")} matches the filter.` : "No capacity is offered now.";
  setText(byId("offers-note"), offers.offers.length ? dwell + left : `${none} ${dwell}`);
  byId("offers").hidden = offers.offers.length === 0;
  keyed(byId("offers").tBodies[0], offers.offers, (it) => it.id, () => row(OFFER_CELLS), (tr, it) => {
    const uuid = it.mig_uuid || it.gpu_uuid;
    fill(cell(tr, 0), gpuName(it), `${it.node} · ${shortUuid(uuid)}`, uuid);
    showClass(cell(tr, 1), it.class);
    setText(cell(tr, 2), age(it.idle_age_ms));
    setText(cell(tr, 3), part(it.memory_free_bytes, it.memory_total_bytes));
    showHolders(cell(tr, 4), it.holders);
    const why = it.dwell_ms === 0 ? "free: no dwell" : `idle past its dwell of ${span(it.dwell_ms)}`;
    setText(cell(tr, 5), it.reading_age_ms < 3000 ? why : `${why}; read ${age(it.reading_age_ms)} ago`);
  });
}

function nodeFacts(node) {
  const facts = [];
  if (node.presence === "live") facts.push(`read ${age(node.reading_age_ms)} ago`);
  if (node.agent_version) facts.push(`agent ${node.agent_version}`);
  const tracing = node.tracing;
  if (tracing && tracing.on) facts.push(`tracing ${tracing.hooks_attached} of ${tracing.hooks_wanted} hooks`);
  if (tracing && tracing.lost) facts.push(`${tracing.lost} lost attributions`);
  if (tracing && tracing.sampling_factor) facts.push(`calls sampled, counts scaled by ${tracing.sampling_factor.toFixed(1)}`);
  if (node.spool_records > 0) facts.push(`${plural(node.spool_records, "record")} to deliver`);
  return facts.join(" · ");
}

function nodeTroubles(node) {
  const troubles = [];
  if (node.presence === "silent") troubles.push(`silent for ${age(node.reading_age_ms)}: nothing of it is offered`);
  if (node.presence === "gone") troubles.push(`agent gone, last word ${age(node.reading_age_ms)} ago`);
  if (node.nvml_state) troubles.push(node.nvml_state);
  if (node.tracing && !node.tracing.on) troubles.push(`no CUDA tracing: ${node.tracing.reason || "no reason given"}`);
  if (node.tracing) troubles.push(...node.tracing.memory_held_back);
  return troubles.join(" · ");
}

function showNode(tbody, node) {
  const head = tbody.firstChild.firstChild;
  setText(head.children[0], node.node);
  setText(head.children[1], nodeFacts(node));
  setText(head.children[2], nodeTroubles(node));
  tbody.classList.toggle("away", node.presence !== "live");
  const rows = [];
  for (const gpu of node.gpus) {
    const whole = gpu.instances.length === 1 && gpu.instances[0].mig_uuid === null;
    if (!whole) rows.push({ key: gpu.gpu_uuid, gpu, instance: null, inside: false });
    for (const instance of gpu.instances) rows.push({ key: instance.id, gpu, instance, inside: !whole });
  }
  if (node.gpus.length === 0) rows.push({ key: "none", gpu: null });
  keyed(tbody, rows, (it) => it.key, (it) => (it.gpu ? row(GPU_CELLS) : noGpus()), (tr, it) => {
    if (it.gpu) showGpu(tr, it);
  });
}

function noGpus() {
  const tr = withRole("tr", "row");
  const td = withRole("td", "cell", "none");
  td.colSpan = GPU_CELLS.length;
  td.append(make("div", "", "The agent sees no GPU here. gleaner-agent doctor, run on the node, says why."));
  tr.append(td);
  return tr;
}

const GPU_CELLS = [
  ["gpu", "GPU"], ["", "Class"], ["time", "For"], ["", "Busy"], ["", "Memory used"], ["number", "Power"],
  ["", "Holders"], ["", "Offer"], ["why", "Why"],
];

function showGpu(tr, { gpu, instance, inside }) {
  tr.classList.toggle("part", inside);
  const action = gpu.suggestion?.action ? ` · to do: ${gpu.suggestion.action.replaceAll("_", " ")}` : "";
  const health = (gpu.health === "ok" ? "" : ` · health ${gpu.health.replace("_", " ")}`) + action;
  if (inside) fill(cell(tr, 0), "MIG instance", shortUuid(instance.mig_uuid || ""), instance.mig_uuid);
  else fill(cell(tr, 0), gpuName(gpu), (gpu.model === null ? "" : shortUuid(gpu.gpu_uuid)) + health, gpu.gpu_uuid);
  setText(cell(tr, 5), inside ? "" : watts(gpu.power_mw, gpu.power_limit_mw));
  if (instance === null) {
    setText(cell(tr, 1), gpu.instances.length ? plural(gpu.instances.length, "MIG instance") : "no instance");
    showBar(cell(tr, 3), percent(gpu.busy_ratio), gpu.busy_ratio);
    showMemory(cell(tr, 4), gpu.memory_used_bytes, gpu.memory_total_bytes);
    return;
  }
  showClass(cell(tr, 1), instance.class);
  setText(cell(tr, 2), age(instance.class_age_ms));
  const busy = inside ? instance.busy_ratio : gpu.busy_ratio;
  showBar(cell(tr, 3), percent(busy), busy);
  if (inside) {
    const free = instance.memory_free_bytes;
    const used = free === null || instance.memory_total_bytes === null ? null : instance.memory_total_bytes - free;
    showMemory(cell(tr, 4), used, instance.memory_total_bytes);
  } else showMemory(cell(tr, 4), gpu.memory_used_bytes, gpu.memory_total_bytes);
  showHolders(cell(tr, 6), instance.holders);
  showOffered(cell(tr, 7), instance);
  setText(cell(tr, 8), gpu.suggestion ? `${instance.reason}; ${gpu.suggestion.reason}` : instance.reason);
}

function showMemory(target, used, total) {
  const known = used !== null && total !== null && total > 0;
  showBar(target, part(used, total), known ? used / total : null);
}

function showOffered(target, instance) {
  target.className = instance.offered ? "offered" : "none";
  if (instance.offered) setText(target, "offered");
  else if (instance.withheld === "dwelling") {
    setText(target, `in ${age(instance.dwell_left_ms)}, if it stays idle`);
  } else setText(target, WITHHELD[instance.withheld] || "no");
}

function showFleet(fleet) {
  const table = byId("fleet");
  table.hidden = fleet.nodes.length === 0;
  keyed(table, fleet.nodes, (it) => `${it.cluster}/${it.node}`, () => {
    const tbody = withRole("tbody", "rowgroup");
    const head = withRole("th", "rowheader", "node");
    head.scope = "rowgroup";
    head.colSpan = GPU_CELLS.length;
    head.append(make("span"), make("small"), make("small", "trouble"));
    const tr = withRole("tr", "row");
    tr.append(head);
    tbody.append(tr);
    return tbody;
  }, showNode);
  byId("more").hidden = fleet.nodes_left_out === 0;
  setText(byId("more-text"), `${plural(fleet.nodes_left_out, "more node")} not shown.`);
}

function showEmpty(fleet, port) {
  const empty = byId("empty");
  empty.hidden = fleet.nodes.length > 0;
  if (fleet.nodes.length > 0) return;
  const { live, silent, gone } = fleet.summary;
  const name = live + silent + gone > 0 ? "filter" : "no-agent";
  if (empty.dataset.name === name) return;
  empty.dataset.name = name;
  if (name === "filter") {
    empty.replaceChildren(make("p", "", "No node matches the filter."));
    return;
  }
  const host = location.hostname;
  empty.replaceChildren(
    make("p", "", "No agent has connected yet. On a node with GPUs, write agent.toml and start the agent:"),
    make("pre", "", `[collector]\naddress = "http://${host}:${port}"\n\n$ gleaner-agent --config agent.toml`),
    make("p", "", "What an agent can and cannot see on a node: gleaner-agent doctor. To try it here, also without a GPU: cargo xtask up."),
  );
}

// === the connection ===

function show(picture) {
  lastPicture = Date.now();
  brokenSince = null;
  byId("main").hidden = false;
  showSummary(picture.fleet, picture.offers);
  showOffers(picture.offers, picture.fleet.held_dwell_ms);
  showFleet(picture.fleet);
  showEmpty(picture.fleet, picture.grpc_port);
  showConnection();
}

function showConnection() {
  const late = lastPicture !== null && Date.now() - lastPicture > LATE_MS;
  const lost = brokenSince !== null || late;
  byId("state").className = `state ${lost ? "lost" : lastPicture === null ? "" : "live"}`;
  byId("main").classList.toggle("stale", lost);
  byId("lost").hidden = !lost;
  if (!lost) {
    setText(byId("state-text"), lastPicture === null ? "connecting…" : "live");
    return;
  }
  setText(byId("state-text"), "connection lost");
  const since = lastPicture === null ? "" : ` What is below was true at ${new Date(lastPicture).toLocaleTimeString()}.`;
  setText(byId("lost"), `No connection to the collector.${since} Its offers no longer hold. Trying again; nothing that agents measure is lost meanwhile.`);
}

function connect() {
  if (source) source.close();
  const query = new URLSearchParams({ q: byId("words").value, nodes: String(shownNodes) });
  source = new EventSource(`/api/v1/events?${query}`);
  source.addEventListener("picture", (event) => show(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    brokenSince = brokenSince || Date.now();
    showConnection();
    // A refusal ends an EventSource for good; a broken connection is retried by the browser.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  });
}

let typing = null;
byId("words").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(connect, 250);
});
byId("more-button").addEventListener("click", () => {
  shownNodes += MORE;
  connect();
});
setInterval(showConnection, 1000);
connect();
