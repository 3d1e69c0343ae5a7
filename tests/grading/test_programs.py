"""Programs that a model wrote, graded by tests. No program can fake a pass, reach what is not its own, or outlive its verdict."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from arbitrage_cli.errors import ProblemError, UsageError
from arbitrage_cli.grading.programs import runner as runner_module
from arbitrage_cli.grading.programs.records import Isolation, Tests, humaneval_tests, mbpp_tests
from arbitrage_cli.grading.programs.runner import ProgramRunner

ANSWER = 2718281
"""What the tests of hostile programs want, and no program can guess: it passes only if its attack succeeds."""
ANSWER_NAME = "ARBITRAGE_TEST_ANSWER"
WANTS_ANSWER = Tests(("f",), f"assert f(1) == {ANSWER}\nassert f(2) == {ANSWER}\n")
HOSTILE = sorted((Path(__file__).parent / "hostile").glob("*.py"))
GOOD = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module")
def runner() -> Iterator[ProgramRunner]:
    with ProgramRunner(seconds=1, memory=128 << 20) as shared:
        yield shared


# --- the tests of a problem


def test_tests_of_a_row_of_humaneval() -> None:
    """The prompt's imports and helpers stay, its unfinished function does not."""
    row = {
        "prompt": 'import math\n\ndef half(x):\n    return x / 2\n\ndef root(x):\n    """The root."""\n',
        "entry_point": "root",
        "test": "def check(candidate):\n    assert candidate(4) == 2\n",
    }
    wanted = "def check(candidate):\n    assert candidate(4) == 2\n\ncheck(root)\n"
    assert humaneval_tests(row) == Tests(("root",), wanted, "import math\n\ndef half(x):\n    return x / 2")


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"test_list": ["assert f(1) == 2", "assert abs(f(-1)) == 2"]}, ("f",)),
        ({"test_list": ["assert sum(1, 2) == 3"], "code": "def sum(a, b):\n    return a + b"}, ("sum",)),
        ({"test_list": ["assert len(f()) == 3"], "code": "def f():\n    len = 1\n    return [1]"}, ("f",)),
        ({"test_list": ["assert f(root) == 1"], "test_setup_code": "root = Node(1)\r\nroot.left = Node(2)"}, ("Node", "f")),
        ({"test_list": ["assert math.isclose(f(), 1)"], "test_imports": ["import math"]}, ("f",)),
        ({"test_list": [], "test": "def near(a, b):\n    return a == b\nassert near(f(1), 1)"}, ("f",)),
    ],
    ids=["function", "a builtin's name", "a local name", "class", "import", "helper"],
)
def test_names_that_tests_of_mbpp_take_from_the_program(row: dict[str, object], names: tuple[str, ...]) -> None:
    assert set(mbpp_tests(row).names) == set(names)


def test_tests_that_are_no_python() -> None:
    with pytest.raises(UsageError):
        mbpp_tests({"test_list": ["assert f( == 2"]})


# --- verdicts


@pytest.mark.parametrize(
    ("program", "script", "value", "reason"),
    [
        (GOOD, "assert f(1) == 2", "passed", "all tests pass"),
        (GOOD, "assert f(1) == 2\nassert f(2) == 4", "failed", "false: assert f(2) == 4"),
        (
            "def f(x):\n    return 1 // x",
            "assert f(0) == 2",
            "error",
            "ZeroDivisionError: integer division or modulo by zero",
        ),
        ("def f(x): return int(input())", "assert f(0) == 2", "error", "EOFError: EOF when reading a line"),
        ("def f(x:", "assert f(0) == 2", "error", "SyntaxError: '(' was never closed (<program>, line 1)"),
        ("def g(x): pass", "assert f(0) == 2", "error", "the program does not define f"),
        ("def f(x):\n    return object()", "assert f(0) < 1", "error", None),
        ("def f(x):\n    raise ValueError('\\x1b[2J\\n')", "f(0)", "error", "ValueError: \\x1b[2J"),
        ("f = '\\0'\0", "f(0)", "error", None),
    ],
    ids=["right", "wrong", "raises", "asks", "syntax", "missing", "object", "control characters", "null byte"],
)
def test_verdict_and_its_reason(runner: ProgramRunner, program: str, script: str, value: str, reason: str | None) -> None:
    verdict = runner.run(program, Tests(("f",), script))
    assert verdict.value == value
    assert verdict.passed == (value == "passed")
    assert reason is None or verdict.reason == reason


@pytest.mark.parametrize(
    "value",
    [
        "None, True, -1, 2**100, -(2**100), 0.1, float('inf'), 1j, 'ä\\ud800', b'x', bytearray(b'x')",
        "[1, (2, [3]), {4}, frozenset([5])], {'a': {1: None}, (1, 2): []}",
        "Counter('aab'), OrderedDict(a=1), defaultdict(list, a=[1]), deque([1, 2]), range(3)",
        "Fraction(1, 3), Decimal('0.10'), {1: 2}.keys(), {1: 2}.items(), int, str",
    ],
    ids=["scalars", "containers", "collections", "numbers and views"],
)
def test_values_cross_in_both_directions(runner: ProgramRunner, value: str) -> None:
    """The program finds them equal to its own, and the tests find its answer equal to theirs."""
    imports = "from collections import *\nfrom fractions import Fraction\nfrom decimal import Decimal\n"
    program = f"def f(*values):\n    assert values == ({value},)\n    return values"
    verdict = runner.run(program, Tests(("f",), f"{imports}assert f({value}) == ({value},)", imports))
    assert verdict.reason == "all tests pass"


def test_types_that_compare_like_the_originals(runner: ProgramRunner) -> None:
    """A tuple is no list, an iterator is read once, not a number equals nothing, a subclass is what it is a subclass of."""
    program = """
from collections import namedtuple
def f(kind):
    return {"tuple": (1,), "iterator": map(abs, [-1]), "nan": float("nan"), "point": namedtuple("Point", "x")(1)}[kind]
"""
    script = """
assert f("tuple") != [1]
answer = f("iterator")
assert answer != [1] and list(answer) == [1] and list(answer) == []
assert f("nan") != f("nan")
assert f("point") == (1,)
"""
    assert runner.run(program, Tests(("f",), script)).reason == "all tests pass"


def test_objects_of_the_program(runner: ProgramRunner) -> None:
    """They can be made, changed, passed back and called; and they equal only themselves."""
    program = """
class Node:
    def __init__(self, value, left=None):
        self.value, self.left = value, left
    def total(self, more=0):
        return self.value + more + (self.left.total() if self.left else 0)
    def __eq__(self, other):
        return True
def f(node):
    return node.total()
"""
    script = """
root = Node(1)
root.left = Node(2, left=None)
root.left.left = Node(3)
assert f(root) == 6 and root.left.total(more=1) == 6 and root.left.value == 2
assert root == root and root != Node(1) and root != 1
"""
    assert runner.run(program, Tests(("Node", "f"), script)).reason == "all tests pass"


def test_errors_that_tests_want(runner: ProgramRunner) -> None:
    program = "class Own(ValueError):\n    pass\ndef f(x):\n    raise Own(x)"
    script = "try:\n    f(3)\nexcept ValueError as error:\n    assert str(error) == '3'\nelse:\n    assert False"
    assert runner.run(program, Tests(("f",), script)).passed


def test_no_error_cuts_an_iteration_of_the_tests_short(runner: ProgramRunner) -> None:
    program = "def f(x):\n    raise StopIteration"
    assert not runner.run(program, Tests(("f",), "assert all(map(lambda x: f(x) == x + 1, [1, 2]))")).passed


def test_ended_process_is_no_error_that_tests_may_want(runner: ProgramRunner) -> None:
    script = "try:\n    f(3)\nexcept:\n    pass\n"
    assert runner.run("import os\ndef f(x):\n    os._exit(0)", Tests(("f",), script)).value == "ended"
    assert runner.run("import os\ndef f(x):\n    os.write(3, b'garbage')", Tests(("f",), script)).value == "error"


def test_tests_that_go_wrong_are_no_pass(runner: ProgramRunner) -> None:
    for script in (
        "while True: pass",
        "import os\nos._exit(0)",
        "raise SystemExit",
        "x = bytearray(1 << 40)",
        "f(lambda: 0)",
        "f(",
    ):
        assert not runner.run(GOOD, Tests(("f",), script)).passed


def test_draws_and_orders_are_the_same_in_every_run() -> None:
    """So that a verdict is."""
    program = "import random\ndef f(x):\n    return random.random(), list({'a', 'b', 'c', 'd'}), hash('a')"
    reasons = set()
    for _ in range(2):
        with ProgramRunner() as one:
            reasons.add(
                one.run(program, Tests(("f",), "assert False, f(0)\nimport random\nraise ValueError(f(0), random.random())"))
            )
    assert len(reasons) == 1


# --- hostile programs


@dataclass(frozen=True)
class Bait:
    """What attacks go for: a file, a server on this machine and a variable, each with the answer."""

    file: Path
    port: int

    def aimed(self, program: str) -> str:
        found = {"FILE": self.file, "PORT": self.port, "PID": os.getpid(), "ANSWER_NAME": ANSWER_NAME, "ANSWER": ANSWER}
        for name, value in found.items():
            program = program.replace(f"@{name}@", str(value))
        return program


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bait]:
    file = tmp_path / "answer.txt"
    file.write_text(str(ANSWER))
    tmp_path.chmod(0o777)
    file.chmod(0o666)
    monkeypatch.setenv(ANSWER_NAME, str(ANSWER))
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_tell, args=[server])
        thread.start()
        yield Bait(file, server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _tell(server: socket.socket) -> None:
    try:
        while True:
            with server.accept()[0] as connection:
                connection.sendall(str(ANSWER).encode())
    except OSError:  # shut down
        return


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_program_is_held(runner: ProgramRunner, bait: Bait, path: Path) -> None:
    """It does not pass, changes nothing, leaves nothing behind, and the next program runs as ever."""
    text = path.read_text(encoding="utf-8")
    expected = text.splitlines()[1].removeprefix("# expected: ").split()
    assert runner.isolation.protections
    before = _processes_of(runner)
    verdict = runner.run(bait.aimed(text), WANTS_ANSWER)
    assert verdict.value in expected, verdict
    assert "passed" not in expected
    assert [one.name for one in bait.file.parent.iterdir()] == [bait.file.name]
    assert bait.file.read_text() == str(ANSWER)
    assert _processes_of(runner) == before
    assert runner.run(GOOD, Tests(("f",), "assert f(1) == 2")).passed


def _processes_of(runner: ProgramRunner) -> int:
    """How many processes the runner has."""
    template = runner._template
    assert template
    name = template._folder.encode()
    found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if name in _content(path)]
    return len(found)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def test_there_are_many_hostile_programs() -> None:
    assert len(HOSTILE) >= 40


def test_nothing_is_left_when_the_runner_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with ProgramRunner() as one:
        assert one.run("open('x', 'w').write('y')\n" + GOOD, Tests(("f",), "assert f(1) == 2")).passed
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_runner_that_cannot_start_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with ProgramRunner() as one, pytest.raises(ProblemError):
        one.run(GOOD, Tests(("f",), "assert f(1) == 2"))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProgramRunner]:
    """A runner on a system that has nothing but resource limits and the hook."""
    start, begin = runner_module._START, "main(int"
    without = "from arbitrage_cli.grading.programs import confinement; confinement._works = lambda attempt: False; "
    monkeypatch.setattr(runner_module, "_START", start.replace(begin, without + begin).replace("del sys.path[0]; ", ""))
    with ProgramRunner(seconds=1, memory=128 << 20) as one:
        yield one


@pytest.mark.parametrize("name", ["reads_file", "writes_file", "connects_to_loopback", "starts_programs", "exit_at_load"])
def test_system_without_namespaces(bare: ProgramRunner, bait: Bait, name: str) -> None:
    """Programs run, and what they do without art is stopped."""
    assert bare.isolation == Isolation(bare.isolation.protections, ("files", "network"))
    text = (HOSTILE[0].parent / f"{name}.py").read_text(encoding="utf-8")
    assert not bare.run(bait.aimed(text), WANTS_ANSWER).passed
    assert bait.file.read_text() == str(ANSWER)
    assert bare.run(GOOD, Tests(("f",), "assert f(1) == 2")).passed
