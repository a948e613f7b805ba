"use strict";
(() => {
  const root = document.documentElement;
  const ledger = JSON.parse(document.getElementById("ledger-data").textContent);
  const rows = new Map(ledger.rows.map(row => [row.slug, row]));
  ledger.here.forEach(row => rows.set(`here-${row.slug}`, row));
  const all = (selector, within = document) => Array.from(within.querySelectorAll(selector));

  /* Light and dark: what the system says, until the reader says otherwise. */
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
  const painted = new Set();
  function setTheme(theme) {
    if (theme) root.dataset.theme = theme;
    toggle.textContent = isDark() ? "Light page" : "Dark page";
    painted.forEach(plot => window.Plotly.relayout(plot, colours()));
  }
  toggle.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("plexus-theme", theme); } catch { /* a page opened from disk may have no storage */ }
    setTheme(theme);
  });
  dark.addEventListener("change", () => setTheme());
  setTheme();

  /* Downloads, made in the page: nothing is fetched. */
  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
  function saveSvg(figure) {
    const source = all("svg.pf", figure).find(svg => svg.getBoundingClientRect().width > 0);
    if (!source) return;
    const box = source.getBoundingClientRect(), copy = source.cloneNode(true);
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", Math.round(box.width));
    copy.setAttribute("height", Math.round(box.height));
    const now = getComputedStyle(root), names = ledger.colours.map(name => `--${name}:${now.getPropertyValue("--" + name)}`);
    const rules = document.createElementNS("http://www.w3.org/2000/svg", "style");
    rules.textContent = `svg{${names.join(";")}}` + document.getElementById("figure-style").textContent;
    copy.prepend(rules);
    save(`${figure.dataset.save}.svg`, new XMLSerializer().serializeToString(copy), "image/svg+xml");
  }
  document.addEventListener("click", event => {
    const button = event.target.closest("button[data-do]");
    if (!button) return;
    const act = button.dataset.do, slug = button.dataset.slug;
    if (act === "svg") saveSvg(button.closest("[data-save]"));
    if (act === "json") {
      const content = slug ? rows.get(slug) : ledger.rows;
      save(`${slug || "ledger"}.json`, JSON.stringify(content, null, 1), "application/json");
    }
    if (act === "copy") copyText(button);
    if (act === "open" || act === "close") all("details.study").forEach(d => { if (!d.hidden) d.open = act === "open"; });
  });
  function copyText(button) {
    const code = button.closest(".command").querySelector("code");
    const done = word => {
      button.textContent = word;
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    const select = () => {
      getSelection().selectAllChildren(code);
      done(document.execCommand("copy") ? "Copied" : "Press Ctrl+C");
    };
    if (navigator.clipboard) navigator.clipboard.writeText(code.textContent).then(() => done("Copied"), select);
    else select();
  }

  /* The study that the address names is open. */
  function reveal(move) {
    let inside = null;
    try { inside = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return; }
    const target = inside && inside.closest("details.study");
    if (!target) return;
    target.hidden = false;
    target.open = true;
    if (move) {
      target.scrollIntoView();
      target.querySelector("summary").focus({ preventScroll: true });
    }
  }
  addEventListener("hashchange", () => reveal(true));
  document.addEventListener("click", event => {
    const link = event.target.closest('a[href^="#study-"]');
    if (link && link.getAttribute("href") === location.hash) reveal(true);
  });
  reveal(true);

  /* What a dot of the map says, on hover and on focus. */
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");
  tip.hidden = true;
  document.body.append(tip);
  function showTip(dot) {
    const box = (dot.querySelector(".mark, .sham") || dot).getBoundingClientRect();
    tip.textContent = dot.dataset.tip;
    tip.hidden = false;
    const wide = tip.offsetWidth, high = tip.offsetHeight, page = root.clientWidth;
    const left = Math.max(8, Math.min(page - wide - 8, box.left + box.width / 2 - wide / 2));
    const top = box.top - high - 12 > 0 ? box.top - high - 12 : box.bottom + 12;
    tip.style.left = `${left + scrollX}px`;
    tip.style.top = `${top + scrollY}px`;
  }
  all("[data-tip]").forEach(dot => {
    const title = dot.querySelector("title");
    if (title) title.remove();
    dot.addEventListener("pointerenter", () => showTip(dot));
    dot.addEventListener("pointerleave", () => { tip.hidden = true; });
    if (!dot.matches("a")) return; /* a listener for focus would make a sham a stop of the Tab key */
    dot.addEventListener("focus", () => showTip(dot));
    dot.addEventListener("blur", () => { tip.hidden = true; });
  });
  addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

  /* Narrow the list. */
  const words = document.getElementById("find"), verdict = document.getElementById("find-verdict");
  const found = document.getElementById("found");
  function narrow() {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    all("details.study").forEach(study => {
      const fits = study.dataset.find.includes(wanted) && (!verdict.value || study.dataset.words.split("|").includes(verdict.value));
      study.hidden = !fits;
      shown += fits;
    });
    found.textContent = wanted || verdict.value ? `${shown} of ${rows.size} shown` : "";
  }
  if (words) {
    words.addEventListener("input", narrow);
    verdict.addEventListener("change", narrow);
  }

  /* A study's own figures: the plotting code wakes when the first of them is seen. */
  function colours(onPaper) {
    if (onPaper) return { paper_bgcolor: "#ffffff", plot_bgcolor: "#ffffff", "font.color": "#1b1f24" };
    const now = getComputedStyle(root), of = name => now.getPropertyValue("--" + name).trim();
    return { paper_bgcolor: of("paper"), plot_bgcolor: of("paper"), "font.color": of("ink") };
  }
  let waking = null;
  function wake() {
    waking ??= (async () => {
      const source = document.getElementById("plotting");
      if (!source) throw new Error("the page holds no plotting code");
      const bytes = Uint8Array.from(atob(source.textContent), letter => letter.charCodeAt(0));
      const script = document.createElement("script");
      script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
      document.head.append(script);
      if (!window.Plotly) throw new Error("the plotting code does not run here");
    })();
    return waking;
  }
  function template() {
    const now = getComputedStyle(root), of = name => now.getPropertyValue("--" + name).trim();
    const axis = { gridcolor: "#8888883a", zerolinecolor: "#88888866", linecolor: "#888888", automargin: true, title: { font: { size: 13 }, standoff: 12 } };
    const map = [{ colorscale: "Cividis" }];
    return { data: { heatmap: map, contour: map, surface: map }, layout: { font: { family: "system-ui, sans-serif", size: 13 }, xaxis: axis, yaxis: axis,
      colorway: [of("holds"), "#d1731f", "#2a9d74", "#b05fa8", "#8c8c2a", "#5b9bd5", "#a3503c", "#7a7f87"],
      legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { t: 64, r: 20, b: 64, l: 64 } } };
  }
  function fail(place, error) {
    place.textContent = `This figure cannot be drawn: ${error.message}`;
  }
  function draw(study) {
    const row = rows.get(study.dataset.slug);
    all(".plot:not([data-drawn])", study).forEach(place => {
      place.dataset.drawn = "1";
      if (!window.Plotly) {
        wake().then(() => { delete place.dataset.drawn; draw(study); }, error => fail(place, error));
        return;
      }
      const figure = row.figures[Number(place.dataset.index)].figure, layout = Object.assign({}, figure.layout);
      const title = layout.title && (layout.title.text || layout.title);
      if (title === place.dataset.title) { delete layout.title; }
      layout.template = template();
      layout.autosize = true;
      place.style.height = `${place.clientWidth < 480 ? Math.min(layout.height || 400, 420) : layout.height || 440}px`;
      delete layout.width;
      delete layout.height; /* the place decides, so that a resized window keeps it */
      window.Plotly.newPlot(place, figure.data, Object.assign(layout, { paper_bgcolor: colours().paper_bgcolor,
        plot_bgcolor: colours().plot_bgcolor, font: Object.assign({}, layout.font, { color: colours()["font.color"] }) }), {
        responsive: true, displaylogo: false, toImageButtonOptions: { format: "svg", filename: `${row.slug} ${place.dataset.title}` },
        modeBarButtonsToRemove: ["lasso2d", "select2d"],
      }).then(() => painted.add(place), error => fail(place, error));
    });
  }
  all("details.study").forEach(study => {
    if (study.open) draw(study);
    study.addEventListener("toggle", () => { if (study.open) draw(study); });
  });

  if (document.getElementById("plotting")) (window.requestIdleCallback || setTimeout)(() => wake().catch(() => {}));

  /* On paper everything is open. */
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details.study:not([open])");
    closed.forEach(study => { study.open = true; draw(study); });
    painted.forEach(plot => window.Plotly.relayout(plot, colours(true)));
  });
  addEventListener("afterprint", () => {
    closed.forEach(study => { study.open = false; });
    painted.forEach(plot => window.Plotly.relayout(plot, colours()));
  });
})();
