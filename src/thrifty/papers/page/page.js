"use strict";
// The page: what is shown follows from one state, which the address holds after its #.
(() => {
  const { papers, scores, docs, vocabularies } = JSON.parse(document.getElementById("data").textContent);
  document.getElementById("data").remove(); // It would be held in memory twice.
  const byId = new Map(papers.map((paper, number) => [paper.id, number]));
  const texts = new Query.Texts(papers.map(Query.searchable));
  // Found now, so that the first letter that is typed finds quickly: a search looks only where its first letter was found.
  for (const letter of "abcdefghijklmnopqrstuvwxyz0123456789") texts.having(letter, false);

  const ROWS = 25;
  const PAUSE = 600; // Typing that stops for so many milliseconds is a step that the back button returns to.
  const FACETS = ["module", "status", "kind", "fit", "domain"];
  const CLOSED = ["domain"]; // Long, and seldom asked for.
  const SORTS = { date: "newest first", ...(scores ? { score: "best score first" } : {}), title: "by title" };
  const $ = (id) => document.getElementById(id);
  const many = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value != null) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // ---- what papers are filtered by: of each facet the words that occur, and of each paper one bit for each of its words

  const valuesOf = (paper, facet) => {
    if (facet === "status") return [paper.status.word];
    return [paper[facet], ...(facet === "module" ? paper.also ?? [] : [])].filter(Boolean);
  };
  const facets = FACETS.map((name) => {
    const all = vocabularies[name];
    const bits = Int32Array.from(papers, (paper) => valuesOf(paper, name).reduce((sum, word) => sum | (1 << all.indexOf(word)), 0));
    const used = bits.reduce((sum, one) => sum | one, 0);
    return { name, all, bits, words: all.filter((_, at) => used & (1 << at)), counts: new Uint32Array(all.length), shown: new Map() };
  }).filter((facet) => facet.words.length);

  const { compare } = new Intl.Collator("en", { numeric: true });
  const comparisons = {
    date: (a, b) => a - b, // They come newest first.
    score: (a, b) => scores[b] - scores[a] || a - b,
    title: (a, b) => compare(papers[a].title, papers[b].title) || a - b,
  };
  const orders = {};
  const orderOf = (sort) => (orders[sort] ??= papers.map((_, number) => number).sort(comparisons[sort]));

  // ---- the state, and the address that holds it

  let state = read("");
  let wanted = Query.parse(""); // The last query that could be read.
  let words = [];
  let result = [];
  let rows = ROWS;
  let linked = null; // The paper of a link that stands beyond the rows that are shown.
  const selected = new Set();

  function read(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const day = (name) => (/^\d{4}-\d\d-\d\d$/.test(given.get(name) ?? "") ? given.get(name) : "");
    const known = (facet) => new Set(given.getAll(facet.name).filter((word) => facet.words.includes(word)));
    return {
      q: given.get("q") ?? "",
      chosen: facets.map(known),
      since: day("since"),
      until: day("until"),
      sort: Object.hasOwn(SORTS, given.get("sort")) ? given.get("sort") : "date",
      paper: (given.get("paper") ?? "").replace(/v\d+$/, ""),
    };
  }

  function written(paper = state.paper) {
    const pairs = [["q", state.q], ...facets.flatMap((facet, at) => [...state.chosen[at]].map((word) => [facet.name, word]))];
    pairs.push(["since", state.since], ["until", state.until], ["sort", state.sort === "date" ? "" : state.sort], ["paper", paper]);
    return "#" + new URLSearchParams(pairs.filter(([, value]) => value));
  }

  let later = 0;
  let address = "#";
  function remember() {
    clearTimeout(later);
    if (written() === address) return;
    address = written();
    history.pushState(null, "", address);
  }

  function restore() {
    clearTimeout(later); // What was typed and not yet remembered is left behind.
    const before = written("");
    state = read(location.hash);
    address = written();
    if (written("") !== before) rows = ROWS;
    $("query").value = state.q;
    $("since").value = state.since;
    $("until").value = state.until;
    $("sort").value = state.sort;
    [wanted, words] = [Query.parse(""), []]; // A link that cannot be read shows everything.
    understand();
    find();
    const number = byId.get(state.paper);
    linked = number === undefined || result.slice(0, rows).includes(number) ? null : number;
    tell(state.paper && number === undefined ? `There is no paper ${state.paper} in this library.` : "");
    draw();
    if (number === undefined) return;
    for (const row of document.querySelectorAll(".paper")) row.classList.add("seen"); // Their true heights say where it is.
    rowOf(number).scrollIntoView({ block: "start" });
  }

  // ---- finding

  // Whether the query can be read; what was wanted before stays wanted where it cannot.
  function understand() {
    try {
      wanted = Query.parse(state.q);
      words = Query.wantedWords(wanted);
      complain("");
      return true;
    } catch (fault) {
      if (!(fault instanceof Query.Fault)) throw fault;
      complain(fault.message);
      return false;
    }
  }

  function find() {
    const held = texts.among(wanted);
    const masks = facets.map((facet, at) => [...state.chosen[at]].reduce((sum, word) => sum | (1 << facet.all.indexOf(word)), 0));
    for (const facet of facets) facet.counts.fill(0);
    result = [];
    for (const number of orderOf(state.sort)) {
      const { published } = papers[number];
      if (!held[number] || (state.since && published < state.since) || (state.until && published > state.until)) continue;
      const missed = facets.filter((facet, at) => masks[at] && !(masks[at] & facet.bits[number]));
      if (!missed.length) result.push(number);
      // The count of a word is what there would be if it were chosen too: a facet's own choice does not count against its words.
      if (missed.length < 2) for (const facet of missed.length ? missed : facets) countIn(facet, number);
    }
  }

  function countIn(facet, number) {
    for (let left = facet.bits[number]; left; left &= left - 1) facet.counts[31 - Math.clz32(left & -left)] += 1;
  }

  function complain(sentence) {
    $("fault").textContent = sentence && `${sentence}.`;
    $("query").setAttribute("aria-invalid", sentence !== "");
  }

  // ---- drawing

  // A text with what was searched for marked. It stays a text, whatever is in it.
  function marked(text) {
    const found = document.createDocumentFragment();
    let at = 0;
    for (const [start, end] of Query.places(text, words)) {
      found.append(text.slice(at, start), make("mark", {}, text.slice(start, end)));
      at = end;
    }
    found.append(text.slice(at));
    return found;
  }

  const badge = (kind, text) => (text ? make("li", { class: kind }, text) : null);

  function row(number) {
    const paper = papers[number];
    const { word } = paper.status;
    const open = state.paper === paper.id;
    const box = make("input", { type: "checkbox", "aria-label": `Select ${paper.title}`, onchange: () => select([number], box.checked) });
    box.checked = selected.has(number);
    const title = make("button", { type: "button", "aria-expanded": String(open), onclick: () => toggle(number) }, marked(paper.title));
    const modules = [paper.module, ...(paper.also ?? [])].filter(Boolean);
    const badges = [badge("name", paper.name && marked(paper.name)), badge(word, word), ...modules.map((name) => badge("module", name))];
    badges.push(badge("kind", paper.kind), badge("kind", !modules.includes(paper.domain) && paper.domain));
    const score = scores ? ` · score ${scores[number].toFixed(1)}` : "";
    const body = make(
      "div", {},
      make("h2", {}, title),
      make("p", { class: "meta" }, marked(Forms.shortAuthors(paper)), " · ", make("time", {}, paper.published), score),
      make("ul", { class: "badges", "aria-label": "What it is" }, ...badges),
      paper.reason ? make("p", { class: "reason" }, marked(paper.reason)) : null,
      open ? details(paper) : null,
    );
    const tag = number === linked ? "div" : "li";
    return make(tag, { class: open ? "paper open" : "paper", "data-id": paper.id }, box, body);
  }

  function details(paper) {
    const { status } = paper;
    const listed = (name) => paper[name]?.join(", ");
    const facts = {
      authors: listed("authors"), core: paper.core, result: paper.headline, "builds on": listed("builds_on"), fit: paper.fit,
      categories: listed("categories"), status: status.reason === paper.reason ? "" : `${status.word}: ${status.reason}`, code: status.code, test: status.test, measured: status.figure,
    };
    const pairs = Object.entries(facts).filter(([, text]) => text);
    return make(
      "div", { class: "more" },
      links(paper),
      abstract(paper.abstract),
      make("dl", {}, ...pairs.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, marked(text))])),
    );
  }

  // As it is written, each paragraph an element of its own: together they hold every sign of it.
  function abstract(text) {
    const paragraphs = text.split(/(?<=\n)(?=  )/);
    return make("div", { class: "abstract" }, ...paragraphs.map((paragraph) => make("p", {}, marked(paragraph))));
  }

  function links(paper) {
    const here = "#" + new URLSearchParams({ paper: paper.id });
    const { methods = [], page } = paper.status;
    const method = methods.length && (docs === null ? make("span", {}, `method ${methods.join(", ")}`) : link(docs + page, `method ${methods[0]}`));
    return make(
      "p", { class: "links" },
      link(paper.address, `arXiv:${paper.id}v${paper.version}`),
      ...(paper.code ?? []).map((code) => (/^https?:/i.test(code) ? link(code, code.replace(/^https?:\/\/(www\.)?/i, "")) : code)),
      method || null,
      link(here, "link to this paper"),
      make("button", { type: "button", onclick: () => copy(location.href.split("#")[0] + here, "the link") }, "Copy link"),
    );
  }

  const link = (address, text) => make("a", { href: address }, text);

  function draw() {
    const shown = result.slice(0, rows).filter((number) => number !== linked);
    $("papers").replaceChildren(...shown.map(row));
    $("linked").hidden = linked === null;
    $("linked").replaceChildren(...(linked === null ? [] : [row(linked)]));
    drawRest();
    drawFacets();
    drawSelection();
  }

  function drawRest() {
    const all = result.length === papers.length;
    $("count").textContent = all ? many(papers.length, "paper") : `${result.length.toLocaleString("en")} of ${many(papers.length, "paper")}`;
    $("nothing").hidden = result.length > 0;
    $("nothing").textContent = papers.length
      ? "No paper meets all of this; take a word or a filter away."
      : "The library holds no papers yet; `thrifty papers import FILE.md` or `thrifty papers fetch` adds some.";
    $("more").hidden = result.length <= rows;
    $("more").textContent = `Show more (${many(result.length - rows, "paper")} left)`;
  }

  function drawFacets() {
    facets.forEach((facet, at) => {
      for (const [word, { box, count, label }] of facet.shown) {
        const number = facet.counts[facet.all.indexOf(word)];
        box.checked = state.chosen[at].has(word);
        count.textContent = number.toLocaleString("en");
        label.classList.toggle("none", number === 0);
      }
    });
    const number = state.chosen.reduce((sum, chosen) => sum + chosen.size, 0) + Boolean(state.since) + Boolean(state.until);
    $("chosen").textContent = number ? ` (${number})` : "";
    $("clear").hidden = number === 0;
  }

  function drawSelection() {
    const held = result.reduce((sum, number) => sum + selected.has(number), 0);
    $("every").checked = held > 0 && held === result.length;
    $("every").indeterminate = held > 0 && held < result.length;
    $("none").hidden = selected.size === 0;
    $("exported").textContent = selected.size ? `Export ${selected.size.toLocaleString("en")} selected as` : "Export all shown as";
    $("download").disabled = $("copy").disabled = $("every").disabled = result.length === 0 && selected.size === 0;
  }

  function tell(sentence) {
    $("told").textContent = sentence;
  }

  // ---- doing

  // After a change of the query, the filters or the order: the open paper stays open where it is still among the first.
  function change() {
    rows = ROWS;
    linked = null;
    tell("");
    find();
    if (!result.slice(0, rows).includes(byId.get(state.paper))) state.paper = "";
    draw();
    if ($("results").getBoundingClientRect().top < 0) $("results").scrollIntoView(); // Another list is read from its top.
  }

  function toggle(number) {
    remember(); // A query that was just typed is a step of its own.
    const row = rowOf(number), top = row.getBoundingClientRect().top, before = byId.get(state.paper);
    state.paper = state.paper === papers[number].id ? "" : papers[number].id;
    if (number === linked && !state.paper) {
      linked = null;
      draw();
      $("results").focus({ preventScroll: true });
    } else {
      for (const changed of new Set([before, number])) redraw(changed);
      // What closed above must not move what was pressed.
      scrollBy(0, rowOf(number).getBoundingClientRect().top - top);
      rowOf(number).querySelector("h2 button").focus({ preventScroll: true });
    }
    remember();
  }

  const rowOf = (number) => document.querySelector(`.paper[data-id="${CSS.escape(papers[number].id)}"]`);

  function redraw(number) {
    if (number === undefined) return;
    rowOf(number)?.replaceWith(row(number));
    rowOf(number)?.classList.add("seen");
  }

  function select(numbers, on) {
    for (const number of numbers) selected[on ? "add" : "delete"](number);
    for (const box of document.querySelectorAll(".paper > input")) box.checked = selected.has(byId.get(box.parentElement.dataset.id));
    drawSelection();
  }

  function showMore() {
    const shown = result.slice(rows, rows + ROWS).filter((number) => number !== linked);
    rows += ROWS;
    $("papers").append(...shown.map(row));
    drawRest();
  }

  // The papers to export, in the order of the page, and what they are called.
  function exported() {
    const numbers = selected.size ? orderOf(state.sort).filter((number) => selected.has(number)) : result;
    return { papers: numbers.map((number) => papers[number]), what: many(numbers.length, "paper") };
  }

  function download() {
    const { papers: found, what } = exported();
    const name = $("form").value, form = Forms.forms[name];
    const address = URL.createObjectURL(new Blob([form.write(found)], { type: form.type }));
    make("a", { href: address, download: `papers.${form.ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
    tell(`papers.${form.ending} holds ${what} as ${name}.`);
  }

  async function copy(text, what) {
    try {
      await navigator.clipboard.writeText(text);
      tell(`Copied ${what}.`);
    } catch {
      tell("The browser does not let this page copy; download instead.");
    }
  }

  // ---- what is there once, and what people do with it

  function build() {
    const days = papers.map((paper) => paper.published).sort();
    $("about").textContent = papers.length ? `${many(papers.length, "paper")}, ${days[0]} to ${days.at(-1)}` : "";
    $("facets").append(...facets.map(buildFacet));
    $("sort").append(...Object.entries(SORTS).map(([value, text]) => make("option", { value }, text)));
    $("form").append(...Object.keys(Forms.forms).map((name) => make("option", {}, name)));
    $("dates").hidden = papers.length === 0;
    const wide = matchMedia("(min-width: 52.01rem)");
    const fit = () => ($("filters").open = wide.matches);
    wide.addEventListener("change", fit);
    fit();
  }

  function buildFacet(facet, at) {
    const options = facet.words.map((word) => {
      const box = make("input", { type: "checkbox", name: facet.name, value: word, onchange: () => choose(at, word, box.checked) });
      const count = make("output", {});
      const label = make("label", {}, box, word, count);
      facet.shown.set(word, { box, count, label });
      return label;
    });
    const group = make("div", { role: "group", "aria-label": facet.name }, ...options);
    return make("details", { open: !CLOSED.includes(facet.name) }, make("summary", {}, facet.name[0].toUpperCase() + facet.name.slice(1)), group);
  }

  function choose(at, word, on) {
    remember();
    state.chosen[at][on ? "add" : "delete"](word);
    change();
    remember();
  }

  function set(name, value) {
    remember();
    state[name] = value;
    change();
    remember();
  }

  function listen() {
    $("query").addEventListener("input", () => {
      state.q = $("query").value;
      if (understand()) change();
      clearTimeout(later);
      later = setTimeout(remember, PAUSE);
    });
    $("query").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // Else the same key would press what it has led to.
      document.querySelector(".paper h2 button")?.focus();
    });
    document.addEventListener("keydown", (event) => {
      const typing = event.target.closest("input:not([type=checkbox]), select");
      if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      $("query").focus();
      $("query").select();
    });
    for (const name of ["since", "until", "sort"]) $(name).addEventListener("change", () => set(name, $(name).value));
    $("clear").addEventListener("click", () => {
      remember();
      Object.assign(state, { chosen: facets.map(() => new Set()), since: "", until: "" });
      $("since").value = $("until").value = "";
      change();
      remember();
      $("results").focus();
    });
    $("skip").addEventListener("click", () => $("results").focus());
    $("every").addEventListener("change", () => select(result, $("every").checked));
    $("none").addEventListener("click", () => {
      select([...selected], false);
      $("every").focus();
    });
    $("download").addEventListener("click", download);
    $("copy").addEventListener("click", () => {
      const { papers: found, what } = exported();
      copy(Forms.forms[$("form").value].write(found), `${what} as ${$("form").value}`);
    });
    $("more").addEventListener("click", showMore);
    new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && showMore(), { rootMargin: "600px" }).observe($("more"));
    addEventListener("popstate", restore);
  }

  build();
  listen();
  restore();
})();
