"""The HTML report: well-formed, self-contained, and safe against text of models, problems and files."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from made_up_runs import COLUMNS, MadeUp, as_run, describe, failed, make_run, parsed, unscored
from marks import rarely
from test_hostile_text import HOSTILE, MARKUP, OBEYED

from arbitrage_cli.app.asking.locate import card_of_run
from arbitrage_cli.display.page import MAX_BYTES, TEMPLATES, Traces, render
from arbitrage_cli.evaluation import metrics
from arbitrage_cli.routing.policies import POLICIES
from arbitrage_cli.runs.records import to_json
from arbitrage_cli.runs.results import Result
from arbitrage_cli.runs.rows import WrittenStep

BREAKOUTS = [
    "</script><script>alert(1)</script>", "</ScRiPt ><img src=x onerror=alert(1)>", "<!--<script>",
    "]]>--><svg onload=alert(1)>", r"$\href{javascript:alert(1)}{x}$", '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='alert(1)", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;&amp;", "line\u2028separator\u2029paragraph",
    "\\u003cscript\\u003e",
]  # fmt: skip
VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """A page without comments, in which each element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str]] = []  # scripts and styles without a type, and JSON
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] in (["script"], ["style"]):
            self.raw.append((self.elements[-1][1].get("type") or self._open[-1], data))
        else:
            self.words.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def run(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(dict(self.raw)["application/json"])
        return data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]


def page_of(made: MadeUp, max_bytes: int = MAX_BYTES, **options: Any) -> str:
    traces = Traces(max_bytes)
    run = as_run(json.loads(to_json(made.run)))  # as the file has it: no lone surrogates
    made_figures = metrics.figures(run, map(Result.of, traces.watch(map(parsed, made.rows))), card_of_run(run), **options)
    return render(run, made_figures, traces)


def page(made: MadeUp, **options: Any) -> Page:
    return Page(page_of(made, **options))


RUN = make_run(8)
ODD = MadeUp(RUN.run, [failed(RUN.rows[0]), unscored(RUN.rows[1]), *RUN.rows[2:-1]])
RUNS = {
    "usual": RUN,
    "errors and missing": ODD,
    "without a target": make_run(4, columns=[("draft", None), ("entropy", 0.5)]),
    "target only": make_run(4, columns=[("target", None)], levels=0),
    "samples": make_run(4, columns=COLUMNS[:4], samples=3),
    "one problem": make_run(1),
    "no row": MadeUp(describe(dict.fromkeys("abc", 1)), []),
    "with an oracle": make_run(6, columns=[("target", None), ("arbitrage", 0.5), ("oracle", 0.0)]),
}


def hostile_run(text: str) -> MadeUp:
    made = make_run(2, columns=[("target", None), ("entropy", 0.5)])
    made.run["dataset"] |= {"name": text, "sha256": text}
    made.run["asked"]["command"] = ["arbitrage", text]
    made.run["warnings"] = [f"warning {text}"]
    made.run["decided"]["machine"] = {"cpu": text, text: "1"}
    for model in made.run["loaded"].values():
        model["description"] = text
    made.run["levels"] = dict.fromkeys((f"{name} {text}" for name in made.run["levels"]), text)
    for policy in made.run["decided"]["routes"]:
        policy["tau_name"] = text
    step = {**made.rows[1]["steps"][0], "text": text}
    rows = [
        one
        | {
            "id": f"{one['id']} {text}",
            "problem": text,
            "gold": {"answer": text, text: [text]},
            "level": text,
            "answer": text,
        }
        | {"text": text, "error": text}
        | {"grade": {"value": "incorrect", "answer": text, "explanation": text}}
        | {"steps": [step | {"discarded": {name: step[name] for name in WrittenStep.model_fields if name in step}}]}
        for one in made.rows
    ]
    return MadeUp(made.run, [rows[0], {**rows[1], "status": "error"}, *rows[2:]])


# --- the page


@pytest.mark.parametrize("name", RUNS)
def test_page_is_well_formed_and_needs_nothing_else(name: str) -> None:
    made = page(RUNS[name])
    ids, links = made.attributes("id"), made.attributes("href")
    assert len(ids) == len(set(ids))
    assert all(link.startswith("#") for link in links)
    targets = {link.removeprefix("#") for link in links if "/" not in link}  # others lead to traces
    targets |= {word for name in ("aria-labelledby", "for") for value in made.attributes(name) for word in value.split()}
    assert set() < targets <= set(ids)
    assert {value for value in ids if value.startswith("def-")} <= targets | {"def-accuracy"}
    for attribute in ("src", "srcset", "action", "data", "poster", "formaction", "xlink:href", "style"):
        assert made.attributes(attribute) == []
    assert not {"link", "img", "iframe", "object", "embed", "base", "image"} & {tag for tag, _ in made.elements}
    assert not [name for _, attributes in made.elements for name in attributes if name.startswith("on")]
    assert "http" not in dict(made.raw)["style"]


@pytest.mark.parametrize("made", [RUN, RUNS["no row"], hostile_run(BREAKOUTS[0])], ids=["usual", "no row", "hostile"])
def test_content_policy_allows_the_one_style_and_the_one_script(made: MadeUp) -> None:
    """Nothing else is allowed: the policy has exactly these directives, and stands before all that it is about."""
    shown = page(made)
    policies = [one for _, one in shown.elements if (one.get("http-equiv") or "").lower() == "content-security-policy"]
    (policy,) = policies
    code = [(kind, text) for kind, text in shown.raw if kind != "application/json"]
    assert [kind for kind, _ in code] == ["style", "script"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in code]
    assert dict(part.split(" ", 1) for part in (policy["content"] or "").split("; ")) == {
        "default-src": "'none'",
        "style-src": f"'sha256-{digests[0]}'",
        "script-src": f"'sha256-{digests[1]}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    tags = [tag for tag, _ in shown.elements]
    assert [one for _, one in shown.elements].index(policy) < min(tags.index("style"), tags.index("script"))


@pytest.mark.parametrize("name", ["report.js", "temml.min.js"])
def test_script_never_parses_text_as_markup(name: str) -> None:
    script = (TEMPLATES / name).read_text(encoding="utf-8")
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\b|\bFunction\("
    )
    assert not re.search(forbidden, script)


@pytest.mark.parametrize("text", [*BREAKOUTS, *rarely(*HOSTILE.values(), *MARKUP)])
def test_text_of_others_changes_nothing_of_the_page(text: str) -> None:
    made, harmless = page(hostile_run(text)), page(hostile_run("h" * len(text)))
    assert [(tag, attributes.keys()) for tag, attributes in made.elements] == [
        (tag, attributes.keys()) for tag, attributes in harmless.elements
    ]
    assert made.raw[0] == harmless.raw[0]
    assert made.raw[-1] == harmless.raw[-1]
    assert not OBEYED.search(made.text)
    run = made.run
    assert text not in BREAKOUTS or " ".join(text.split()) in made.text
    for attempt in run["traces"]:
        shown = [attempt["problem"], attempt["grade"]["explanation"], *(step["text"] for step in attempt["steps"])]
        assert text not in BREAKOUTS or {*shown, *attempt["gold"]} == {text, "answer"}


def test_data_cannot_end_its_element() -> None:
    text = page_of(hostile_run("".join([*BREAKOUTS, *HOSTILE.values(), "\ud800 and \udfff"])))
    text.encode()
    start = text.index('id="data">') + len('id="data">')
    data = text[start : text.index("</script>", start)]
    assert data.isascii()
    assert not set(data) & set("<>&")
    json.loads(data)


# --- what it says


def test_traces_are_the_rows() -> None:
    run = page(RUN).run
    routes = [(policy["policy"], policy["tau"]) for policy in run["policies"]]
    for shown, row in zip(run["traces"], RUN.rows, strict=True):
        assert (shown["policy"], shown["tau"]) in routes
        assert shown["verdict"] == row["grade"]["value"]
        assert shown["seconds"] == pytest.approx(row["wall_seconds"], rel=1e-3)
        assert all(
            shown[name] == row[name] for name in ("id", "sample", "policy", "tau", "level", "problem", "gold", "grade")
        )
        assert [step["text"] for step in shown["steps"]] == [step["text"] for step in row["steps"]]
        assert shown["steps"][0]["cost"] == pytest.approx(row["steps"][0]["cost"], abs=1e-4)


has_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser")


def seen(made: MadeUp, folder: Path, *, link: str = "") -> Page:
    (folder / "page.html").write_text(page_of(made), encoding="utf-8")
    address = f"{(folder / 'page.html').as_uri()}{link and '#'}{link}"
    browser = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom")
    return Page(subprocess.run([*browser, address], capture_output=True, check=True, timeout=60).stdout.decode())


def classes(page: Page, tag: str) -> list[str]:
    return [attributes.get("class") or "" for name, attributes in page.elements if name == tag]


def opened(page: Page) -> list[int]:
    details = [one for tag, one in page.elements if tag == "details" and (one.get("class") or "").startswith("trace")]
    return [place for place, attributes in enumerate(details) if "open" in attributes]


@pytest.mark.slow
@has_browser
def test_script_shows_texts_as_texts_and_follows_links(tmp_path: Path) -> None:
    hostile = "".join([*BREAKOUTS, *HOSTILE.values(), *MARKUP])
    made = hostile_run("h")
    for row in made.rows:
        row |= {"problem": hostile, "answer": hostile}
        row["steps"] = [row["steps"][0] | {"text": f"{hostile} {number}", "discarded": None} for number in (1, 2, 3)]
        discarded = {name: row["steps"][0][name] for name in WrittenStep.model_fields if name in row["steps"][0]} | {
            "model": "check"
        }
        compared = {"sample": 0, "has_ended": True}
        solutions = [
            compared | {"model": "draft", "answer": hostile, "steps": []},
            compared | {"model": "check", "answer": None, "steps": [discarded]},
        ]
        row["check"] = {"agrees": False, "solutions": solutions}
    parsed = seen(made, tmp_path, link=f"{quote(made.rows[0]['id'])}/target/2")
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert not OBEYED.search(parsed.text)
    assert [name for name in classes(parsed, "li") if name.startswith("step")] == ["step", "step here", "step"]
    assert classes(parsed, "div").count("comparison") == 1
    assert "<script>alert(1)</script>" in parsed.text


def sampled_run() -> MadeUp:
    made = make_run(2, columns=[("target", None), ("arbitrage", 0.0214)], samples=4)
    made.run["decided"]["routes"][1]["tau_name"] = "careful"
    ids = {"made-up-0000": "test/1", "made-up-0001": "test/1/1"}
    run = made.run | {"levels": dict.fromkeys(ids.values())}
    return MadeUp(run, [row | {"id": ids[row["id"]]} for row in made.rows])


@pytest.mark.slow
@has_browser
@pytest.mark.parametrize(
    ("link", "place"),
    [
        ("test/1/arbitrage@careful/2", 1),
        ("test%2F1/arbitrage%40careful/2", 1),
        ("test/1/1/arbitrage@careful/sample3/2", 5),
        ("test/1/target/sample9", None),
    ],
)
def test_a_link_has_the_name_of_a_policy_and_the_sample(tmp_path: Path, link: str, place: int | None) -> None:
    parsed = seen(sampled_run(), tmp_path, link=link)
    assert opened(parsed) == ([] if place is None else [place])
    assert classes(parsed, "li").count("step here") == link.endswith("/2")
    own = [one for one in parsed.attributes("href") if "/" in one]
    assert bool(own) == (place is not None)
    assert all(("/sample" in one) == ("sample" in link) for one in own)


@pytest.mark.slow
@has_browser
@pytest.mark.parametrize(
    ("score", "tau", "shown"),
    [(0.18312, 0.18304, "0.1831 > tau 0.1830"), (0.0001, 0.0, "0.000100 > tau 0"), (0.2, "inf", "0.200 \u2264 tau inf")],
)
def test_rounded_scores_do_not_contradict_decisions_and_long_answers_are_folded(
    tmp_path: Path, score: float, tau: float | str, shown: str
) -> None:
    made = make_run(1, columns=[("entropy", tau)])
    made.rows[0]["steps"] = [{**made.rows[0]["steps"][0], "score": score}]
    made.rows[0]["gold"] = {"answer": "First of all. " * 20 + "So \\boxed{42}."}
    parsed = seen(made, tmp_path, link=f"made-up-0000/entropy@{float(tau):g}")
    assert shown in parsed.text
    assert (parsed.text.count("(right: 42)"), parsed.text.count("First of all.")) == (1, 20)


HUE = re.compile(r"[.]([a-z-]+)(?:, [.]check)? { --hue: var[(]--([a-z-]+)[)]; }")


def test_no_two_policies_have_the_same_mark_and_colour() -> None:
    """Each colour is defined for light and for dark pages."""
    shown = page(make_run(1, columns=[(name, 0.5 if policy.has_tau else None) for name, policy in POLICIES.items()]))
    style = dict(shown.raw)["style"]
    colours = dict(HUE.findall(style))
    paths = {one["id"]: one["d"] for tag, one in shown.elements if tag == "path" and "id" in one}
    marks = {name: (paths[f"mark-{name}"], colours.get(name)) for name in POLICIES}
    assert len(set(marks.values())) == len(marks) == len(paths)
    assert {"draft", "target", "arbitrage"} <= colours.keys()
    assert all(style.count(f"--{colour}: #") == 2 for colour in colours.values())


def test_a_large_run_has_its_wrong_answers_and_whole_problems_in_the_page() -> None:
    made = make_run(60, columns=[("target", None), ("draft", None), ("entropy", 0.5)])
    wrong = {_key(row) for row in made.rows if row["grade"]["value"] == "incorrect"}
    whole = page_of(made)
    size = len(whole) - len(page_of(MadeUp(made.run, [])))
    shown = page(made, max_bytes=size // 2)
    found = {_key(trace) for trace in shown.run["traces"]}
    assert 0 < len(wrong) < len(found) < len(made.rows)
    assert wrong < found
    others = found - wrong
    partly = [
        problem for problem in {key[0] for key in others}
        if not {_key(row) for row in made.rows if row["id"] == problem} <= found
    ]  # fmt: skip
    assert len(partly) <= 1
    assert f"{len(found)} of {len(made.rows)} traces" in shown.text
    assert "traces: " not in page(made).text
    assert [_key(row) for row in made.rows if _key(row) in found] == [_key(trace) for trace in shown.run["traces"]]


def test_of_too_many_wrong_answers_some_are_shown() -> None:
    made = make_run(20, columns=[("draft", None)])
    for row in made.rows:
        row["grade"] = {"value": "incorrect", "answer": "1", "explanation": "it differs"}
    shown = page(made, max_bytes=1)
    assert len(shown.run["traces"]) == 1
    assert "1 of 20 traces: 1 of 20 with a wrong answer" in shown.text


def test_of_several_rows_of_an_attempt_the_last_is_shown() -> None:
    made = make_run(3, columns=[("draft", None)])
    again = made.rows[0] | {"answer": "another"}
    assert [trace["answer"] for trace in page(MadeUp(made.run, [*made.rows, again])).run["traces"]] == [
        "another",
        *(row["answer"] for row in made.rows[1:]),
    ]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["id"], row["sample"], row["policy"], row["tau"]


@pytest.mark.slow
@has_browser
@pytest.mark.parametrize(
    ("name", "num_marks", "lines"),
    [
        ("usual", 7, {"chord", "curve"}),
        ("without a target", 2, set()),
        ("one problem", 7, {"chord", "curve"}),
        ("no row", 0, set()),
    ],
)
def test_chart_has_a_mark_for_each_policy_and_describes_its_lines(
    tmp_path: Path, name: str, num_marks: int, lines: set[str]
) -> None:
    parsed = seen(RUNS[name], tmp_path)
    marks = [one for tag, one in parsed.elements if tag == "svg" and one.keys() >= {"x", "class"} and one["class"] != "key"]
    assert all(0 <= float((mark[place] or "").rstrip("%")) <= 100 for mark in marks for place in ("x", "y"))
    drawn = {name.partition(" ")[0] for name in classes(parsed, "line")} & {"chord", "curve"}
    assert (min(len(marks), num_marks), drawn) == (num_marks, lines)
    keys = {one["data-line"] for _, one in parsed.elements if "data-line" in one and "hidden" not in one}
    assert num_marks == 0 or keys == lines


@pytest.mark.slow
@has_browser
def test_traces_begin_with_problems_that_policies_disagree_about(tmp_path: Path) -> None:
    made = make_run(6, columns=[("target", None), ("draft", None)])
    verdicts = {row["id"]: {one["grade"]["value"] for one in made.rows if one["id"] == row["id"]} for row in made.rows}
    expected = sorted(verdicts, key=lambda name: (len(verdicts[name]) == 1, name))
    shown = [word for word in seen(made, tmp_path).words if word in verdicts]
    assert [*dict.fromkeys(shown)] == expected != sorted(verdicts)


@pytest.mark.slow
@has_browser
def test_j_and_k_go_from_trace_to_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(TEMPLATES, tmp_path / "templates")
    press = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))"
    driver = f"""
    (async () => {{
      const soon = () => new Promise((done) => setTimeout(done, 50));
      while (!document.querySelector(".trace")) await soon();
      for (const key of ["j", "o", ..."j".repeat(41), "k"]) {{
        if (key === "o") document.activeElement.click();
        else {press};
        await soon();
      }}
    }})();
    """
    with (tmp_path / "templates" / "report.js").open("a", encoding="utf-8") as script:
        script.write(driver)
    monkeypatch.setattr("arbitrage_cli.display.page.TEMPLATES", tmp_path / "templates")
    assert opened(seen(make_run(25, columns=[("target", None), ("draft", None)]), tmp_path)) == [40]
