"""Data sets by name, from the Hub or shipped, and from files: what they hold, which they were, and what is no data set."""

import json
import os
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from fake_hub import COMMIT, FakeHub
from unprivileged import unprivileged

from arbitrage_cli.data import datasets as named_datasets
from arbitrage_cli.data.datasets import PUBLISHED, SHIPPED, known_datasets, load_dataset
from arbitrage_cli.errors import HubError, ModelFileError, UsageError
from arbitrage_cli.model_files.hub import Progress

GSM8K = {"question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"}
MATH = {
    "problem": "Convert.",
    "solution": "So",
    "answer": "\\frac{1}{2}",
    "subject": "Algebra",
    "level": 2,
    "unique_id": "a/1",
}
OLYMPIAD = {
    "id": 1606,
    "question": "Find.",
    "solution": ["Let"],
    "final_answer": ["$2n$"],
    "context": None,
    "image_1": None,
    "difficulty": "Competition",
    "is_multiple_answer": False,
    "unit": None,
    "answer_type": "Expression",
    "error": None,
}
ROWS: dict[str, dict[str, Any]] = {
    "math500": MATH,
    "gsm8k": GSM8K,
    "olympiadbench": OLYMPIAD,
    "aime24": {"id": 60, "problem": "Every morning", "solution": "So", "answer": "204", "url": "u", "year": "2024"},
    "aime25": {"problem": "Find the sum", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "Cities A and B", "answer": "27", "url": "u"},
}
"""A row of each published data set, in the fields that it has on the Hub."""

GOLDS: dict[str, dict[str, Any]] = {
    "math500": {"answer": "\\frac{1}{2}"},
    "gsm8k": {"answer": GSM8K["answer"]},
    "olympiadbench": {"answer": ["$2n$"], "answer_type": "Expression", "is_multiple_answer": False},
    "aime24": {"answer": "204"},
    "aime25": {"answer": "70"},
    "amc23": {"answer": "27"},
}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(*rows: dict[str, Any]) -> bytes:
    """A parquet file of these rows. The test is skipped where pyarrow is not installed."""
    pa = pytest.importorskip("pyarrow")
    file = BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=2)
    return file.getvalue()


def is_parquet(name: str) -> bool:
    return PUBLISHED[name].file.endswith(".parquet")


def offer(hub: FakeHub, name: str, *rows: dict[str, Any]) -> None:
    """Publish rows as that data set."""
    data = parquet(*rows) if is_parquet(name) else jsonl(*rows)
    hub.repos[f"datasets/{PUBLISHED[name].repo}"] = {"README.md": b"# rows", PUBLISHED[name].file: data}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A fake Hub that keeps JSONL files in git, as the real one does, and an empty cache."""
    with fake_hub.running() as served:
        served.in_git = {published.file for published in PUBLISHED.values() if published.file.endswith(".jsonl")}
        fake_hub.use(served, monkeypatch, tmp_path)
        yield served


# --- from the Hub


@pytest.mark.parametrize("name", ROWS)
def test_published_data_set(served: FakeHub, name: str) -> None:
    """A name stands for one file of one repository, whose fields need no mapping; its commit is known."""
    offer(served, name, ROWS[name])
    found = load_dataset(name, offline=False)
    (item,) = found.items
    row = ROWS[name]
    assert (found.name, found.revision) == (name, COMMIT)
    assert item.problem.question == row.get("problem", row.get("question"))
    assert item.problem.id == str(row.get("id", row.get("unique_id", 1)))
    assert item.gold == GOLDS[name]
    assert item.level == row.get("level")


def test_every_published_data_set_is_tested_here() -> None:
    """The table and the test above have the same names."""
    assert PUBLISHED.keys() == ROWS.keys() == GOLDS.keys()


@pytest.mark.parametrize("name", ["math500", "gsm8k"])
def test_data_set_that_is_here_is_used_as_it_is(served: FakeHub, name: str) -> None:
    """A second use asks nobody, and gives the same, whatever was published since."""
    offer(served, name, ROWS[name])
    first = load_dataset(name, offline=False)
    offer(served, name, {**ROWS[name], "answer": "5"})
    served.push()
    served.requests.clear()
    assert load_dataset(name, offline=False) == load_dataset(name, offline=True) == first
    assert not served.requests


def test_data_set_that_is_not_here_offline(served: FakeHub) -> None:
    """Without a network a data set that was never fetched is an error, and nothing is asked."""
    with pytest.raises(HubError, match="not on this machine"):
        load_dataset("math500", offline=True)
    assert not served.requests


def test_progress_of_a_download(served: FakeHub) -> None:
    """A download tells how far it is."""
    offer(served, "math500", MATH)
    size = len(jsonl(MATH))
    seen: list[Progress] = []
    load_dataset("math500", offline=False, watch=seen.append)
    assert seen[-1] == Progress("downloading", "test.jsonl", size, size)


def test_wrong_bytes_are_no_data_set(served: FakeHub) -> None:
    """Rows whose bytes are not those that the Hub publishes are never read."""
    offer(served, "math500", MATH)
    served.corrupt = True
    with pytest.raises(ModelFileError, match="not the one that the Hub publishes"):
        load_dataset("math500", offline=False)


def test_published_data_set_with_a_bad_row(served: FakeHub) -> None:
    """A bad row is named by data set and line."""
    offer(served, "math500", MATH, {"problem": "q"})
    with pytest.raises(UsageError, match=r"^math500: line 2: no answer"):
        load_dataset("math500", offline=False)


@pytest.mark.parametrize("name", ["math500", "builtin"])
def test_no_mapping_for_a_name(name: str) -> None:
    """The fields of a data set that has a name are not for the user to say."""
    with pytest.raises(UsageError, match=f"the fields of {name} are known"):
        load_dataset(name, offline=True, mapping={"answer": "other"})


# --- without pyarrow


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if pyarrow were not installed."""
    for module in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)


@pytest.mark.usefixtures("no_pyarrow")
@pytest.mark.parametrize("name", [name for name in PUBLISHED if is_parquet(name)])
def test_parquet_by_name_without_pyarrow(served: FakeHub, name: str) -> None:
    """What to install is said before anything is asked or downloaded."""
    with pytest.raises(UsageError, match=f"{name} is a parquet file") as caught:
        load_dataset(name, offline=False)
    assert caught.value.hint == 'pip install "pyarrow>=18"'
    assert not served.requests


@pytest.mark.usefixtures("no_pyarrow")
def test_parquet_file_without_pyarrow(tmp_path: Path) -> None:
    """A parquet file is known by its first bytes, whatever it is called."""
    (tmp_path / "rows.jsonl").write_bytes(b"PAR1 and so on")
    with pytest.raises(UsageError) as caught:
        load_dataset(str(tmp_path / "rows.jsonl"), offline=True)
    assert caught.value.hint == 'pip install "pyarrow>=18"'


@pytest.mark.usefixtures("no_pyarrow")
def test_jsonl_without_pyarrow(served: FakeHub) -> None:
    """JSONL needs no pyarrow."""
    offer(served, "math500", MATH)
    assert len(load_dataset("math500", offline=False).items) == 1


# --- shipped


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `models/` folder in place of the program's own."""
    monkeypatch.setattr(named_datasets, "models_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_data_set(models: Path, name: str) -> None:
    """A shipped data set lies beside the models; it has no revision, and its family is kept."""
    row = {"id": "b-1", "problem": "q", "answer": "4", "solution": "s", "level": 1, "family": "sums"}
    (models / f"{name}.jsonl").write_bytes(jsonl(row))
    found = load_dataset(name, offline=True)
    (item,) = found.items
    assert (found.name, found.revision, item.problem.id, item.gold, item.level) == (name, None, "b-1", {"answer": "4"}, 1)
    assert item.extra == {"solution": "s", "family": "sums"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_data_set_that_is_missing(models: Path, name: str) -> None:
    """An installation without its data sets says so, and where it looked."""
    with pytest.raises(UsageError, match=f"{name} is not part of this installation") as caught:
        load_dataset(name, offline=True)
    assert str(models) in caught.value.message


# --- files


@pytest.mark.parametrize("name", ROWS)
def test_files_in_the_shapes_of_the_hub(tmp_path: Path, name: str) -> None:
    """Rows of a published data set are read from a file as they are by name, as JSONL and as parquet alike."""
    for file, data in {"rows.jsonl": jsonl(ROWS[name]), "rows.parquet": parquet(ROWS[name])}.items():
        (tmp_path / file).write_bytes(data)
        found = load_dataset(str(tmp_path / file), offline=True)
        assert (found.name, found.revision, found.items[0].gold) == (file, None, GOLDS[name])
    assert len({load_dataset(str(path), offline=True).sha256 for path in tmp_path.glob("rows.*")}) == 1


def test_rows_of_a_parquet_file_are_in_order(tmp_path: Path) -> None:
    """Rows of several groups come in the file's order, and are called after their number, from 1."""
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(*({"question": f"q{number}", "answer": number} for number in range(5))))
    items = load_dataset(str(path), offline=True).items
    assert [(item.problem.id, item.problem.question, item.gold) for item in items] == [
        (str(number + 1), f"q{number}", {"answer": number}) for number in range(5)
    ]


def test_mapping_of_a_file(tmp_path: Path) -> None:
    """Other names of fields are given by the user, for both kinds of files."""
    row = {"prompt": "q", "gold": "4"}
    for file, data in {"rows.jsonl": jsonl(row), "rows.parquet": parquet(row)}.items():
        (tmp_path / file).write_bytes(data)
        found = load_dataset(str(tmp_path / file), offline=True, mapping={"question": "prompt", "answer": "gold"})
        assert (found.items[0].problem.question, found.items[0].gold) == ("q", {"answer": "4"})


def test_name_wins_over_a_file(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a name, whatever lies in the folder; a file of that name is a path."""
    (models / "builtin.jsonl").write_bytes(jsonl({"problem": "shipped", "answer": "1"}))
    (models / "builtin").write_bytes(jsonl({"problem": "mine", "answer": "2"}))
    monkeypatch.chdir(models)
    assert load_dataset("builtin", offline=True).items[0].problem.question == "shipped"
    assert load_dataset("./builtin", offline=True).items[0].problem.question == "mine"


def test_bad_row_of_a_parquet_file(tmp_path: Path) -> None:
    """A row that cannot be used is named by its number, and so are two of one id."""
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet({"question": "q", "answer": "4"}, {"question": "q", "answer": None}))
    with pytest.raises(UsageError, match=r"^rows\.parquet: row 2: no answer"):
        load_dataset(str(path), offline=True)
    path.write_bytes(parquet({"question": "q", "answer": "4", "id": 1}, {"question": "q", "answer": "4", "id": 1}))
    with pytest.raises(UsageError, match="row 2: its id '1' is that of row 1 too"):
        load_dataset(str(path), offline=True)


def test_values_that_json_has_not(tmp_path: Path) -> None:
    """An answer of a kind that only parquet has is refused by its row."""
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet({"question": "q", "answer": b"4"}))
    with pytest.raises(UsageError, match="row 1: its answer is"):
        load_dataset(str(path), offline=True)


def test_text_that_is_not_utf8_in_parquet(tmp_path: Path) -> None:
    """Broken text inside a parquet file is one clear error."""
    pa, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    broken = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"question": broken, "answer": ["4"]}), path)
    with pytest.raises(UsageError, match="cannot be read as parquet after row 0"):
        load_dataset(str(path), offline=True)


@pytest.mark.parametrize("length", [4, 8, 40, -1, -4, -40])
def test_parquet_file_that_is_cut(tmp_path: Path, length: int) -> None:
    """A parquet file that is not whole is one clear error."""
    (tmp_path / "rows.parquet").write_bytes(parquet({"question": "q", "answer": "4"})[:length])
    with pytest.raises(UsageError, match=r"^rows\.parquet: cannot be read as parquet") as caught:
        load_dataset(str(tmp_path / "rows.parquet"), offline=True)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["nothing", "no/such.jsonl", "user/repo", "~nobody/rows.jsonl", "a\0b", "x" * 5000])
def test_neither_name_nor_file(name: str) -> None:
    """What is no data set is answered with the names there are."""
    with pytest.raises(UsageError, match="is no data set and no file") as caught:
        load_dataset(name, offline=True)
    for known in known_datasets():
        assert known in caught.value.hint


def test_folders_and_pipes_are_no_files(tmp_path: Path) -> None:
    """What cannot be read twice, or not at all, is refused without waiting for it."""
    os.mkfifo(tmp_path / "pipe")
    for name in (str(tmp_path), str(tmp_path / "pipe"), "/dev/zero", ""):
        with pytest.raises(UsageError, match="is no file"):
            load_dataset(name, offline=True)


def test_empty_file(tmp_path: Path) -> None:
    """An empty file is no data set."""
    (tmp_path / "rows.jsonl").write_bytes(b"")
    with pytest.raises(UsageError, match="there is no problem in it"):
        load_dataset(str(tmp_path / "rows.jsonl"), offline=True)


def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    """A file without permission is one clear error."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(MATH))
    load_dataset(str(path), offline=True)
    path.chmod(0)
    with unprivileged(path), pytest.raises(UsageError, match=r"cannot be read \(Permission denied\)"):
        load_dataset(str(path), offline=True)


# --- names


def test_every_name_has_a_note() -> None:
    """Help texts find all names with a line on each."""
    assert [*known_datasets()] == ["builtin", "builtin-dev", *PUBLISHED]
    assert all(note and "\n" not in note for note in known_datasets().values())
