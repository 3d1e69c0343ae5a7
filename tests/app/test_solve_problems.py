"""`solve`: where its problems come from, what is noted and refused about them, and files of results that are continued."""

from pathlib import Path
from typing import Any

import pytest
from commands import SCRIPTED, Shown, refused, solve, typed
from faults import rows_of, write_rows

from arbitrage_cli.app.commands.solve import loading_hint

PLAIN, MISSING = typed(**SCRIPTED), typed(draft="no.gguf", target="no.gguf", policy="draft")
LINES = '{"problem": "1 + 1", "id": "a"}\n{bad\n\n{"problem": "37 * 12 - 95", "id": "a"}\n{"problem": "who?"}\n'
FOUND = [("a", "2"), ("2", None), ("a-2", "349"), ("5", None)]
"""Ids and answers: one line is no JSON, one has the id of another, one cannot be solved."""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "problems.jsonl").write_text(LINES)
    return tmp_path


def solved(folder: Path, name: str = "problems.jsonl", **given: Any) -> tuple[list[tuple[str, str | None]], list[str]]:
    """The id and the answer of each line of a file, and the notes."""
    shown = Shown()
    solve(folder, PLAIN, output=None, display=shown, **{"input_file": str(folder / name)} | given)
    return [(one["id"], one["answer"]) for one in shown.records], shown.notes


@pytest.mark.parametrize(
    ("policy", "is_known"),
    [("target", True), ("speculative", True), ("random@-1", True), ("random@1", False), ("draft", False)],
)
def test_the_time_of_the_target_alone_is_known_for_its_own_text(tmp_path: Path, policy: str, *, is_known: bool) -> None:
    """The target might have written another text in place of the draft's."""
    shown = Shown()
    solve(tmp_path, typed(policy=policy), "37 * 12 - 95", output=None, display=shown)
    (record,) = shown.records
    assert (record["target_alone_seconds_estimate"] is not None) == is_known


# --- what the input is


def test_a_table_has_a_header(tmp_path: Path) -> None:
    """A question may have lines of its own; a mapping names the fields, as for a data set, also those of JSONL."""
    (tmp_path / "in.csv").write_text('n,prompt,gold\na,"1 + 1",2\nb,"37 * 12\n- 95",349\nc,2 + 2,5\n')
    write_rows(
        tmp_path / "in.jsonl", [{"n": "a", "prompt": "1 + 1", "gold": "2"}, {"n": "c", "prompt": "2 + 2", "gold": "5"}]
    )
    mapping = "question=prompt,answer=gold,id=n"
    assert solved(tmp_path, "in.csv", mapping=mapping, limit="2-3")[0] == [("b", "349"), ("c", "4")]
    assert solved(tmp_path, "in.jsonl", mapping=mapping)[0] == [("a", "2"), ("c", "4")]


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("in.csv", {}, ("prompt", "--map")),
        ("in.jsonl", {}, ("prompt, gold", "--map")),
        ("in.jsonl", {"mapping": "question=problem"}, ("prompt, gold", "--map")),
        ("in.jsonl", {"mapping": "question=prompt,id=m"}, ("'m'",)),
        ("header.txt", {}, ("--input FILE.csv",)),
        ("in.jsonl", {"limit": "10-20"}, ("before line 10",)),
        *((name, {}, (f"{name}: cannot be read", "--input")) for name in ("missing.csv", "missing.txt", "pipe/x", "/dev/zero")),
        ("~nobody-here/x.txt", {}, ("~nobody-here/x.txt: cannot be read", "--input")),
        ("blank.txt", {}, ("contains no problem",)),
    ],
)  # fmt: skip
def test_input_without_problems_is_refused_before_models_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, str], words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in.csv").write_text("prompt,gold\n1 + 1,2\n")
    write_rows(Path("in.jsonl"), [{"prompt": "1 + 1", "gold": "2"}] * 3)
    Path("header.txt").write_text("problem , answer\na,5 + 6\n")
    Path("blank.txt").write_bytes(b"\xef\xbb\xbf\n \n\t\r\n")
    error = refused(solve, tmp_path, MISSING, display=(shown := Shown()), **{"input_file": name} | given)
    said = " ".join([*shown.notes, error.message, error.hint])
    assert [word for word in words if word not in said] == [], said
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "text", "noted"),
    [
        ("a.txt", "1 + 1\n\n2 + 2\n\n3 + 3\n", "$(cat FILE)"),
        ("a.txt", "1 + 1\n2 + 2\n\n", None),
        ("a.txt", '{"problem": "1 + 1"}\n\n{"problem": "2"}\n', None),
        ("a.txt", "1 + 1\n\xff\n2 + 2\n", None),
        ("a.jsonl", '{"problem": "1 + 1", "answer": "2"}\n' * 2, "the answers in the input are ignored"),
        ("a.csv", "problem,answer\n1 + 1,2\n", "the answers in the input are ignored"),
    ],
    ids=["text", "at the end", "JSONL", "a line that is not text", "answers", "answers of a table"],
)
def test_what_may_not_be_meant_is_pointed_out_once(tmp_path: Path, name: str, text: str, noted: str | None) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    _, notes = solved(tmp_path, name)
    hints = [note for note in notes if "cat FILE" in note or "ignored" in note]
    assert [noted in hint for hint in hints if noted] == ([True] if noted else [])
    assert len(hints) == bool(noted)


def test_a_problem_that_is_a_file_or_empty_is_refused(here: Path) -> None:
    path = here / "problems.jsonl"
    for problem, words in ((str(path), f"--input {path}"), (" ", "the problem is empty")):
        error = refused(solve, here, PLAIN, problem)
        assert words in f"{error.message} {error.hint}"
    assert "cannot be combined" in refused(solve, here, PLAIN, "1 + 1", input_file=str(path)).message


# --- files of results


@pytest.mark.parametrize("concurrency", [1, 3])
def test_every_line_has_a_result_and_the_same_file_continues(here: Path, concurrency: int) -> None:
    """In input order on standard output. Only a problem that could not be solved is tried again."""
    results = here / "out.jsonl"
    for limit, num_new, num_failed in (("3", 3, 1), ("3", 0, 1), (None, 1, 2), (None, 1, 2)):
        before = results.read_bytes() if results.exists() else b""
        solved = solve(here, typed(**SCRIPTED, concurrency=concurrency), display=(shown := Shown()), limit=limit)
        assert (solved.num_new, solved.num_failed) == (num_new, num_failed)
        assert num_new or results.read_bytes() == before
        records = shown.records
        assert [(one["id"], one["answer"]) for one in records] == FOUND[: len(records)]
        assert {row["id"]: row for row in rows_of(here, "out.jsonl")} == {row["id"]: row for row in records}
    assert records[1]["error"].startswith("line 2: ")
    assert "out.jsonl: " in refused(solve, here, PLAIN, limit="2-9").message
    assert len(rows_of(here, "out.jsonl")) == 4


def test_a_full_context_is_a_result(here: Path) -> None:
    write_rows(here / "problems.jsonl", [{"question": "1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9"}])
    counts = [solve(here, typed(**SCRIPTED, ctx=160)) for _ in range(2)]
    assert [(one.num_new, one.num_failed) for one in counts] == [(1, 0), (0, 0)]


def test_only_a_file_of_results_is_written_to(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of somebody else's is changed: no other file, no link, no device, no folder."""
    monkeypatch.chdir(here)
    Path("notes").write_text("my notes")
    Path("steps").write_text('{"id": "a", "steps": []}\n')
    Path("empty").touch()
    for number, place in enumerate(("nowhere", "link1", "empty")):
        Path(f"link{number}").symlink_to(place)
    before = {path: path.is_symlink() or path.read_bytes() for path in here.iterdir()}
    places = {
        "problems.jsonl": "run.json",
        "notes": "run.json",
        "steps": "run.json",
        ".": "",
        "/dev/zero": "",
        "a.csv": "JSONL",
    }
    for name, word in (places | dict.fromkeys(("link0", "link1", "link2"), "")).items():
        error = refused(solve, Path(), PLAIN, output=name)
        assert (error.exit_code, error.message.startswith(f"{name}: "), word in f"{error.message} {error.hint}") == (
            2,
            True,
            True,
        )
    error = refused(solve, Path(), PLAIN, output="typo/out.jsonl")
    assert (error.option, error.message) == ("output_file", "typo: no such folder")
    assert {path: path.is_symlink() or path.read_bytes() for path in here.iterdir()} == before


@pytest.mark.parametrize("text", ["my notes", '{"id": "a", "steps": []}\n'])
def test_a_line_of_somebody_else_is_set_aside(here: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    solve(here, PLAIN, limit="1")
    (here / "out.jsonl").write_text(f"{text}\n\n")
    solve(here, PLAIN, limit="1")
    assert caplog.text.count("out.jsonl: line 1: ") == 1
    assert (here / "out.jsonl.torn-1").read_text() == f"{text}\n\n"
    assert [one["answer"] for one in rows_of(here, "out.jsonl")] == ["2"]


@pytest.mark.parametrize(
    ("loading", "solving", "is_hinted"), [(20.0, 5.0, True), (5.0, 20.0, False), (0.4, 0.1, False), (4.0, 4.0, True)]
)
def test_chat_and_serve_are_named_if_loading_takes_longer_than_the_answers(
    loading: float, solving: float, is_hinted: bool
) -> None:
    assert (loading_hint(loading, solving) is not None) is is_hinted
