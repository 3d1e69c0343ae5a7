"use strict";
// Shows the traces. Texts of the data become text nodes and are never parsed as markup.
(() => {
  const PAGE = 40; // traces added at a time
  const LONG = 20000; // characters of a text shown at a time
  const SHORT = 100; // characters of a right answer in the list
  const MAX_DECIMALS = 20;
  const NAMES = { correct: "correct", incorrect: "incorrect", unscored: "unscored", error: "failed" };
  const SVG = "http://www.w3.org/2000/svg";
  const MATH = [
    /\$\$([^$]{1,2000}?)\$\$/, /\\\[([\s\S]{1,2000}?)\\\]/, // displayed
    /\\\(([\s\S]{1,2000}?)\\\)/, /\$(?=[^\s$])((?:[^$\\\n]|\\.){1,500}?)(?<=\S)\$(?!\d)/, // inline, but not $5 and $6
    /(\\boxed\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\}){0,500}\})/,
  ];
  const FORMULA = new RegExp(MATH.map((one) => one.source).join("|"), "g");

  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const more = document.getElementById("more");
  const shown = document.getElementById("shown");
  const run = parsed(document.getElementById("data").textContent);
  const traces = [];
  let found = [];
  let count = 0;
  let only = null; // the only problem shown, if any

  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null && child !== undefined)); // strings become text nodes
    return made;
  }

  function drawn(name, attributes, ...children) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0";
    return value.toFixed(decimals(value));
  }

  function decimals(value) { // that show three digits
    return Math.min(MAX_DECIMALS, Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))));
  }

  function amount(value, noun) {
    return `${value} ${noun}${value === 1 ? "" : "s"}`;
  }

  function plain(value) {
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  // --- the data

  function parsed(json) { // removes control characters, lone surrogates and bidirectional marks
    const unsafe = /[^\P{Cc}\n\t]|\p{Cs}|[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/gu;
    return JSON.parse(json, (_, value) => (typeof value === "string" ? value.replace(unsafe, "") : value));
  }

  function load() {
    const spans = new Map(); // seconds of the longest attempt at each problem
    const alone = new Map(); // the target's attempts
    const verdicts = new Map(); // of all policies, by problem and sample
    const orders = new Map(); // of the problems
    const ranks = new Map(run.policies.map((policy, rank) => [`${policy.policy} ${policy.tau}`, rank]));
    for (const details of run.traces) {
      const { id, level, sample, verdict, seconds } = details;
      if (!orders.has(id)) orders.set(id, orders.size);
      spans.set(id, Math.max(spans.get(id) ?? 0, seconds ?? 0, spentOn(details)));
      const key = `${orders.get(id)}/${sample}`;
      const rank = ranks.get(`${details.policy} ${details.tau}`);
      const calls = details.steps.filter((step) => step.model === "target").length;
      const trace = { details, key, id, level, sample, rank, policy: run.policies[rank], verdict, seconds, calls, order: orders.get(id) };
      if (trace.policy.policy === "target") alone.set(key, trace);
      verdicts.set(key, (verdicts.get(key) ?? new Set()).add(verdict));
      traces.push(trace);
    }
    for (const trace of traces) {
      trace.span = spans.get(trace.id);
      trace.isDisputed = verdicts.get(trace.key).size > 1;
      trace.target = trace.policy.policy === "target" ? null : alone.get(trace.key) ?? null;
    }
  }

  function spentOn(details) { return parts(written(details)).reduce((sum, part) => sum + part.seconds, 0); }
  function speedup(trace) { return trace.seconds && trace.target?.seconds ? trace.target.seconds / trace.seconds : null; }

  function answerOf({ answer, grade }) { return grade?.answer ?? answer; }
  function isKnown(value) { return value !== null && value !== undefined && value !== ""; }

  function rightAnswer({ right, gold }) { // the final answer, and all that is known about the right answer below it
    const all = isKnown(gold) ? plain(gold) : "";
    if (!isKnown(right)) return all && text(all);
    const rest = Object.values(gold).every((value) => value === right) ? [] : [element("details", "", element("summary", "", "full reference answer"), text(all))];
    return element("div", "", text(right), ...rest);
  }

  // --- charts

  function roundTicks(low, high, count) { // values and labels of about `count` intervals around the range
    const raw = Math.max(high - low, Math.abs(high) / 10, 1e-9) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= raw * 0.999);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const first = Math.floor(low / step + 1e-9);
    const last = Math.max(first + 1, Math.ceil(high / step - 1e-9));
    return Array.from({ length: last - first + 1 }, (_, index) => [(first + index) * step, ((first + index) * step).toFixed(digits)]);
  }

  function scaleOf(ticks) { // maps the range of the ticks to a share of an axis
    const [low, high] = [ticks[0][0], ticks.at(-1)[0]];
    return (value) => (value - low) / (high - low);
  }

  function symbol(policy) { return drawn("use", { href: `#mark-${policy}` }); }

  // Each mark has a policy, a title, and x and y: a value, followed by the ends of its interval if there is one.
  function plot(place, { title, xTitle, xTicks, yTicks, marks, lines }) {
    const [xScale, yScale] = [scaleOf(xTicks), scaleOf(yTicks)];
    const x = (value) => `${100 * xScale(value)}%`;
    const y = (value) => `${100 - 100 * yScale(value)}%`;
    const text = (attributes, words) => drawn("text", attributes, words);
    const from = (className, [x1, y1], [x2, y2]) => drawn("line", { class: className, x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) });
    const svg = drawn("svg", { role: "img", "aria-label": [title, ...marks.map((mark) => mark.title)].join("; ") },
      drawn("g", { class: "grid" },
        ...yTicks.flatMap(([value, label]) => [
          drawn("line", { x1: "0", x2: "100%", y1: y(value), y2: y(value) }),
          text({ x: "-8", y: y(value), dy: "4", "text-anchor": "end" }, `${label}%`),
        ]),
        ...xTicks.map(([value, label]) => drawn("svg", { x: x(value), y: "100%" },
          drawn("line", { class: "tick", y2: "5" }), text({ y: "19", "text-anchor": "middle" }, label))),
        drawn("line", { class: "axis", x1: "0", y1: "100%", x2: "100%", y2: "100%" }),
        text({ class: "axis-title", x: "-46", y: "-20" }, "accuracy"),
        text({ class: "axis-title", x: "100%", y: "100%", dy: "40", "text-anchor": "end" }, xTitle)),
      ...lines.map(([className, one, other]) => from(className, one, other)),
      ...marks.map((mark) => drawn("g", { class: `intervals ${mark.policy}` },
        ...(mark.x.length > 1 ? [from("", [mark.x[1], mark.y[0]], [mark.x[2], mark.y[0]])] : []),
        ...(mark.y.length > 1 ? [from("", [mark.x[0], mark.y[1]], [mark.x[0], mark.y[2]])] : []))),
      ...marks.map((mark) => drawn("svg", { class: mark.policy, x: x(mark.x[0]), y: y(mark.y[0]) }, drawn("title", {}, mark.title), symbol(mark.policy))));
    place.querySelector(".plot").append(svg);
    place.hidden = false;
  }

  function accuracyOf(figures) { return [figures.accuracy, ...(figures.accuracy_interval ?? [])].map((share) => 100 * share); }

  function accuracyWords([value, ...interval]) {
    return `${value.toFixed(1)}%${interval.length ? ` [${interval.map((end) => end.toFixed(0)).join("–")}]` : ""}`;
  }

  function showAccuracyAndTime() { // the time is relative to the target, if there are speed-ups
    const isRelative = run.policies.some((policy) => policy.speedup);
    const marks = run.policies.filter((one) => one.accuracy !== null && (isRelative ? one.speedup : one.seconds_mean)).map((one) => {
      const ends = one.policy !== "target" && one.speedup_interval?.every((end) => end > 0) ? one.speedup_interval.toReversed() : [];
      const x = isRelative ? [one.speedup, ...ends].map((value) => 1 / value) : [one.seconds_mean];
      const took = isRelative ? `${x[0].toFixed(2)} of the target's time` : `${number(x[0])} s`;
      const y = accuracyOf(one);
      return { policy: one.policy, x, y, title: `${one.label}: ${accuracyWords(y)} in ${took}` };
    });
    if (!marks.length) return;
    const [draft, target] = ["draft", "target"].map((role) => marks.find((mark) => mark.policy === role));
    const join = (className, one, other) => [className, [one.x[0], one.y[0]], [other.x[0], other.y[0]]];
    const lines = draft && target && draft.x[0] < target.x[0] && draft.y[0] !== target.y[0] ? [join("chord", draft, target)] : [];
    for (const policy of new Set(marks.map((mark) => mark.policy))) {
      const own = marks.filter((mark) => mark.policy === policy).sort((a, b) => a.x[0] - b.x[0]);
      lines.push(...own.slice(1).map((mark, index) => join(`curve ${policy}`, own[index], mark)));
    }
    const place = document.getElementById("front");
    for (const key of place.querySelectorAll("[data-line]")) key.hidden = !lines.some(([name]) => name.split(" ")[0] === key.dataset.line);
    const xTicks = roundTicks(0, Math.max(...marks.flatMap((mark) => mark.x)), 6);
    const yTicks = roundTicks(Math.min(...marks.flatMap((mark) => mark.y)), Math.max(...marks.flatMap((mark) => mark.y)), 6);
    const xTitle = isRelative ? "time relative to the target alone" : "mean seconds per problem";
    marks.sort((a, b) => (a.policy === "target") - (b.policy === "target")); // its ring surrounds marks at the same place
    plot(place, { title: "Accuracy against time", xTitle, xTicks, yTicks, marks, lines });
  }

  // --- search and filters

  function option(select, value, text) {
    const made = element("option", "", text);
    made.value = value;
    select.append(made);
  }

  function fillFilters() {
    const labels = new Set(run.policies.map((policy) => policy.label));
    const levels = new Set(traces.map((trace) => trace.level).filter((level) => level !== null && level !== undefined));
    const names = form.elements;
    for (const select of [names.policy, names.level]) option(select, "", "all");
    for (const label of labels) option(names.policy, label, label);
    const inOrder = [...levels].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
    for (const level of inOrder) option(names.level, String(level), String(level));
    form.querySelector(".level").hidden = levels.size === 0;
    form.hidden = false;
    document.getElementById("strip-key").hidden = false;
  }

  function isWanted(trace) {
    const { policy, verdict, against, level } = form.elements;
    return (only === null || trace.id === only) &&
      (policy.value === "" || trace.policy.label === policy.value) &&
      (verdict.value === "" || trace.verdict === verdict.value) &&
      (level.value === "" || String(trace.level) === level.value) &&
      (against.value === "" || compares(trace, against.value));
  }

  function compares(trace, how) {
    if (trace.target === null) return false;
    if (how === "slower") return speedup(trace) !== null && speedup(trace) < 1;
    const [right, wrong] = how === "lost" ? [trace.target, trace] : [trace, trace.target];
    return right.verdict === "correct" && wrong.verdict !== "correct";
  }

  function holds({ id, details }, words) {
    const texts = [id, details.problem, answerOf(details), ...details.steps.map((step) => step.text)];
    return texts.some((text) => isKnown(text) && text.toLowerCase().includes(words));
  }

  const ORDERS = {
    disagreement: (a, b) => b.isDisputed - a.isDisputed || ORDERS.problem(a, b),
    problem: (a, b) => a.order - b.order || a.sample - b.sample || a.rank - b.rank,
    slowest: (a, b) => (b.seconds ?? -1) - (a.seconds ?? -1),
    least: (a, b) => (speedup(a) ?? Infinity) - (speedup(b) ?? Infinity) || 0,
    calls: (a, b) => b.calls - a.calls,
  };

  function search() {
    const words = form.elements.find.value.trim().toLowerCase();
    found = traces.filter((trace) => isWanted(trace) && (!words || holds(trace, words))).sort(ORDERS[form.elements.order.value]);
    list.replaceChildren();
    count = 0;
    addPage();
  }

  function addPage() {
    const next = found.slice(count, count + PAGE);
    list.append(...next.map(row));
    count += next.length;
    const some = found.length === count ? "" : `${count} of `;
    shown.textContent = `${some}${amount(found.length, "trace")}${only === null ? "" : ` of problem ${only}: change a filter to show the others`}`;
    more.hidden = count >= found.length;
  }

  // --- one trace

  function row(trace) {
    const { details } = trace;
    const samples = trace.sample ? ` #${trace.sample + 1}` : "";
    const factor = speedup(trace);
    const answer = (answerOf(details) ?? "no answer").slice(0, LONG);
    const right = isKnown(details.right) ? ` (right: ${details.right.slice(0, SHORT)})` : "";
    const summary = element("summary", "",
      element("span", `verdict ${trace.verdict}`, NAMES[trace.verdict] ?? trace.verdict),
      element("span", "id", `${trace.id}${samples}`),
      element("span", "by", trace.policy.label),
      element("span", "said-answer", details.error ?? `${answer}${right}`),
      lanes(written(details), trace.span, "strip"),
      element("span", "took", trace.seconds === null ? "" : `${number(trace.seconds)} s${factor === null ? "" : `, ${factor.toFixed(2)}×`}`),
    );
    const made = element("details", "trace", summary);
    made.trace = trace;
    made.fill = () => { if (made.children.length === 1) made.append(body(trace)); };
    made.addEventListener("toggle", () => { if (made.open) made.fill(); });
    return made;
  }

  function showProblem(id) {
    form.reset();
    only = id;
    search();
  }

  function linkTo(trace, step) { // #problem/policy/step, or #problem/policy/sample3/step
    const sample = trace.sample ? [`sample${trace.sample + 1}`] : [];
    return `#${[trace.id, trace.policy.name, ...sample, step].map(encodeURIComponent).join("/")}`;
  }

  function linked(link) { // returns the trace and the step; an ID may contain slashes
    for (const trace of traces) {
      const begins = `${trace.id}/${trace.policy.name}`;
      const rest = link.startsWith(begins) && link.slice(begins.length).match(/^(?:\/sample(\d+))?(?:\/(\d+))?$/);
      if (rest && Number(rest[1] ?? 1) === trace.sample + 1) return [trace, rest[2]];
    }
    return [];
  }

  function follow() {
    let link;
    try {
      link = decodeURIComponent(location.hash.slice(1));
    } catch (error) { // not a link to a trace
      return;
    }
    const [trace, step] = linked(link);
    if (!trace) return;
    showProblem(trace.id);
    const rowOf = () => [...list.children].find((one) => one.trace === trace);
    while (!rowOf() && !more.hidden) addPage();
    const made = rowOf();
    if (!made) return;
    made.fill();
    made.open = true;
    const place = made.querySelectorAll(".step")[step - 1] ?? made;
    place.classList.add("here");
    place.scrollIntoView();
  }

  function move(by) { // selects the next or previous trace, and opens it if the current one is open
    const now = [...list.children].indexOf(document.activeElement?.closest(".trace"));
    if (now + by >= list.children.length && !more.hidden) addPage();
    const next = list.children[now + by];
    if (!next) return;
    if (list.children[now]?.open) {
      list.children[now].open = false;
      next.open = true;
    }
    next.firstElementChild.focus();
  }

  function written({ steps, check }) { // all steps, after those of solutions that policy agree did not keep
    const thrown = (check?.solutions ?? []).flatMap((solution) => solution.steps);
    return [...thrown.map((step) => ({ ...step, thrown: true })), ...steps];
  }

  function parts(steps) { // steps in the order of writing, the draft first
    let start = 0;
    return steps.flatMap((step, index) => {
      const written = step.discarded ? [step, step.discarded] : [step];
      return written.sort((one) => (one.model === "draft" ? -1 : 1)).map((one) => {
        const part = { ...one, start, index, thrown: one.thrown || one !== step };
        start += one.seconds;
        return part;
      });
    });
  }

  function lanes(steps, span, className) { // timeline with the draft above the target
    const percent = (seconds) => `${(100 * seconds / (span || 1)).toFixed(3)}%`;
    const made = drawn("svg", { class: className, role: "img", "aria-label": amount(steps.length, "step") });
    for (const part of parts(steps)) {
      const who = `step ${part.index + 1}: ${part.model}, ${size(part)}${part.thrown ? ", discarded" : ""}`;
      made.append(drawn("rect", {
        class: `${part.model}${part.thrown ? " thrown" : ""}`, x: percent(part.start), width: percent(part.seconds),
        y: part.model === "target" ? "54%" : "0", height: "46%",
      }, drawn("title", {}, who)));
    }
    return made;
  }

  function timeline(steps, span) {
    const ticks = drawn("svg", { class: "ticks" });
    for (const [value, label] of roundTicks(0, span, 5).filter(([one]) => one <= span)) {
      const x = `${100 * value / span}%`;
      ticks.append(drawn("line", { x1: x, x2: x, y1: "0", y2: "4" }),
        drawn("text", { x, y: "16", "text-anchor": value ? "middle" : "start" }, `${label} s`));
    }
    return element("div", "timeline", lanes(steps, span, "lanes"), ticks);
  }

  function body(trace) {
    const { details } = trace;
    const span = Math.max(spentOn(details), trace.seconds ?? 0);
    const others = element("button", "", "Show this problem for all policies");
    others.type = "button";
    others.addEventListener("click", () => {
      showProblem(trace.id);
      document.getElementById("traces").focus();
    });
    return element("div", "body",
      element("div", "question", text(details.problem ?? "")),
      span > 0 ? timeline(written(details), span) : null,
      details.check ? comparison(details.check) : null,
      trace.policy.score_is ? element("p", "hint", `Score compared with tau: ${trace.policy.score_is}.`) : null,
      element("ol", "steps", ...details.steps.map((step, index) => stepRow(trace, step, index))),
      result(trace),
      others,
    );
  }

  function text(content) { // long texts are shown in parts, because browsers take minutes to lay out megabytes
    const made = element("p", "text", typeset(content.slice(0, LONG)));
    let end = LONG;
    if (content.length <= end) return made;
    const next = element("button", "");
    const left = () => { next.textContent = `Show more (${content.length - end} more characters)`; };
    next.type = "button";
    next.addEventListener("click", () => {
      made.append(typeset(content.slice(end, end + LONG)));
      end += LONG;
      if (end < content.length) left();
      else next.remove();
    });
    left();
    const both = document.createDocumentFragment();
    both.append(made, next);
    return both;
  }

  function typeset(content) { // renders formulas as MathML, next to the hidden source
    const made = document.createDocumentFragment();
    let end = 0;
    for (const match of content.matchAll(FORMULA)) {
      made.append(content.slice(end, match.index), formula(match));
      end = match.index + match[0].length;
    }
    made.append(content.slice(end));
    return made;
  }

  function formula([written, ...groups]) {
    const displayMode = (groups[0] ?? groups[1]) !== undefined;
    const made = element("span", displayMode ? "displayed" : "");
    try {
      temml.render(groups.find((one) => one !== undefined), made, { displayMode, throwOnError: true, maxSize: [5, 60], maxExpand: 100 });
    } catch (error) { // invalid LaTeX, or nested too deeply
      return written;
    }
    return element("span", "formula", made, element("span", "as-written", written));
  }

  function stepRow(trace, step, index) {
    const head = element("div", "head", who(step));
    if (step.decision) head.append(element("span", "", step.decision === "escalate" ? "escalated" : "accepted"));
    if (step.score !== null && step.score !== undefined) {
      head.append(element("span", "", step.phase === "think" ? `score ${number(step.score)}` : compared(trace.policy.tau, step.score)));
    }
    if (step.advantage !== null && step.advantage !== undefined) head.append(element("span", "", `advantage ${number(step.advantage)}`));
    head.append(element("span", "", size(step)));
    const kept = element("div", `version ${step.model}`, text(trimmed(step.text)), spent(step));
    const content = element("div", "", head);
    if (step.discarded) {
      const gone = element("div", `version gone ${step.discarded.model}`,
        element("div", "head", element("span", "", "discarded"), who(step.discarded), element("span", "", size(step.discarded))),
        text(trimmed(step.discarded.text)), spent(step.discarded));
      kept.prepend(element("div", "head", element("span", "", "kept")));
      content.append(element("div", "both", gone, kept));
    } else {
      content.append(kept);
    }
    const at = element("a", "at", String(index + 1));
    at.href = linkTo(trace, index + 1);
    if (step.phase !== "think") return element("li", "step", at, content);
    head.prepend(element("span", "", "thought"));
    const folded = element("details", "", element("summary", "", head), ...[...content.children].filter((one) => one !== head));
    return element("li", "step thought", at, folded);
  }

  function comparison({ agrees, solutions }) { // shows the solutions that policy agree did not keep
    const ended = solutions.filter((one) => one.has_ended);
    const answers = [...ended.filter((one) => one.model === "draft"), ...ended.filter((one) => one.model !== "draft")]
      .map((one) => plain(one.answer ?? "no answer").slice(0, LONG));
    const differ = [answers.slice(0, -1).join(", "), ...answers.slice(-1)].filter(Boolean).join(" and ");
    const all = answers.length === 2 ? "both" : `all ${answers.length} solutions`;
    const said = agrees ? `${all} answer ${answers[0]}: accepted` : `${differ}: the target answers`;
    const thrown = solutions.filter((one) => one.steps.length).map(({ model, steps }) =>
      element("div", `version ${model}${agrees ? "" : " gone"}`, element("div", "head", who(steps[0])),
        text(trimmed(steps.map((step) => step.text).join("")))));
    return element("div", "comparison", ...thrown, element("p", "", said));
  }

  function who(step) { return element("span", `who ${step.model}`, step.model === "check" ? "checker" : step.model); }
  function size(step) {
    const limits = { early: ", stopped early", think_budget: ", thinking limit reached" };
    return `${amount(step.tokens, "token")}, ${number(step.seconds)} s${limits[step.stop] ?? ""}`;
  }
  function spent(step) { // the cost of a step by activity
    const of = (cost) => ["prefill", "verify", "decode"].filter((part) => cost[`${part}_tokens`]).map((part) =>
      `${part} ${amount(cost[`${part}_tokens`], "token")}${part === "verify" ? ` (${cost.verify_kept ?? 0} kept)` : ""} ${number(cost[`${part}_seconds`] ?? 0)} s`);
    const speculation = step.speculation_cost ? [`draft speculation: ${of(step.speculation_cost).join(", ")}`] : [];
    return element("p", "hint spent", [...of(step.cost), ...speculation].join(" · "));
  }
  function trimmed(content) { return (content ?? "").replace(/^\n+|\s+$/g, ""); }

  function compared(tau, value) { // formats score and tau with enough digits to show which is greater
    if (tau === null || tau === undefined) return number(value);
    const bound = Number(String(tau).replace("inf", "Infinity"));
    const sign = value > bound ? ">" : "≤";
    if (!bound || !Number.isFinite(bound)) return `${number(value)} ${sign} tau ${tau}`;
    let digits = decimals(bound);
    while (digits < MAX_DECIMALS && Number(value.toFixed(digits)) > Number(bound.toFixed(digits)) !== value > bound) digits += 1;
    return `${value.toFixed(digits)} ${sign} tau ${bound.toFixed(digits)}`;
  }

  function result(trace) {
    const { details } = trace;
    const made = element("dl", "result");
    const add = (name, value) => { if (isKnown(value)) made.append(element("dt", "", name), element("dd", "", value)); };
    const named = ({ verdict }) => NAMES[verdict] ?? verdict;
    add("verdict", element("span", `verdict ${trace.verdict}`, named(trace)));
    add("answer", text(answerOf(details) ?? "none"));
    add("right answer", rightAnswer(details));
    add("reason", details.grade?.explanation);
    add("error", details.error);
    add("stopped by", details.stop === "end" || !details.stop ? null : details.stop);
    add("thinking", thinking(details.steps));
    add("target alone", trace.target && `${named(trace.target)}${trace.target.seconds === null ? "" : `, ${number(trace.target.seconds)} s`}`);
    return made;
  }

  function thinking(steps) {
    const thoughts = steps.filter((step) => step.phase === "think");
    if (!thoughts.length) return null;
    const reason = thoughts.at(-1).stop === "think_budget" ? " (limit reached)" : "";
    return `${amount(thoughts.reduce((sum, step) => sum + step.tokens, 0), "token")}${reason}`;
  }

  // --- hints below tables wider than the screen

  function watchTables() {
    const watcher = new ResizeObserver((changes) => {
      for (const { target } of changes) target.nextElementSibling.hidden = target.scrollWidth <= target.clientWidth;
    });
    for (const table of document.querySelectorAll(".scroll")) watcher.observe(table);
  }

  watchTables();
  showAccuracyAndTime();
  form.addEventListener("input", (event) => {
    if (event.target.name === "written") return list.classList.toggle("written", event.target.checked);
    only = null;
    search();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", addPage);
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select") || event.ctrlKey || event.metaKey || event.altKey;
    if (!isTyping && (event.key === "j" || event.key === "k")) move(event.key === "j" ? 1 : -1);
  });
  window.addEventListener("hashchange", follow);
  load();
  fillFilters();
  search();
  follow();
})();
