// The sample browser of report.html. What models wrote is data: it enters the page as text nodes
// only, never as markup. The form is the state, and the address after # is the form.
"use strict";
{
  // A table of common words grows with the product of both texts: longer ones are left unmarked.
  const MOST_CELLS = 4e6;
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("samples-data").textContent);
  const [form, view, state, help] = ["filters", "view", "state", "help"].map(byId);
  const fields = [...form.elements].filter((field) => field.name);
  const isBox = (field) => field.type === "checkbox";
  const searched = new Map();
  let matches = [];
  let prompt = data.prompts[0];
  let sample = 0;

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children); // strings become text nodes
    return made;
  }

  // The places of the models to show: those ticked, and the one asked for.
  function shown() {
    const asked = form.elements.model.value;
    const isShown = ({ name }) => form.elements[`show.${name}`].checked || name === asked;
    return data.models.flatMap((model, place) => (isShown(model) ? [place] : []));
  }

  const most = () => Math.max(...shown().map((place) => prompt.answers[place].samples.length), 1);

  function words(one) {
    if (!searched.has(one)) {
      const said = one.answers.flatMap((answer) => answer.samples.map(({ text }) => text));
      searched.set(one, [...one.turns.flat(), ...said].join("\n").toLowerCase());
    }
    return searched.get(one);
  }

  function filter() {
    const { model, outcome, failure, text, order } = Object.fromEntries(new FormData(form));
    const places = shown().filter((place) => !model || data.models[place].name === model);
    const failed = ({ flags }) =>
      failure === "any" ? flags.length : flags.some((flag) => data.detectors[flag] === failure);
    const fits = (answer) =>
      (!outcome || answer.outcome === outcome) && (!failure || answer.samples.some(failed));
    const needle = text.trim().toLowerCase();
    matches = data.prompts.filter(
      (one) => words(one).includes(needle) && places.some((place) => fits(one.answers[place])),
    );
    const sum = (one, key) => places.reduce((all, place) => all + Number(one.answers[place][key]), 0);
    const keys = { gain: (one) => -sum(one, "gain"), loss: (one) => sum(one, "gain"), kl: (one) => -sum(one, "kl") };
    if (order) matches.sort((one, other) => keys[order](one) - keys[order](other));
    if (!matches.includes(prompt)) [prompt, sample] = [matches[0], 0];
  }

  // For each word whether base says it too, in the same order: a longest common subsequence.
  function common(own, base) {
    const width = base.length + 1;
    const longest = new Uint16Array((own.length + 1) * width);
    for (let i = own.length - 1; i >= 0; i--)
      for (let j = base.length - 1; j >= 0; j--)
        longest[i * width + j] =
          own[i] === base[j]
            ? longest[(i + 1) * width + j + 1] + 1
            : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
    const kept = own.map(() => false);
    for (let i = 0, j = 0; i < own.length && j < base.length; ) {
      if (own[i] === base[j]) [kept[i++], j] = [true, j + 1];
      else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) i++;
      else j++;
    }
    // A single word in common amid new ones says nothing; beyond the ends nothing is new.
    return kept.map((same, i) => same && (kept[i - 1] !== false || kept[i + 1] !== false));
  }

  // The text in pieces, with what base does not say in <ins>; null if they are too long.
  function marked(text, base) {
    const [own, other] = [text, base].map((said) => said.match(/\S+/g) ?? []);
    if (own.length * other.length > MOST_CELLS) return null;
    const kept = common(own, other);
    const pieces = [];
    let [added, place] = ["", 0];
    const finish = () => added && pieces.push(element("ins", {}, added)) && (added = "");
    for (const [whole, space, word] of text.matchAll(/(\s*)(\S+|$)/g)) {
      if (!word || kept[place++]) {
        finish();
        pieces.push(whole);
      } else if (added) added += whole;
      else {
        pieces.push(space);
        added = word;
      }
    }
    return pieces;
  }

  function card(place, base) {
    const { name, color } = data.models[place];
    const answer = prompt.answers[place];
    const k = Math.min(sample, answer.samples.length - 1);
    const { text, scores, kl, tokens, finish, flags } = answer.samples[k];
    const title = element("h4", { class: "dot", style: `--dot: ${color}` }, name);
    const sign = { won: "▲", tied: "=", lost: "▼" }[answer.outcome];
    const outcome = `${sign} ${answer.outcome} ${answer.counted}`;
    if (sign) title.append(element("span", { class: `outcome ${answer.outcome}` }, outcome));
    const values = [...scores.map((score, i) => [data.metrics[i], score]), ["KL", kl]];
    if (answer.samples.length > 1) values.unshift(["sample", `${k + 1} of ${answer.samples.length}`]);
    values.push(["tokens", finish === "length" ? `${tokens}, cut off` : tokens]);
    const pieces = form.elements.marks.checked && base !== null ? marked(text, base) : [text];
    if (!pieces) values.push(["marks", "too long"]);
    const facts = element("dl", {});
    for (const [fact, value] of values)
      facts.append(element("div", {}, element("dt", {}, fact), element("dd", {}, String(value))));
    const failures = element("p", { class: "flags" });
    for (const flag of flags) failures.append(element("span", { class: "flag" }, data.detectors[flag]), " ");
    const said = element("div", { class: "text" }, ...(pieces ?? [text]));
    return element("article", {}, title, facts, failures, said);
  }

  function turn([speaker, text]) {
    const said = element("div", { class: "text" }, text);
    return element("div", { class: "turn" }, ...(speaker ? [element("b", {}, speaker), said] : [said]));
  }

  function render() {
    const at = matches.indexOf(prompt);
    state.textContent = `${matches.length} of ${data.prompts.length} prompts`;
    if (at < 0) return view.replaceChildren(element("p", {}, "No prompt fits these filters."));
    sample = Math.min(sample, most() - 1);
    state.textContent += `, no. ${at + 1}`;
    if (most() > 1) state.textContent += `, sample ${sample + 1} of ${most()}`;
    const title = element("h3", {}, `Prompt ${prompt.id}`);
    if (prompt.reason) title.append(element("small", {}, prompt.reason));
    const asked = element("div", { class: "asked" }, title, ...prompt.turns.map(turn));
    const first = prompt.answers[0].samples;
    const base = first[Math.min(sample, first.length - 1)].text;
    const cards = shown().map((place) => card(place, place ? base : null));
    view.replaceChildren(asked, element("div", { class: "answers" }, ...cards));
    highlight(form.elements.text.value.trim().toLowerCase());
  }

  // Where the search text stands. A range may span several nodes, which marks split a text into.
  function highlight(needle) {
    if (!CSS.highlights) return;
    const found = new Highlight();
    for (const block of needle ? view.querySelectorAll(".text") : []) {
      const nodes = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
      let [node, before] = [nodes.nextNode(), 0];
      const seek = (offset) => {
        for (; node && before + node.length < offset; node = nodes.nextNode()) before += node.length;
        return [node ?? block, node ? offset - before : block.childNodes.length];
      };
      const text = block.textContent.toLowerCase();
      for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
        const range = new Range();
        range.setStart(...seek(at));
        range.setEnd(...seek(at + needle.length));
        found.add(range);
      }
    }
    CSS.highlights.set("found", found);
  }

  // The address of what is seen: what differs from the form as it was written.
  function remember() {
    const query = new URLSearchParams(prompt ? { prompt: prompt.id } : { prompt: "" });
    if (sample) query.set("sample", sample + 1);
    for (const field of fields) {
      if (isBox(field) && field.checked !== field.defaultChecked) query.set(field.name, field.checked ? "on" : "off");
      if (!isBox(field) && field.value) query.set(field.name, field.value);
    }
    history.replaceState(null, "", `#${query}`);
  }

  function restore() {
    const query = new URLSearchParams(location.hash.slice(1));
    if (!query.has("prompt")) return;
    form.reset();
    for (const field of fields.filter(({ name }) => query.has(name))) {
      if (isBox(field)) field.checked = query.get(field.name) === "on";
      else field.value = query.get(field.name);
      if (field.selectedIndex < 0) field.selectedIndex = 0; // an option that there is not
    }
    prompt = data.prompts.find(({ id }) => String(id) === query.get("prompt"));
    sample = Math.max(0, Number(query.get("sample")) - 1 || 0);
    filter();
    render();
    view.scrollIntoView();
  }

  function update() {
    filter();
    render();
    remember();
  }

  function step(by) {
    if (!matches.length) return;
    const at = matches.indexOf(prompt) + by;
    [prompt, sample] = [matches[Math.min(Math.max(at, 0), matches.length - 1)], 0];
    update();
    const { top } = view.getBoundingClientRect();
    if (top < 0 || top > innerHeight - 99) view.scrollIntoView();
  }

  function stepSample(by) {
    if (!matches.length) return;
    sample = Math.min(Math.max(sample + by, 0), most() - 1);
    update();
  }

  const actions = {
    next: () => step(1),
    previous: () => step(-1),
    "next sample": () => stepSample(1),
    "previous sample": () => stepSample(-1),
    search: () => form.elements.text.focus(),
    marks: () => form.elements.marks.click(),
    help: () => help.showModal(),
    close: () => help.close(),
    reset: () => (form.reset(), update()),
  };
  const keys = {
    j: "next", ArrowRight: "next", k: "previous", ArrowLeft: "previous",
    l: "next sample", h: "previous sample", "/": "search", d: "marks", "?": "help",
  };

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button[data-do]");
    if (button) actions[button.dataset.do]();
  });
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (key === "Escape" && form.contains(target)) target.blur();
    const taken = target.closest("input:not([type=checkbox]), select, textarea, .scroll, figure");
    if (taken || !form.elements.keys.checked || !Object.hasOwn(keys, key)) return;
    event.preventDefault();
    actions[keys[key]]();
  });
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", restore);
  byId("browser").hidden = false;
  filter();
  render();
  restore();
}
