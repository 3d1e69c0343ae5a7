"use strict";
// Shows the traces. Every text of the data becomes a text node; nothing of it is ever parsed as markup.
(() => {
  const PAGE = 40; // traces that are added at once
  const LONG = 20000; // characters of a text that are shown at once
  const NAMES = { correct: "correct", incorrect: "wrong", unscored: "unscored", error: "failed" };
  const SVG = "http://www.w3.org/2000/svg";

  const { runs } = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const shown = document.getElementById("shown");
  let found = [];
  let count = 0;

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
    return made;
  }

  function drawn(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function number(value) {
    if (value === null || value === undefined) return "-";
    if (value === 0) return "0";
    return value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  }

  function amount(value, noun) {
    return `${value} ${noun}${value === 1 ? "" : "s"}`;
  }

  function plain(value) {
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  function goldOf(trace) {
    const gold = problemOf(trace).gold;
    const answer = gold !== null && typeof gold === "object" && !Array.isArray(gold) && "answer" in gold ? gold.answer : gold;
    return answer === null || answer === undefined ? "-" : plain(answer);
  }

  function runOf(trace) { return runs[trace.run]; }
  function problemOf(trace) { return runOf(trace).problems[trace.id]; }
  function policyOf(trace) { return runOf(trace).policies[trace.policy]; }
  function speedup(trace) { return trace.seconds && trace.target_seconds ? trace.target_seconds / trace.seconds : null; }
  function targetSteps(trace) { return trace.steps.filter((step) => step.model === "target").length; }

  const traces = runs.flatMap((run, index) => run.attempts.map((attempt, place) => ({ ...attempt, run: index, place })));

  // --- what is looked for

  function option(select, value, text) {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  }

  function fillFilters() {
    const labels = new Set(runs.flatMap((run) => run.policies.map((policy) => policy.label)));
    const levels = new Set(traces.map((trace) => problemOf(trace).level).filter((level) => level !== null && level !== undefined));
    const names = form.elements;
    for (const select of [names.run, names.policy, names.level]) option(select, "", "all");
    runs.forEach((run, index) => option(names.run, String(index), run.name));
    for (const label of labels) option(names.policy, label, label);
    const inOrder = [...levels].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
    for (const level of inOrder) option(names.level, String(level), String(level));
    form.querySelector(".run").hidden = runs.length < 2;
    form.querySelector(".level").hidden = levels.size === 0;
    form.hidden = false;
    document.getElementById("strip-key").hidden = false;
  }

  function wanted() {
    const { run, policy, verdict, against, level, find } = form.elements;
    const words = find.value.trim().toLowerCase();
    return (trace) =>
      (run.value === "" || String(trace.run) === run.value) &&
      (policy.value === "" || policyOf(trace).label === policy.value) &&
      (verdict.value === "" || trace.verdict === verdict.value) &&
      (level.value === "" || String(problemOf(trace).level) === level.value) &&
      (against.value === "" || compares(trace, against.value)) &&
      (words === "" || holds(trace, words));
  }

  function compares(trace, how) {
    if (trace.target === null) return false;
    if (how === "slower") return speedup(trace) !== null && speedup(trace) < 1;
    const [right, wrong] = how === "lost" ? [trace.target, trace.verdict] : [trace.verdict, trace.target];
    return right === "correct" && wrong !== "correct";
  }

  function holds(trace, words) {
    const texts = [trace.id, problemOf(trace).question, trace.answer, ...trace.steps.map((step) => step.text)];
    return texts.some((text) => text !== null && text !== undefined && plain(text).toLowerCase().includes(words));
  }

  const ORDERS = {
    problem: (a, b) => a.run - b.run || a.id.localeCompare(b.id, "en", { numeric: true }) || a.sample - b.sample || a.policy - b.policy,
    slowest: (a, b) => (b.seconds ?? -1) - (a.seconds ?? -1),
    least: (a, b) => (speedup(a) ?? Infinity) - (speedup(b) ?? Infinity) || 0,
    calls: (a, b) => targetSteps(b) - targetSteps(a),
  };

  function search() {
    found = traces.filter(wanted()).sort(ORDERS[form.elements.order.value]);
    list.replaceChildren();
    count = 0;
    addPage();
  }

  function addPage() {
    const next = found.slice(count, count + PAGE);
    list.append(...next.map(row));
    count += next.length;
    shown.textContent = found.length === count ? amount(found.length, "trace") : `${count} of ${amount(found.length, "trace")}`;
    more.hidden = count >= found.length;
  }

  // --- one trace

  function row(trace) {
    const samples = trace.sample ? ` #${trace.sample + 1}` : "";
    const factor = speedup(trace);
    const summary = element("summary", "",
      element("span", `verdict ${trace.verdict}`, NAMES[trace.verdict] ?? trace.verdict),
      element("span", "id", `${trace.id}${samples}`),
      element("span", "by", policyOf(trace).label),
      element("span", "said-answer", trace.error ?? `${trace.answer === null || trace.answer === undefined ? "no answer" : plain(trace.answer)} (right: ${goldOf(trace)})`),
      strip(trace),
      element("span", "took", trace.seconds === null ? "" : `${number(trace.seconds)} s${factor === null ? "" : `, ${factor.toFixed(2)}×`}`),
    );
    const made = element("details", "trace", summary);
    made.addEventListener("toggle", () => { if (made.open && made.children.length === 1) made.append(body(trace)); });
    return made;
  }

  function strip(trace) { // who wrote how much, and what was thrown away, from the first token to the last
    const parts = trace.steps.flatMap((step) => [
      ...(step.discarded ? [[step.discarded.tokens, "thrown"]] : []),
      [step.tokens, `${step.model === "target" ? "target" : "draft"}-step`],
    ]);
    const total = parts.reduce((sum, [tokens]) => sum + tokens, 0);
    const svg = drawn("svg", { class: "strip", viewBox: `0 0 ${Math.max(total, 1)} 12`, preserveAspectRatio: "none", role: "img" });
    svg.setAttribute("aria-label", `${amount(trace.steps.length, "step")}, ${targetSteps(trace)} by the target`);
    let start = 0;
    for (const [tokens, kind] of parts) {
      const gap = Math.min(total / 160, tokens / 3);
      svg.append(drawn("rect", { class: kind, x: start, y: kind === "thrown" ? 8 : 0, width: Math.max(tokens - gap, 0), height: kind === "thrown" ? 4 : 12 }));
      start += tokens;
    }
    return svg;
  }

  function body(trace) {
    const made = element("div", "body",
      element("div", "question", text(problemOf(trace).question ?? "")),
      policyOf(trace).number ? element("p", "hint", `What is compared with tau: ${policyOf(trace).number}.`) : null,
      element("ol", "steps", ...trace.steps.map((step, index) => stepRow(trace, step, index))),
      result(trace),
    );
    const others = element("button", "", "This problem with every policy");
    others.type = "button";
    others.addEventListener("click", () => {
      form.reset();
      form.elements.find.value = trace.id;
      search();
      document.getElementById("traces").focus();
    });
    made.append(others);
    return made;
  }

  function text(content) { // a long one piece by piece: browsers take minutes to lay out megabytes
    const made = element("p", "text", content.slice(0, LONG));
    if (content.length <= LONG) return made;
    const next = element("button", "");
    const left = () => { next.textContent = `Show more (${content.length - made.textContent.length} characters left)`; };
    next.type = "button";
    next.addEventListener("click", () => {
      made.append(content.slice(made.textContent.length, made.textContent.length + LONG));
      if (made.textContent.length < content.length) left();
      else next.remove();
    });
    left();
    const both = document.createDocumentFragment();
    both.append(made, next);
    return both;
  }

  function stepRow(trace, step, index) {
    const head = element("div", "head", who(step));
    if (step.decision) head.append(element("span", "", step.decision === "escalate" ? "escalated" : "accepted"));
    if (step.probability !== null && step.probability !== undefined) head.append(element("span", "", compared(trace, step)));
    if (step.advantage !== null && step.advantage !== undefined) head.append(element("span", "", `advantage ${number(step.advantage)}`));
    head.append(element("span", "", size(step)));
    const kept = element("div", `version ${step.model}`, text(trimmed(step.text)));
    const content = element("div", "", head);
    if (step.discarded) {
      const gone = element("div", `version gone ${step.discarded.model}`,
        element("div", "head", element("span", "", "thrown away"), who(step.discarded), element("span", "", size(step.discarded))),
        text(trimmed(step.discarded.text)));
      kept.prepend(element("div", "head", element("span", "", "kept")));
      content.append(element("div", "both", gone, kept));
    } else {
      content.append(kept);
    }
    return element("li", "step", element("span", "at", String(index + 1)), content);
  }

  function who(step) { return element("span", `who ${step.model}`, step.model); }
  function size(step) { return `${amount(step.tokens, "token")}, ${number(step.seconds)} s${step.stop === "early" ? ", stopped early" : ""}`; }
  function trimmed(content) { return (content ?? "").replace(/^\n+|\s+$/g, ""); }

  function compared(trace, step) { // the number that decided, against tau
    const tau = trace.tau === null || trace.tau === undefined ? "" : ` ${step.probability > Number(String(trace.tau).replace("inf", "Infinity")) ? ">" : "≤"} tau ${trace.tau}`;
    return `${number(step.probability)}${tau}`;
  }

  function result(trace) {
    const made = element("dl", "result");
    const add = (name, value) => { if (value !== null && value !== undefined && value !== "") made.append(element("dt", "", name), element("dd", "", value)); };
    add("verdict", element("span", `verdict ${trace.verdict}`, NAMES[trace.verdict] ?? trace.verdict));
    add("answer", trace.answer === null || trace.answer === undefined ? "none" : text(plain(trace.answer)));
    add("right answer", text(goldOf(trace)));
    add("why", trace.explanation);
    add("error", trace.error);
    add("ended", trace.stop === "end" || !trace.stop ? null : trace.stop);
    add("target alone", trace.target === null ? null : `${NAMES[trace.target] ?? trace.target}${trace.target_seconds === null ? "" : `, ${number(trace.target_seconds)} s`}`);
    return made;
  }

  fillFilters();
  form.addEventListener("input", search);
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", addPage);
  search();
})();
