"""Compare routing with llama-server: its target alone, and its token-level speculation with the same draft.

Usage: python tests/benchmarks/peer.py LLAMA_SERVER DATASET [--limit N] [--pair NAME] [--draft MODEL.gguf] [--target MODEL.gguf]
       [--router FILE] [--policy target,arbitrage] [--threads N] [--ctx N] [--max-tokens N] [--draft-max 8]
       [--draft-p-min 0.0] [--spec-type draft-simple]

LLAMA_SERVER is the path of the binary, whose folder is put on LD_LIBRARY_PATH. Both modes of the server and all policies solve a
problem before the next one starts, in rotating order. They share files, threads, messages, context size and token limit. All
decode greedily. The server keeps no cache between problems, the policies only the common beginning of all prompts. All other
settings are each program's defaults; the policies use the token costs that the program measures. Answers to programming problems
are graded by running them.

The table shows correct answers, seconds per problem, tokens, and the speed-up over both modes of the server, with intervals over
problems. Ctrl-C or SIGTERM ends the run, and the table then covers the problems that were solved completely.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx2
import numpy as np

from arbitrage_cli import ArbitrageError, Pair, ProblemError, open_pair
from arbitrage_cli.model_files.pairs import find_files, find_pair, user_pairs
from arbitrage_cli.numbers.intervals import Interval, log_ratio, wilson
from arbitrage_cli.problems.datasets import load_dataset
from arbitrage_cli.problems.rows import Item
from arbitrage_cli.problems.tasks import FORMS, Grader, find_task
from arbitrage_cli.system.machine import default_threads
from arbitrage_cli.types import ModelRole

MODELS: tuple[ModelRole, ...] = ("draft", "target")
ALONE, SPECULATION = "llama-server", "llama-server, speculation"
START_SECONDS, ANSWER_SECONDS, END_SECONDS = 300, 1800, 10


@dataclass(frozen=True, slots=True)
class Solved:
    text: str
    is_correct: bool
    seconds: float
    num_tokens: int


Solver = Callable[[Item], Solved]


class Server:
    """A context manager that runs llama-server on loopback."""

    def __init__(self, binary: Path, arguments: Sequence[str], instructions: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._address = f"http://127.0.0.1:{port}"
        self._command = [str(binary), *arguments, "-np", "1", "--no-webui", "--host", "127.0.0.1", "--port", str(port)]
        self._environment = {**os.environ, "LD_LIBRARY_PATH": str(binary.parent)}
        self._system = [{"role": "system", "content": instructions}] if instructions else []
        self.num_drafted = self.num_accepted = 0

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:  # it is still computing an abandoned answer
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                sys.exit(f"llama-server ended with {self._process.returncode}")
            with contextlib.suppress(httpx2.TransportError):
                if httpx2.get(f"{self._address}/health", timeout=2).is_success:
                    return
            time.sleep(1)
        sys.exit("llama-server did not start in time")

    def ask(self, question: str, max_tokens: int) -> tuple[str, int]:
        """Return the text of a solution and its number of tokens. Raises httpx2.HTTPError if the request fails."""
        messages = [*self._system, {"role": "user", "content": question}]
        body = {"messages": messages, "temperature": 0, "max_tokens": max_tokens, "cache_prompt": False}
        response = httpx2.post(f"{self._address}/v1/chat/completions", json=body, timeout=ANSWER_SECONDS)
        answer = response.raise_for_status().json()
        timings = answer["timings"]
        self.num_drafted += timings.get("draft_n", 0)
        self.num_accepted += timings.get("draft_n_accepted", 0)
        return answer["choices"][0]["message"]["content"], timings["predicted_n"]


def solver_of_server(server: Server, grader: Grader, max_tokens: int) -> Solver:
    def solve(item: Item) -> Solved:
        began = time.perf_counter()
        text, num_tokens = server.ask(item.problem.question, max_tokens)
        seconds = time.perf_counter() - began
        return Solved(text, grader.grade(text, item.gold).value == "correct", seconds, num_tokens)

    return solve


def solver_of_policy(pair: Pair, policy: str, grader: Grader) -> Solver:
    name, _, tau = policy.partition("@")

    def solve(item: Item) -> Solved:
        began = time.perf_counter()
        try:
            solution = pair.solve(item.problem, policy=name, tau=tau or None)
        except ArbitrageError as error:
            raise ProblemError(f"{policy}: {error.message}") from error
        seconds = time.perf_counter() - began
        num_tokens = sum(decision.kept.num_tokens for decision in solution.steps)
        return Solved(solution.text, grader.grade(solution.text, item.gold).value == "correct", seconds, num_tokens)

    return solve


def servers(files: Mapping[ModelRole, Path], instructions: str, arguments: argparse.Namespace) -> dict[str, Server]:
    threads = str(arguments.threads)
    plain = ["-m", str(files["target"]), "-t", threads, "-tb", threads, "-c", str(arguments.ctx)]
    drafting = ["-md", str(files["draft"]), "--spec-draft-n-max", str(arguments.draft_max)]
    drafting += ["--spec-draft-p-min", str(arguments.draft_p_min), "-td", threads, "-tbd", threads]
    speculating = ["--spec-type", arguments.spec_type, *(drafting if "draft" in arguments.spec_type else [])]
    solvers = {ALONE: plain, SPECULATION: [*plain, *speculating]}
    return {name: Server(arguments.llama_server, more, instructions) for name, more in solvers.items()}


def solve_all(solvers: Mapping[str, Solver], items: Sequence[Item]) -> dict[str, list[Solved]]:
    """Return the solutions of each solver. A problem that fails in one solver is reported and left out of all."""
    found: dict[str, list[Solved]] = {name: [] for name in solvers}
    with contextlib.suppress(KeyboardInterrupt):
        for index, item in enumerate(items):
            turns = [*solvers][index % len(solvers) :] + [*solvers][: index % len(solvers)]
            try:
                solved = {name: solvers[name](item) for name in turns}
            except (httpx2.HTTPError, ProblemError) as error:
                print(f"{item.problem.id}: left out, {error}", file=sys.stderr, flush=True)
                continue
            for name, one in solved.items():
                found[name].append(one)
            line = ", ".join(
                f"{name} {solved[name].seconds:.2f} s{'' if solved[name].is_correct else ' wrong'}" for name in solvers
            )
            print(f"{item.problem.id}: {line}", file=sys.stderr, flush=True)
    return found


def write_table(found: Mapping[str, Sequence[Solved]]) -> None:
    print(
        f"{'':<27}{'correct':>9}{'accuracy, %':>20}{'s a problem':>13}{'tokens':>8}{'speed-up':>21}{'over speculation':>21}"
    )
    for name, solved in found.items():
        right, count = sum(one.is_correct for one in solved), len(solved)
        accuracy = _with(100 * right / count, wilson(right, count), 100, ".1f")
        seconds, tokens = (sum(one.seconds for one in solved) / count, sum(one.num_tokens for one in solved) / count)
        ratios = "".join(f"{_ratio(found[base], solved):>21}" for base in (ALONE, SPECULATION))
        print(f"{name:<27}{right:>5}/{count:<3}{accuracy:>20}{seconds:>13.2f}{tokens:>8.0f}{ratios}")
    same = {
        name: sum(one.text == other.text for one, other in zip(solved, found[ALONE], strict=True))
        for name, solved in found.items()
    }
    print(
        f"texts equal to those of {ALONE}: " + ", ".join(f"{name} {count}" for name, count in same.items() if name != ALONE)
    )


def _ratio(base: Sequence[Solved], solved: Sequence[Solved]) -> str:
    columns = np.array([(one.seconds, other.seconds) for one, other in zip(base, solved, strict=True)])
    sums = columns.sum(axis=0)
    return _with(sums[0] / sums[1], log_ratio(columns)[1], 1, ".2f")


def _with(value: float, interval: Interval | None, times: float, form: str) -> str:
    return f"{value:{form}}" + (f" [{times * interval[0]:{form}}, {times * interval[1]:{form}}]" if interval else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_server", type=Path)
    parser.add_argument("dataset")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--pair", default="builtin")
    for name in ("--draft", "--target", "--router"):
        parser.add_argument(name, help="default: the pair's")
    parser.add_argument("--policy", default="target,arbitrage", help="policies as in arbitrage bench: target,arbitrage@fast")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--draft-max", type=int, default=8, help="maximum draft tokens of the server")
    parser.add_argument("--spec-type", default="draft-simple", help="speculation type of the server, such as ngram-simple")
    parser.add_argument("--draft-p-min", type=float, default=0.0, help="probability below which the server's draft stops")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it by default
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    entry = find_pair(arguments.pair, user_pairs())
    named: dict[ModelRole, str] = {role: one.source for role, one in entry.entries.items()}
    named |= {role: model for role in MODELS if (model := getattr(arguments, role))}
    is_own = not (arguments.draft or arguments.target)
    dataset = load_dataset(arguments.dataset, offline=True, forms=FORMS)
    task = find_task(dataset.task)
    instructions = task.instructions if entry.system is None or not is_own else entry.system
    models: dict[str, Any] = {"pair": arguments.pair} if is_own else {role: named[role] for role in MODELS}
    options: dict[str, Any] = {name: getattr(arguments, name) for name in ("router", "threads", "ctx", "max_tokens")}
    with ExitStack() as stack:
        grader = stack.enter_context(task.open_grader())
        files = {role: Path(find_files(name, offline=True)[0]) for role, name in named.items()}
        pair = stack.enter_context(open_pair(**models, task=dataset.task, **options))
        running = servers(files, instructions, arguments)
        for server in running.values():
            stack.enter_context(server)
        solvers = {name: solver_of_server(server, grader, arguments.max_tokens) for name, server in running.items()}
        solvers |= {policy: solver_of_policy(pair, policy, grader) for policy in arguments.policy.split(",")}
        found = solve_all(solvers, dataset.items[: arguments.limit])
        drafted, accepted = running[SPECULATION].num_drafted, running[SPECULATION].num_accepted
    if not found[ALONE]:
        sys.exit("no problem was solved by every solver")
    if not drafted:
        sys.exit("the server drafted nothing, so it did not speculate")
    write_table(found)
    print(f"the server accepted {accepted} of {drafted} drafted tokens ({accepted / drafted:.0%})")


if __name__ == "__main__":
    main()
