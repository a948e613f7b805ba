// The pages of an atlas: a map of all units, one unit in full, and the units of a site as cards.
"use strict";
const atlas = (() => {
  const store = {}, waiting = {};
  const KINDS = [
    ["neither", "neither"], ["detector", "detects, within its band"], ["actor", "beyond its band, does not detect"],
    ["both", "detects, beyond its band"],
  ];
  const DETECTS = 0.9, PER_PAGE = 60;
  const $ = (id) => document.getElementById(id);
  const text = (value) => document.createTextNode(value);
  let front, dots = [], box = null, chosen = null, shownCards = PER_PAGE;

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") node.style.cssText = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    for (const child of children) if (child !== null) node.append(child instanceof Node ? child : text(child));
    return node;
  }

  function put(name, value) {
    store[name] = value;
    (waiting[name] || []).forEach((go) => go(value));
    delete waiting[name];
  }

  function block(site, at, go) {
    const number = Math.floor(at / front.block), name = `${site}/${number}`;
    if (store[name]) return go(store[name][at]);
    const first = !waiting[name];
    (waiting[name] = waiting[name] || []).push((value) => go(value[at]));
    if (first) document.body.append(make("script", { src: `units-${site}-${number}.js` }));
  }

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const kind = (dot) => KINDS[(dot.selectivity >= DETECTS ? 1 : 0) + (dot.acts ? 2 : 0)][0];
  const faint = (dot) => dot.acts && !dot.visible; // beyond its band, yet nobody would see it
  const percent = (x) => `${(100 * x).toFixed(1)}\u00a0%`;
  const nats = (x) => (Math.abs(x) < 5e-5 ? "0.0000" : Math.abs(x) < 0.01 ? x.toPrecision(2) : x.toFixed(Math.abs(x) < 10 ? 3 : 1));

  // ---- the map ---------------------------------------------------------------------------------------------------------
  function visible() {
    const site = $("site").value, concept = $("concept").value;
    return dots.filter((d) => (site === "" || d.site === +site) && (concept === "" || d.concept === +concept));
  }

  // effects span orders of magnitude: the axis is linear around zero and logarithmic beyond; the page says so
  const bend = (x, knee) => Math.sign(x) * Math.log1p(Math.abs(x) / knee);

  function layout() {
    const canvas = $("dots"), ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    const sizes = dots.map((d) => Math.abs(d.effect)).sort((a, b) => a - b);
    const knee = Math.max(1e-4, sizes[Math.floor(sizes.length / 2)] || 1e-4);
    let low = Math.min(...dots.map((d) => bend(d.effect, knee))), high = Math.max(...dots.map((d) => bend(d.effect, knee)));
    const room = 0.08 * (high - low || 1);
    low -= room;
    high += room;
    const left = Math.min(0.5, ...dots.map((d) => d.selectivity)) - 0.02;
    box = { width, height, ratio, knee, low, high, left, right: 1.01, pad: [10, 12, 44, 70] };
  }

  const px = (v) => box.pad[3] + ((v - box.left) / (box.right - box.left)) * (box.width - box.pad[1] - box.pad[3]);
  const py = (v) => box.pad[0] + ((box.high - bend(v, box.knee)) / (box.high - box.low)) * (box.height - box.pad[0] - box.pad[2]);

  function ticks() {
    const found = [0];
    for (let power = -6; power <= 2; power++) for (const sign of [-1, 1]) found.push(sign * 10 ** power);
    const kept = [];
    for (const value of found.filter((v) => bend(v, box.knee) > box.low && bend(v, box.knee) < box.high)) {
      if (kept.every((other) => Math.abs(py(other) - py(value)) > 18)) kept.push(value);
    }
    return kept;
  }

  function draw() {
    layout();
    const pen = $("dots").getContext("2d"), list = visible();
    pen.setTransform(box.ratio, 0, 0, box.ratio, 0, 0);
    pen.clearRect(0, 0, box.width, box.height);
    const bottom = box.height - box.pad[2], end = box.width - box.pad[1];
    const size = list.length > 4000 ? 2 : list.length > 800 ? 3 : 4.5;
    const barred = list.filter((d) => d.edge !== null && (kind(d) !== "neither" || d === chosen)); // all would hide each other
    for (const d of barred) {
      const top = Math.max(box.pad[0], py(d.edge)); // the bar behind a dot is its own band
      pen.fillStyle = colour("band");
      pen.fillRect(px(d.selectivity) - 1, top, 2, bottom - top);
      pen.fillStyle = colour("neither");
      if (py(d.edge) > box.pad[0]) pen.fillRect(px(d.selectivity) - size / 2, top - 0.75, size, 1.5);
    }
    pen.font = "12px system-ui, sans-serif";
    pen.fillStyle = colour("soft");
    pen.strokeStyle = colour("line");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    for (const value of ticks()) {
      pen.beginPath();
      pen.moveTo(box.pad[3], py(value));
      pen.lineTo(end, py(value));
      pen.stroke();
      pen.fillText(String(value), box.pad[3] - 6, py(value) + 4);
    }
    pen.textAlign = "center";
    for (let x = Math.ceil(box.left * 10) / 10; x <= 1.001; x += 0.1) pen.fillText(x.toFixed(1), px(x), bottom + 16);
    const fit = (labels, room) => labels.find((label) => pen.measureText(label).width <= room) || labels[labels.length - 1];
    const across = ["selectivity for its concept (AUROC on held-out samples)", "selectivity (AUROC, held out)"];
    pen.fillText(fit(across, end - box.pad[3]), (box.pad[3] + end) / 2, bottom + 34);
    pen.save();
    pen.translate(13, (box.pad[0] + bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(fit(["nats lost on its concept without it (bent axis)", "nats lost without it (bent axis)"], bottom - box.pad[0]), 0, 0);
    pen.restore();
    for (const d of list) {
      pen.globalAlpha = 0.75;
      pen.fillStyle = pen.strokeStyle = colour(kind(d));
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.arc(px(d.selectivity), py(d.effect), size - (faint(d) ? 0.75 : 0), 0, 7);
      faint(d) ? pen.stroke() : pen.fill();
    }
    pen.globalAlpha = 1;
    if (chosen && list.includes(chosen)) {
      pen.strokeStyle = colour("ink");
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(px(chosen.selectivity), py(chosen.effect), size + 4, 0, 7);
      pen.stroke();
      if (chosen.edge !== null) { // where this unit's own band ends
        const own = Math.max(box.pad[0], py(chosen.edge));
        pen.setLineDash([3, 3]);
        pen.beginPath();
        pen.moveTo(px(chosen.selectivity) - 22, own);
        pen.lineTo(px(chosen.selectivity) + 22, own);
        pen.stroke();
        pen.setLineDash([]);
      }
    }
    legend(list);
  }

  function legend(list) {
    const able = list.filter((d) => d.edge !== null), acting = able.filter((d) => d.acts).length;
    const chance = able.reduce((sum, d) => sum + front.sites[d.site].tail, 0);
    const hollow = list.filter(faint).length, without = list.length - able.length;
    $("legend").replaceChildren(
      ...KINDS.map(([name, label]) =>
        make("li", {}, make("i", { style: `background: var(--${name})` }), `${label}: ${list.filter((d) => kind(d) === name).length}`)),
      ...(hollow ? [make("li", {}, make("i", { class: "hollow" }), `hollow: beyond it, but ${tooSmall()}: ${hollow}`)] : []),
      make("li", { class: "axis" }, "Every unit has a band of its own: the bar behind a coloured dot, which lies above it or within. Grey dots lie within theirs; a click shows it."
        + (able.length ? ` ${acting} of ${able.length} lie beyond; chance alone would put about ${chance.toFixed(1)} there.` : "")),
      ...(without ? [make("li", { class: "axis" }, `${without} have no band and are never called beyond: their sites have fewer than ${
        front.fewest} units, too few to tell.`)] : []),
    );
  }

  const tooSmall = () => (front.accuracy === null ? "too small to see" : "too small to change an answer");

  function nearest(event) {
    const area = $("dots").getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
    let best = null, least = 400;
    for (const d of visible()) {
      const far = (px(d.selectivity) - x) ** 2 + (py(d.effect) - y) ** 2;
      if (far < least) [best, least] = [d, far];
    }
    return best;
  }

  function hover(event) {
    const d = nearest(event), tip = $("tip");
    tip.hidden = d === null;
    if (d === null) return;
    tip.textContent = `${front.sites[d.site].name} #${d.unit}: ${front.concepts[d.concept]}${
      d.edge === null ? "" : d.acts ? ", beyond its band" : ", within its band"}`;
    tip.style.left = `${Math.max(0, Math.min(px(d.selectivity) + 10, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, py(d.effect) - 34)}px`;
  }

  // ---- one unit --------------------------------------------------------------------------------------------------------
  function picture(sample, place) {
    const frame = make("div", { class: "frame" }, make("img", { src: store.samples[sample].is, alt: front.concepts[store.samples[sample].concept] }));
    if (place) {
      const [left, top, width, height] = place.map((v) => `${100 * v}%`);
      frame.append(make("i", { style: `left:${left};top:${top};width:${width};height:${height}` }));
    }
    return frame;
  }

  function tokens(sample, values, short = false) {
    const shown = store.samples[sample].is, most = Math.max(1e-9, ...(values || [0]).map(Math.abs));
    const line = make("p", { class: "tokens" });
    const begin = short && values ? Math.max(0, values.findIndex((v) => Math.abs(v) >= most) - 4) : 0; // a line shows its strongest token
    if (begin) line.append("… ");
    shown.tokens.forEach((word, i) => {
      if (i < begin) return;
      const value = values ? values[i] || 0 : 0;
      const style = values ? `background: rgba(var(--${value > 0 ? "hot" : "cold"}), ${(0.75 * Math.abs(value) / most).toFixed(2)})` : "";
      line.append(make("mark", { style, title: values ? nats(value) : "" }, word), " ");
    });
    line.append(solution(sample) || "");
    return line;
  }

  function solution(sample) {
    const answer = store.samples[sample].is.answer;
    return answer ? make("em", {}, ` → ${answer}`) : null;
  }

  function exemplars(best, count = 99) {
    if (best[0][1] === 0) return make("p", { class: "note" }, "Nothing: its response is never above 0.");
    if (front.kind === "texts") {
      const below = count === 99 && best.some(([, , place]) => (place || []).some((v) => v < -1e-3 * Math.max(...place.map(Math.abs))));
      return make("div", {}, ...best.slice(0, count).map(([s, , place]) => tokens(s, place, count < 99)),
        below ? make("p", { class: "note" }, "Shaded by the unit's value at each token: warm above 0, cold below.") : "");
    }
    return make("div", { class: "pictures" }, ...best.slice(0, count).map(([sample, value, place]) =>
      make("figure", {}, picture(sample, place), count > 9 ? make("figcaption", {}, value.toPrecision(3)) : null)));
  }

  function bars(losses, own) {
    const most = Math.max(1e-9, ...losses.map(Math.abs));
    const order = losses.map((loss, i) => [loss, i]).sort((a, b) => b[0] - a[0]).slice(0, 12);
    return make("div", { class: "bars" }, ...order.map(([loss, i]) =>
      make("div", { class: i === own ? "own" : "" }, make("span", { title: front.concepts[i] }, front.concepts[i]),
        make("b", { style: `width:${(100 * Math.max(0, loss)) / most}%` }), make("span", {}, nats(loss)))));
  }

  function answers(row, right) {
    return row.map(([word, p], i) => make("span", { class: i === 0 && right ? "right" : "" },
      `${i ? ", " : ""}${word}\u00a0${Math.round(100 * p)}\u00a0%`));
  }

  function doses(unit) {
    const wrap = make("div"), plain = unit.doses.findIndex((d) => d.x === 1);
    const slider = make("input", { type: "range", min: 0, max: unit.doses.length - 1, step: 1, value: 0, "aria-label": "dose" });
    const body = make("div");
    const update = () => {
      const dose = unit.doses[+slider.value], base = unit.doses[Math.max(0, plain)];
      body.replaceChildren(
        make("p", {}, `Unit × ${dose.x}: right answers change by `, make("b", {}, `${nats(dose.own)} nats`),
          " on its concept, ", make("b", {}, `${nats(dose.others)}`), " on others."),
        make("table", {}, make("tr", {}, make("th", {}, "shown"), make("th", {}, "says as it is"), make("th", {}, `says under × ${dose.x}`)),
          ...unit.probes.map((sample, i) => {
            const moved = base.says[i][0][0] !== dose.says[i][0][0];
            const first = front.kind === "texts" ? [store.samples[sample].is.tokens.join(" "), solution(sample)] : [picture(sample, null).firstChild];
            return make("tr", {}, make("td", {}, ...first), make("td", {}, ...answers(base.says[i], base.right[i])),
              make("td", { class: moved ? "moved" : "" }, ...answers(dose.says[i], dose.right[i])));
          })),
      );
    };
    slider.addEventListener("input", update);
    wrap.append(slider, make("div", { class: "scale" }, ...unit.doses.map((d) => make("span", {}, `× ${d.x}`))), body);
    update();
    return wrap;
  }

  function sentence(dot) {
    const detects = dot.selectivity >= DETECTS;
    const tells = detects ? "It tells its concept apart" : "It does not tell its concept apart by itself";
    if (dot.edge === null) return `${tells}. Its site has fewer than ${front.fewest} units, too few to tell whether its effect is more than chance.`;
    if (!dot.acts) return `${tells}, ${detects ? "yet" : "and"} without it the model loses no more than without units like it.`;
    if (!dot.visible) return `${tells}. Its effect lies beyond its band, but is ${tooSmall()}.`;
    return detects ? `${tells} and is needed for it.` : "It is needed for its concept although it does not tell it apart by itself.";
  }

  function becomes([probability, without, lost]) {
    const what = front.accuracy === null ? "the words of its concept's texts have" : "right answers of its concept have";
    const share = Math.abs(lost) < 5e-4 ? "stays the same" : `${lost > 0 ? "falls" : "rises"} by ${(100 * Math.abs(lost)).toFixed(1)} points`;
    return `As the model is, ${what} a mean probability of ${percent(probability)}; without the unit, ${percent(without)}.${
      front.accuracy === null ? "" : ` The share of right answers ${share}.`}`;
  }

  function showUnit(dot) {
    chosen = dot;
    draw();
    block(dot.site, dot.at, (unit) => {
      const place = front.sites[dot.site];
      $("unit").replaceChildren(
        make("h2", {}, `Unit ${dot.unit} of ${place.name}`),
        make("p", { class: "note" }, `read at ${place.path}`),
        make("p", { class: "lead" }, `Concept “${front.concepts[dot.concept]}”. ${sentence(dot)}`),
        dot.control ? make("p", { class: "note" }, "It was measured as a control, because it responds as much as a unit that was chosen.") : "",
        make("div", { class: "facts" },
          make("div", {}, make("b", {}, dot.selectivity.toFixed(3)), make("span", {}, "selectivity (AUROC)")),
          make("div", {}, make("b", {}, nats(dot.effect)), make("span", {}, "nats lost without it")),
          make("div", {}, make("b", {}, dot.edge === null ? "–" : nats(dot.edge)), make("span", {}, dot.edge === null ? "no band" : "edge of its band"))),
        unit.answers ? make("p", { class: "lead" }, becomes(unit.answers)) : "",
        make("h3", {}, "What drives it most"), exemplars(unit.best),
        make("h3", {}, "What is lost without it, by concept (nats)"), bars(unit.loss, dot.concept),
        make("h3", {}, "Turn it down or up"),
        unit.doses ? doses(unit) : make("p", { class: "note" }, "No dose curve for this unit: only those that act most or are most selective have one."),
      );
      if (window.matchMedia("(max-width: 800px)").matches) $("unit").scrollIntoView({ behavior: "smooth", block: "start" });
    });
  }

  // ---- the units as cards ----------------------------------------------------------------------------------------------
  function cards() {
    const beyond = (d) => (d.edge === null ? -1e9 : d.effect - d.edge);
    const list = visible().sort((a, b) => beyond(b) - beyond(a) || b.effect - a.effect);
    const grid = make("div", { class: "cards" });
    for (const d of list.slice(0, shownCards)) {
      const card = make("a", { class: "card", href: `#/unit/${d.site}/${d.unit}` },
        make("div", {}, make("i", { class: "dot", style: `background: var(--${kind(d)})` }),
          `${front.sites[d.site].name} #${d.unit}: ${front.concepts[d.concept]}`),
        make("div", { class: "axis" }, `AUROC ${d.selectivity.toFixed(2)}, ${nats(d.effect)} nats`));
      block(d.site, d.at, (unit) => card.append(exemplars(unit.best, front.kind === "texts" ? 2 : 4)));
      grid.append(card);
    }
    const more = list.length > shownCards
      ? make("button", { class: "more", onclick: () => { shownCards += PER_PAGE; cards(); } }, `more of ${list.length} units`) : null;
    $("list").replaceChildren(...[make("h2", {}, "Units, those that act most beyond their band first"), grid, more].filter(Boolean));
  }

  // ---- start -----------------------------------------------------------------------------------------------------------
  function route() {
    const [, what, site, unit] = location.hash.split("/");
    if (what === "unit") {
      const dot = dots.find((d) => d.site === +site && d.unit === +unit);
      if (dot) return showUnit(dot);
    }
    chosen = null;
    $("unit").replaceChildren(make("p", { class: "note" }, "Click a dot: what drives the unit, what is lost without it, and a dose slider."));
    draw();
  }

  const go = (d) => { location.hash = `#/unit/${d.site}/${d.unit}`; };

  function step(by) {
    const list = visible().sort((a, b) => a.selectivity - b.selectivity);
    if (list.length) go(list[(list.indexOf(chosen) + by + list.length) % list.length]);
  }

  // ---- finding a unit: "hidden #3", or a number where it names only one -------------------------------------------------
  const label = (d) => `${front.sites[d.site].name} #${d.unit}`;

  function matches(asked) {
    const found = asked.trim().match(/^(?:(.*?)\s*#\s*|(.+)\s+)?(\d+)$/);
    if (!found) return [];
    const name = (found[1] || found[2] || "").toLowerCase(), site = $("site").value;
    const list = dots.filter((d) => d.unit === +found[3]);
    if (!name) return list.filter((d) => site === "" || d.site === +site);
    const exact = list.filter((d) => front.sites[d.site].name.toLowerCase() === name);
    return exact.length ? exact : list.filter((d) => front.sites[d.site].name.toLowerCase().includes(name));
  }

  function offer() {
    $("units").replaceChildren(...matches($("find").value).slice(0, 40).map((d) => make("option", { value: label(d) })));
  }

  function find() {
    const asked = $("find").value, list = matches(asked), names = list.slice(0, 4).map((d) => `“${label(d)}”`).join(", ");
    $("found").textContent = asked.trim() === "" || list.length === 1 ? ""
      : list.length ? `Several units have this number; which one: ${names}${list.length > 4 ? ", …" : ""}?` : "There is no such unit.";
    if (list.length !== 1) return;
    if (!visible().includes(list[0])) for (const id of ["site", "concept"]) $(id).value = "";
    cards();
    location.hash === `#/unit/${list[0].site}/${list[0].unit}` ? draw() : go(list[0]);
  }

  function chances() {
    const by = new Map();
    for (const site of front.sites) by.set(site.tail, [...(by.get(site.tail) || []), site.name]);
    return [...by].map(([tail, names]) => `${by.size === 1 ? "all sites" : names.join(", ")}: ${tail ? percent(tail) : "too few units to tell"}`).join("; ");
  }

  function start() {
    front = store.front;
    front.sites.forEach((site, number) => site.effect.forEach((effect, at) => dots.push({
      site: number, at, unit: site.units[at], effect, concept: site.concept[at], selectivity: site.selectivity[at],
      others: site.others[at], edge: site.edge ? site.edge[at] : null, acts: site.acts[at] === 1, visible: site.visible[at] === 1,
      control: site.control !== null && site.control[at] === 1,
    })));
    const right = front.accuracy === null ? "" : ` ${front.kind === "texts" ? "The first token that it answers" : "Its answer"} is right for ${percent(front.accuracy)} of them.`;
    const some = dots.length < front.total;
    $("summary").textContent = `${dots.length}${some ? ` of ${front.total}` : ""} units at ${front.sites.length} sites, shown ${front.samples} samples of ${
      front.concepts.length} concepts.${right}`;
    $("site").append(make("option", { value: "" }, "all"), ...front.sites.map((s, i) => make("option", { value: i }, s.name)));
    $("concept").append(make("option", { value: "" }, "all"), ...front.concepts.map((c, i) => make("option", { value: i }, c)));
    $("method").append(
      some ? make("p", {}, `Not all ${front.total} units were switched off: only those that, on one half of the samples, tell a concept apart best or on which its right answers depend most by their gradient, at the sites that have most of them; and beside them, as controls, units of the same sites with the nearest mean responses.`) : "",
      make("p", {}, "A unit's concept is the one that its response tells apart best on one half of the samples; selectivity and effect are measured on the other half."),
      make("p", {}, "The effect is the mean drop of the log-probability of the right answer, over samples of the concept, when the unit alone is multiplied by 0."),
      make("p", {}, `A unit's band ends at the largest effect, on its own concept, of the ${front.matched} ${some ? "controls" : "units"} of its site whose mean response is most similar (of all others, where there are fewer), and not below 0. Of so many units alike in everything each is as likely to be the first, so chance alone puts this share beyond its band: ${chances()}. Sites of fewer than ${front.fewest} units have no band.`),
      make("p", {}, `“Detects” means an AUROC of at least ${DETECTS}. ${front.accuracy === null ? "Too small to see means that" : "Too small to change an answer means that no right answer is lost and"} their mean probability falls by less than one hundredth.`),
      front.kind === "texts" && front.accuracy !== null ? make("p", {}, "Of an answer of several tokens the first one counts.") : "",
    );
    $("find").placeholder = `${front.sites[0].name} #0`;
    for (const id of ["site", "concept"]) $(id).addEventListener("change", () => { shownCards = PER_PAGE; draw(); cards(); });
    $("find").addEventListener("input", offer);
    $("find").addEventListener("change", find);
    const canvas = $("dots");
    canvas.addEventListener("mousemove", hover);
    canvas.addEventListener("mouseleave", () => { $("tip").hidden = true; });
    canvas.addEventListener("click", (event) => { const d = nearest(event); if (d) go(d); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") { step(event.key === "ArrowRight" ? 1 : -1); event.preventDefault(); }
    });
    window.addEventListener("hashchange", route);
    window.addEventListener("resize", draw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    route();
    cards();
  }

  return { put, start };
})();
