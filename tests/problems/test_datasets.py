"""Data sets from the Hub, from the program and from files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import fake_hub
import pytest
from fake_hub import COMMIT, FakeHub

from arbitrage_cli.app.attempts.selection import select_problems
from arbitrage_cli.app.options import ProblemOptions
from arbitrage_cli.errors import UsageError
from arbitrage_cli.problems import datasets
from arbitrage_cli.problems.datasets import DATASETS, MAX_PARQUET_CHUNK, MAX_PARQUET_TEXT, PUBLISHED, SHIPPED, load_dataset
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.problems.tasks import FORMS

GSM8K = {"question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 18"}
MATH = {"problem": "Convert.", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2, "unique_id": "a/1"}
OLYMPIAD = {"id": 1606, "question": "Find.", "solution": ["Let"], "final_answer": ["$2n$"], "unit": None} | {
    "is_multiple_answer": False,
    "answer_type": "Expression",
}
ROWS: dict[str, dict[str, Any]] = {
    "math500": MATH,
    "gsm8k": GSM8K,
    "olympiadbench": OLYMPIAD,
    "aime24": {"id": 60, "problem": "Every morning", "solution": "So", "answer": "204", "url": "u", "year": "2024"},
    "aime25": {"problem": "Find the sum", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "Cities A and B", "answer": "27", "url": "u"},
    "humaneval": {
        "task_id": "HumanEval/0",
        "prompt": 'def one():\n    """The number 1."""\n',
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate() == 1\n",
        "entry_point": "one",
    },
    "mbpp": {
        "source_file": "f",
        "task_id": 11,
        "prompt": "Write one.",
        "code": "def one():\n    return 1",
        "test_imports": ["import math"],
        "test_list": ["assert one() == 1"],
    },
    "arc": {"id": "Mercury_1", "question": "Which?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
}
"""A row of each published data set, with the fields on the Hub."""
TASKS = {"humaneval": "code", "mbpp": "code", "arc": "choice"}

GOLDS: dict[str, dict[str, Any]] = {name: {"answer": row["answer"]} for name, row in ROWS.items() if "answer" in row} | {
    "olympiadbench": {"answer": ["$2n$"]}
}


def jsonl(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(*rows: dict[str, Any]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    file = BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(list(rows)), file, row_group_size=2)
    return file.getvalue()


def is_parquet(name: str) -> bool:
    return PUBLISHED[name].selector.endswith(".parquet")


def offer(hub: FakeHub, name: str, *rows: dict[str, Any]) -> None:
    data = parquet(*rows) if is_parquet(name) else jsonl(*rows)
    hub.repos[f"datasets/{PUBLISHED[name].repo}"] = {"README.md": b"# rows", PUBLISHED[name].selector: data}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.running() as served:
        served.in_git = {published.selector for published in PUBLISHED.values() if published.selector.endswith(".jsonl")}
        fake_hub.use(served, monkeypatch, tmp_path)
        yield served


@pytest.mark.parametrize("name", ROWS)
def test_published_data_set(served: FakeHub, name: str) -> None:
    offer(served, name, ROWS[name])
    found, row = load_dataset(name, offline=False, forms=FORMS), ROWS[name]
    (item,) = found.items
    assert (found.name, found.revision, found.task) == (name, COMMIT, TASKS.get(name))
    assert item.problem.id == str(row.get("id", row.get("unique_id", row.get("task_id", 1))))
    assert item.level == row.get("level")
    if name in GOLDS:
        assert (item.problem.question, item.gold) == (row.get("problem", row.get("question")), GOLDS[name])


@pytest.fixture
def no_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyarrow", None)


@pytest.mark.usefixtures("no_pyarrow")
def test_without_pyarrow(tmp_path: Path) -> None:
    """A parquet file is recognized by its first bytes."""
    (tmp_path / "rows.jsonl").write_bytes(b"PAR1 and so on")
    with pytest.raises(UsageError, match="is a parquet file") as caught:
        load_dataset(str(tmp_path / "rows.jsonl"), offline=False)
    assert caught.value.hint == 'pip install "pyarrow>=18"'


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets, "models_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_data_set(models: Path, name: str) -> None:
    row = {"id": "b-1", "problem": "q", "answer": "4", "solution": "s", "level": 1, "family": "sums"}
    (models / f"{name}.jsonl").write_bytes(jsonl(row))
    found = load_dataset(name, offline=True)
    (item,) = found.items
    assert (found.name, found.revision, item.problem.id, item.gold, item.level) == (name, None, "b-1", {"answer": "4"}, 1)
    (models / f"{name}.jsonl").unlink()
    with pytest.raises(UsageError, match=f"{name}.jsonl: cannot be read"):
        load_dataset(name, offline=True)


@pytest.mark.parametrize("name", GOLDS)
def test_jsonl_and_parquet_files(tmp_path: Path, name: str) -> None:
    for file, data in {"rows.jsonl": jsonl(ROWS[name]), "rows.parquet": parquet(ROWS[name])}.items():
        (tmp_path / file).write_bytes(data)
        found = load_dataset(str(tmp_path / file), offline=True)
        assert (found.name, found.revision, found.items[0].gold) == (file, None, GOLDS[name])
    assert len({load_dataset(str(path), offline=True).sha256 for path in tmp_path.glob("rows.*")}) == 1


def test_rows_of_a_parquet_file_are_in_order(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet(*({"prompt": f"q{number}", "answer": number} for number in range(5))))
    items = load_dataset(str(path), offline=True, mapping={"question": "prompt"}).items
    assert [item.gold["answer"] for item in items] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("length", [4, 8, 40, -1, -4, -40])
def test_parquet_file_that_is_cut(tmp_path: Path, length: int) -> None:
    (tmp_path / "rows.parquet").write_bytes(parquet({"question": "q", "answer": "4"})[:length])
    with pytest.raises(UsageError, match=r"rows\.parquet: cannot be read as parquet") as caught:
        load_dataset(str(tmp_path / "rows.parquet"), offline=True)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("field", ["question", "choices"])
def test_small_parquet_file_with_gigabytes_of_text(tmp_path: Path, field: str) -> None:
    """A dictionary-encoded cell that 8,000 rows share is refused within 2 GiB of address space."""
    pa, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    cells = pa.DictionaryArray.from_arrays(pa.array([0] * 8000, pa.int32()), pa.array(["x" * 1_000_000]))
    rows = pa.ListArray.from_arrays([0, 8000], cells) if field == "choices" else cells
    table = pa.table({field: rows, "answer": ["4"] * len(rows)})
    pytest.importorskip("pyarrow.parquet").write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 4000
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 31, 1 << 31))\n"
        "from arbitrage_cli.problems.datasets import load_dataset; from arbitrage_cli.errors import UsageError\n"
        "try: load_dataset(sys.argv[1], offline=True)\n"
        "except UsageError as error: print(error.message)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert (done.returncode, f"{MAX_PARQUET_TEXT:,}" in done.stdout) == (0, True), done.stderr


def test_large_cell_of_a_small_parquet_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    pa, path = pytest.importorskip("pyarrow"), tmp_path / "rows.parquet"
    table = pa.table({"question": ["q", "x" * 200_000_000], "answer": ["4", "4"]})
    pytest.importorskip("pyarrow.parquet").write_table(table, path, compression="zstd")
    code = (
        "import pathlib, re, sys; from arbitrage_cli.problems.datasets import load_dataset\n"
        "from arbitrage_cli.errors import UsageError\n"
        "try: load_dataset(sys.argv[1], offline=True)\n"
        "except UsageError as error: print(error.message)\n"
        "print(*re.findall(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text()))"
    )
    message, kilobytes = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True).splitlines()
    assert ("'question'" in message, f"{MAX_PARQUET_CHUNK:,}" in message) == (True, True)
    assert int(kilobytes) < 400_000


@pytest.mark.parametrize("limit", ["MAX_PARQUET_TEXT", "MAX_PARQUET_CELLS", "MAX_DATASET_ROWS"])
def test_parquet_file_over_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(parquet({"question": "q", "answer": "4"}, {"question": "r", "answer": "4"}))
    assert load_dataset(str(path), offline=True).items
    monkeypatch.setattr(datasets, limit, 1)
    with pytest.raises(UsageError, match="more than 1 "):
        load_dataset(str(path), offline=True)
    if limit == "MAX_DATASET_ROWS":
        assert len(load_dataset(str(path), offline=True, max_rows=1).items) == 1


def write_columns(path: Path, **columns: Any) -> None:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("kind", "value", "answer"),
    [("float32", 0.1, 0.1), ("float64", 1 / 3, 1 / 3), ("float32", 27.0, 27.0)],
)
def test_numbers_of_a_parquet_file_are_as_exact_as_they_were_written(
    tmp_path: Path, kind: str, value: float, answer: float
) -> None:
    pa = pytest.importorskip("pyarrow")
    write_columns(tmp_path / "a.parquet", question=["q"], answer=pa.array([value], getattr(pa, kind)()))
    assert load_dataset(str(tmp_path / "a.parquet"), offline=True).items[0].gold == {"answer": answer}


def test_decimals_of_a_parquet_file_are_answers(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.parquet", question=["q"], answer=[Decimal("1.50")])
    assert load_dataset(str(tmp_path / "a.parquet"), offline=True).items[0].gold == {"answer": "1.50"}


def test_columns_without_a_name_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,,\nq,1,,\n", encoding="utf-8")
    assert load_dataset(str(tmp_path / "a.csv"), offline=True).items[0].gold == {"answer": "1"}


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".csv":
        path.write_text("question,answer,answer\nq,1,2\n", encoding="utf-8")
    else:
        pa = pytest.importorskip("pyarrow")
        table = pa.Table.from_arrays([pa.array(["q"]), *[pa.array(["1"])] * 2], names=["question", "answer", "answer"])
        pytest.importorskip("pyarrow.parquet").write_table(table, path)
    with pytest.raises(UsageError, match="'answer'"):
        load_dataset(str(path), offline=True)


def test_a_csv_file_with_a_header(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('prompt,gold,level\n"2, then\n3?",5,1\nWhat?,7,2\n', encoding="utf-8-sig")
    dataset = load_dataset(str(path), offline=True, mapping={"question": "prompt", "answer": "gold"})
    assert [item.problem.question for item in dataset.items] == ["2, then\n3?", "What?"]
    assert [item.gold["answer"] for item in dataset.items] == ["5", "7"]
    path.write_text("question,answer\n2 + 3,5\n1 + 1\n")
    with pytest.raises(UsageError, match="line 3"):
        load_dataset(str(path), offline=True)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_hint_names_the_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.csv").write_text("question,answer\n\u00e9,5\n", encoding)
    with pytest.raises(UsageError) as raised:
        load_dataset(str(tmp_path / "a.csv"), offline=True)
    assert "encoding" in raised.value.hint


def test_lines_of_text_are_questions_without_answers(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("2 + 3?\n\n  What is 7?\n")
    dataset = load_dataset(str(path), offline=True, needs_answers=False)
    assert [item.problem.question for item in dataset.items] == ["2 + 3?", "What is 7?"]
    with pytest.raises(UsageError, match="answer"):
        load_dataset(str(path), offline=True)


@pytest.mark.parametrize("name", ["nothing", "user/repo", "~nobody/rows.jsonl", "a\0b", "x" * 5000, "", "pipe", "/dev/zero"])
def test_neither_name_nor_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(UsageError, match="is neither a data set nor a regular file") as caught:
        load_dataset(name, offline=True)
    assert all(known in caught.value.hint for known in DATASETS)


def test_a_limit_is_a_sample_by_level_and_seed(tmp_path: Path) -> None:
    """A larger sample contains a smaller one."""
    path = tmp_path / "levels.jsonl"
    path.write_bytes(jsonl(*({"id": number, "question": "1 + 1", "level": number // 8} for number in range(12))))

    def sample(limit: str, seed: int = 0) -> Sequence[Item]:
        options = ProblemOptions(dataset=str(path), limit=limit)
        return select_problems(options, seed=seed, offline=True, needs_answers=False).items

    three, six = sample("3"), sample("6")
    assert [[one.level for one in drawn] for drawn in (three, six)] == [[0, 0, 1], [0, 0, 0, 0, 1, 1]]
    assert [one for one in six if one in three] == three
    assert sample("6", 1) != six
    assert [one.problem.id for one in sample("3-5")] == ["2", "3", "4"]
