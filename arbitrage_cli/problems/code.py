"""Task `code`: Python functions, graded by running their tests in a sandboxed process (`program_driver`).

A step is a group of lines, because most functions contain no blank lines, and a single line is rarely worth a call to the
target. The guide `code` describes the sandbox.
"""

import ast
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

from arbitrage_cli.errors import ProblemError, UsageError
from arbitrage_cli.problems.answers import shown
from arbitrage_cli.problems.rows import Form, InputRow, UnusableError, check_texts
from arbitrage_cli.system.child import WALL_FACTOR, ChildError, Process, describe_exit
from arbitrage_cli.types import Fields, Grade, Json, frozen

CODE_INSTRUCTIONS = "Write the Python function that is asked for, in one ```python block, and nothing else."

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_DEFINITION = re.compile(r"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+(\w*)", re.MULTILINE)
_TESTS = ("test_", "Test")

_DRIVER = Path(__file__).with_name("program_driver.py")
_PYTHON = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
_SYSTEM = ("/usr", "/lib", "/lib64", "/nix/store")  # may contain Python's shared libraries
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_FOLDER_BYTES = 16 << 20
_NUM_PROCESSES = 16  # including threads
_NUM_FILES = 64
_NOBODY = "65534"
_TRIAL_SECONDS = 20.0
_CPU_TIMEOUT = b"most recent call first"  # written by the driver's faulthandler at the processor time limit
_MAX_REASON = 300  # characters
_MAX_OUTPUT = 1 << 16  # bytes, from the end of the output
_KILLED = (-9, 128 + 9)  # exit status of a killed process, directly and from bubblewrap


def find_program(text: str, wanted: Collection[str] = ()) -> str | None:
    """Return the last code block that defines a wanted name.

    Without such a block, return the last code block whose first definition is not a test, or else the last one with a
    definition, or else the last one, or else the whole text.
    """
    blocks = [_unindented(block.rstrip()) for block in _BLOCK.findall(text) or [text] if block.strip()]

    def rank(block: str) -> tuple[bool, bool, bool]:
        names: list[str] = _DEFINITION.findall(block)
        is_test = bool(names) and names[0].startswith(_TESTS)
        return any(name in wanted for name in names), bool(names) and not is_test, bool(names)

    return max(reversed(blocks), key=rank, default=None)


def _unindented(block: str) -> str:
    """Remove the indentation of a block in a list item."""
    return textwrap.dedent(block) if block[:1].isspace() else block


def _wanted_names(script: str) -> set[str]:
    """Return the names that tests use but do not define, such as the name of the tested function."""
    try:
        nodes = list(ast.walk(ast.parse(script)))
    except (SyntaxError, ValueError, RecursionError):
        return set()  # such tests fail with every program
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} - own


@frozen
class CodeGrader:
    """Grades programs by their tests."""

    runner: "ProgramRunner"

    def grade(self, text: str, gold: Fields) -> Grade:
        program = find_program(text, _wanted_names(gold.get("script", "")))
        if "script" not in gold:
            return Grade("unscored", program, "no tests in the data set")
        if program is None:
            return Grade("incorrect", None, "no program found")
        outcome = self.runner.run(program, **gold)
        return Grade("correct" if outcome.passed else "incorrect", program, outcome.reason)


def open_grader(*, is_sandboxed: bool = True) -> nullcontext[CodeGrader]:
    return nullcontext(CodeGrader(ProgramRunner(find_sandbox() if is_sandboxed else ())))


def grader_version() -> str:
    return f"programs 5, Python {platform.python_version()}"


def _humaneval(row: InputRow) -> tuple[str, Json]:
    check_texts(row, "prompt", "entry_point", "test")
    name = row["entry_point"]
    prompt = _parsed(row["prompt"], "prompt")
    definitions = ast.FunctionDef | ast.ClassDef
    prompt.body = [node for node in prompt.body if not (isinstance(node, definitions) and node.name == name)]
    gold = {"script": f"{row['test']}\ncheck({name})\n", "preamble": ast.unparse(prompt)}
    return f"Complete this function:\n\n```python\n{row['prompt'].strip()}\n```", gold


def _mbpp(row: InputRow) -> tuple[str, Json]:
    """Build a prompt from the description and the first test. The test shows the name and signature of the function."""
    field = "text" if "text" in row else "prompt"
    check_texts(row, field)
    imports = row.get("test_imports") or []
    setup = row.get("test_setup_code") or ""
    tests = row["test_list"]
    lines = [*imports, setup, *tests] if isinstance(imports, list) and isinstance(tests, list) and tests else []
    if not lines or not all(isinstance(line, str) for line in [*lines, row.get("test") or ""]):
        raise UnusableError("test, test_list, test_imports, test_setup_code: expected strings, or lists of strings")
    question = f"{row[field].strip()}\nYour code should pass this test:\n\n```python\n{tests[0].strip()}\n```"
    script = row.get("test") or "\n".join(lines)
    _parsed(script, "tests")
    return question, {"script": script, "preamble": ""}


def _parsed(code: str, field: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnusableError(f"{field}: invalid Python: {error}") from error


CODE_FORMS = (
    Form("code", frozenset(("prompt", "entry_point", "test")), _humaneval, id="task_id"),
    Form("code", frozenset(("text", "test_list")), _mbpp, id="task_id"),
    Form("code", frozenset(("prompt", "test_list")), _mbpp, id="task_id"),
)


# --- running programs


@frozen
class TestOutcome:
    """Whether the program passed its tests, and the reason in one short line."""

    passed: bool
    reason: str


@frozen
class ProgramRunner:
    """Runs programs in a sandbox. If the command prefix `sandbox` is empty, only resource limits apply.

    `seconds` limits the processor time of a program and its tests; the wall-clock limit is five times as high. `memory`
    limits the address space of each process in bytes (Linux only).
    """

    sandbox: Sequence[str]
    seconds: int = 10
    memory: int = 512 << 20

    def run(self, program: str, script: str, preamble: str = "") -> TestOutcome:
        """Test a program. The preamble contains the imports and helper functions from the prompt.

        Raises ProblemError if the program's process cannot start, or is killed or stopped by another process.
        """
        job = {"preamble": preamble, "program": program, "tests": script, "limits": self._limits()}
        try:
            return self._outcome(json.dumps(job).encode(), secrets.token_hex(16))
        except ChildError as error:
            raise ProblemError(f"cannot run the program: {error}", "rerun the command") from error

    def _limits(self) -> dict[str, int]:
        limits = {"RLIMIT_CPU": self.seconds, "RLIMIT_FSIZE": _FOLDER_BYTES, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": _NUM_FILES}
        if sys.platform != "darwin":
            limits["RLIMIT_AS"] = self.memory
        if self.sandbox:  # without a sandbox, the limit would count all processes of the user
            limits["RLIMIT_NPROC"] = _NUM_PROCESSES
        return limits

    def _outcome(self, job: bytes, secret: str) -> TestOutcome:
        command = [*self.sandbox, str(_PYTHON), "-s", "-S", "-P", "-B", "-c", _DRIVER.read_text(encoding="utf-8")]
        deadline = time.perf_counter() + WALL_FACTOR * self.seconds
        with Process(command, environment=_environment(), folder="/" if self.sandbox else tempfile.gettempdir()) as process:
            try:
                process.write(f"{len(job):<16}".encode() + job + secret.encode(), deadline)
                output = b""
                while data := process.read(deadline):
                    output = (output + data)[-_MAX_OUTPUT:]
                    if _CPU_TIMEOUT in output:
                        return TestOutcome(False, f"exceeded {self.seconds} s of processor time")
                code = process.wait(deadline)
            except TimeoutError:
                if _is_stopped(process.id):
                    raise ChildError("machine", "the process was stopped") from None
                return TestOutcome(False, f"timed out after {WALL_FACTOR * self.seconds} s")
        if code in _KILLED:
            raise ChildError("machine", "the process was killed")
        if not output:
            raise ChildError("machine", f"the process did not start ({describe_exit(code)})")
        return _read_outcome(output, secret) or TestOutcome(False, f"ended its process ({describe_exit(code)})")


def _environment() -> dict[str, str]:
    libraries = {name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    return {**libraries, "PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "HOME": "/tmp"}  # noqa: S108


def _read_outcome(output: bytes, secret: str) -> TestOutcome | None:
    """Parse the last line of output.

    A line with the secret counts as a pass. The program could print any other line itself, without searching for the secret.
    """
    try:
        line = json.loads(output.rpartition(b"\n")[2])
    except (ValueError, RecursionError):
        return None
    match line:
        case ["passed", str(proof)] if secrets.compare_digest(proof.encode(), secret.encode()):
            return TestOutcome(True, "all tests passed")
        case ["failed", str(reason)]:
            return TestOutcome(False, shown(reason, _MAX_REASON))
    return None


def _is_stopped(process_id: int) -> bool:
    """Return whether the program or its bubblewrap process is stopped. A sandboxed program cannot stop itself."""
    try:
        while True:
            name, _, rest = Path(f"/proc/{process_id}/stat").read_text().partition("(")[2].rpartition(")")
            if rest.split()[0] in "Tt":
                return True
            if name != "bwrap":
                return False
            process_id = int(Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()[0])
    except (OSError, IndexError):
        return False


def find_sandbox() -> list[str]:
    """Return the command prefix of a sandbox. Raises UsageError if bubblewrap does not work on this machine."""
    if sys.platform != "linux":
        raise _no_sandbox("programs can be sandboxed only on Linux", "")
    program = shutil.which("bwrap")
    if not program:
        raise _no_sandbox("bubblewrap is not installed", "run sudo apt install bubblewrap or sudo dnf install bubblewrap; ")
    command = list(_sandbox(program))
    try:
        done = subprocess.run(  # noqa: S603
            [*command, str(_PYTHON), "-S", "-c", ""],
            capture_output=True,
            timeout=_TRIAL_SECONDS,
            check=False,
            env=_environment(),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_sandbox(f"bubblewrap cannot be started ({error})", "") from error
    if done.returncode:
        reason = shown(done.stderr.decode(errors="replace"), _MAX_REASON)
        raise _no_sandbox(
            f"bubblewrap does not work on this machine ({reason})", "use version 0.8 or later, and enable user namespaces; "
        )
    return command


def _no_sandbox(reason: str, hint: str) -> UsageError:
    unprotected = "in a dedicated container or virtual machine, use --run-code=unprotected"
    return UsageError(f"{reason}, so model-written programs could access your files", hint + unprotected, option="run_code")


def _sandbox(program: str) -> Iterator[str]:
    """Yield a bubblewrap command.

    The sandbox has no network, hides other processes, keeps /tmp in memory, and makes Python's files read-only.

    If the user is root, programs run as `nobody`, because root is exempt from the limit on processes. An outer bubblewrap
    process first mounts Python's files, which may be in root's home folder.
    """
    above = ["/dev", "/tmp", *(str(path) for path in reversed(Path(sys.base_prefix).parents[:-1]))]  # noqa: S108
    folders = [word for path in above for word in ("--perms", "0755", "--dir", path)]  # accessible to nobody
    python = folders + [word for path in (*_SYSTEM, sys.base_prefix) for word in ("--ro-bind-try", path, path)]
    devices = [word for path in _DEVICES for word in ("--dev-bind", path, path)]
    if os.geteuid() == 0:
        # Ending the outer namespace kills the processes of nobody, which its own user may not signal.
        yield from (program, "--unshare-pid", "--die-with-parent", "--cap-drop", "ALL")
        yield from ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
        yield from (*python, *devices, "--dev-bind", "/proc", "/proc")
        yield from ("setpriv", "--reuid", _NOBODY, "--regid", _NOBODY, "--clear-groups")
    yield from (program, "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session")
    yield from ("--as-pid-1", "--size", str(_FOLDER_BYTES), "--tmpfs", "/tmp", *python, *devices)  # noqa: S108
    yield from ("--remount-ro", "/", "--chdir", "/tmp")  # noqa: S108
