"""A deterministic model that follows a script, registered as a backend like that of any other package (see dist-info).

The models `scripted:draft` and `scripted:target` solve one line of arithmetic. The draft makes mistakes in long
multiplications, and begins them with low confidence.
"""

import codecs
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arbitrage_cli.errors import ContextFullError, ConversationError, UsageError
from arbitrage_cli.inference.backend import Deadline, Floats, LoadOptions, ModelCard, States
from arbitrage_cli.model_files.gguf import DEFAULT_CONTEXT_SIZE

TINY = 1e-30  # total probability of the other tokens if a script is certain

CONTROLS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class ScriptEndedError(ConversationError):
    """A script has no continuation for this text."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """The remaining text of a script, and the probability of its next token."""

    text: str
    confidence: float


Script = Callable[[str, str], Continuation]  # from question and solution; raises ScriptEndedError if it cannot continue


class ByteTokenizer:
    """A `Tokenizer` for bytes, longer texts (`merges`) and control tokens. The last control token ends the sequence."""

    marker_tokens: Collection[str] = ()
    prefix_token: int | None = None

    def __init__(self, merges: Sequence[str], controls: Sequence[str]) -> None:
        pieces = [bytes([value]) for value in range(256)] + [text.encode() for text in merges]
        self._merges = sorted(range(256, len(pieces)), key=lambda token: -len(pieces[token]))
        self._pieces = pieces + [b""] * len(controls)
        self.control_tokens: Mapping[str, int] = {text: len(pieces) + index for index, text in enumerate(controls)}
        self.end = self.control_tokens[controls[-1]]

    @property
    def size(self) -> int:
        return len(self._pieces)

    def tokenize(self, text: str, *, continues: bool) -> list[int]:
        data, tokens, start = text.encode("utf-8", errors="replace"), list[int](), 0
        while start < len(data):
            tokens.append(self.first_token(data, start))
            start += len(self._pieces[tokens[-1]])
        return tokens

    def first_token(self, data: bytes, start: int = 0) -> int:
        return next((token for token in self._merges if data.startswith(self._pieces[token], start)), data[start])

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    def is_end(self, token: int) -> bool:
        return token == self.end


class ScriptedBackend:
    chat_template: str | None = TEMPLATE
    states: States | None = None

    def __init__(self, source: str, script: Script, options: LoadOptions, *, merges: Sequence[str] = (".\n\n",)) -> None:
        self._source = source
        self._script = script
        self.tokenizer = ByteTokenizer(merges, CONTROLS)
        self.cells: list[list[int]] = [[] for _ in range(options.num_sequences)]
        self._context_size = options.context_size or DEFAULT_CONTEXT_SIZE
        self.template_variables = options.template_variables

    def close(self) -> None:
        self.cells = []

    @property
    def card(self) -> ModelCard:
        description, context = "a script, not a language model", self._context_size
        return ModelCard(self._source, description, context, self.tokenizer.size, 1, 0)

    def read(self, sequence: int, position: int, tokens: Sequence[int], *, deadline: Deadline | None = None) -> None:
        held = len(self.cells[sequence])
        if position != held:
            raise ValueError(f"position {position} is not the end of a sequence of {held} tokens")
        if held + len(tokens) > self._context_size:
            raise ContextFullError(
                f"{self._source}: the context of {self._context_size} tokens is full", "use a larger --ctx"
            )
        if deadline and deadline.has_passed:
            raise deadline.error
        self.cells[sequence] += tokens

    def decode(
        self, sequences: Sequence[int], positions: Sequence[int], tokens: Sequence[int], *, deadline: Deadline | None = None
    ) -> Floats:
        rows: list[Floats] = []
        for sequence, position, token in zip(sequences, positions, tokens, strict=True):
            self.read(sequence, position, [token])
            rows.append(self._compute(sequence))
        if deadline and deadline.has_passed:
            raise deadline.error
        return np.stack(rows)

    def drop(self, sequence: int, position: int) -> None:
        del self.cells[sequence][position:]

    def _compute(self, sequence: int) -> Floats:
        question, solution, num_written = self._split(self.cells[sequence])
        continuation = self._script(question, solution)
        rest = continuation.text.encode()[num_written:]
        token = self.tokenizer.first_token(rest) if rest else self.tokenizer.end
        size = self.tokenizer.size
        logits = np.full(size, math.log(max(1 - continuation.confidence, TINY) / (size - 1)), np.float32)
        logits[token] = math.log(continuation.confidence)
        return logits

    def _split(self, cells: list[int]) -> tuple[str, str, int]:
        controls, roles, current = self.tokenizer.control_tokens, dict[int, list[int]](), list[int]()
        first = min(controls.values())  # control tokens have the highest ids
        for token in cells:
            if token >= first:
                current = roles[token] = []
            else:
                current.append(token)
        question, _ = self._text(roles.get(controls["<|user|>"], []))
        return question, *self._text(roles.get(controls["<|assistant|>"], []))

    def _text(self, tokens: list[int]) -> tuple[str, int]:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        text = decoder.decode(b"".join(map(self.tokenizer.piece, tokens)))
        return text, len(decoder.getstate()[0])


def open_scripted(source: str, options: LoadOptions) -> ScriptedBackend:
    if source == "scripted:draft":
        return ScriptedBackend(source, Arithmetic(reliable=False), options)
    if source == "scripted:target":
        return ScriptedBackend(source, Arithmetic(reliable=True), options, merges=())
    raise UsageError(f"unknown scripted model '{source}'", "use scripted:draft or scripted:target")


SURE, UNSURE = 0.98, 0.6

_NUMBER = r"((?<!\d)-\d+|\d+)"  # a minus after a digit is an operator
_PRODUCT, _SUM = (re.compile(f"{_NUMBER}([{signs}]){_NUMBER}") for signs in ("*", "+-"))
_EXPRESSION = re.compile(r"-?\d+(\s*[*+-]\s*-?\d+)+")
_OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


class Arithmetic:
    """Evaluates the first expression in a question, one operation (+, - or *) per step.

    If the solution so far is wrong, the script continues from it anyway. If `reliable` is false, products of two numbers
    with at least two digits are wrong and are written with low confidence.
    """

    def __init__(self, *, reliable: bool) -> None:
        self._reliable = reliable

    def __call__(self, question: str, solution: str) -> Continuation:
        expression = _expression(question)
        done, _, begun = solution.rpartition("\n\n")
        for step in filter(None, done.split("\n\n")):
            expression = _after_step(expression, step)
        operation = _next_operation(expression)
        if operation is None:
            step = "" if "\\boxed" in done else f"The answer is \\boxed{{{expression}}}."
            return Continuation(step[len(begun) :], SURE)
        left, sign, right = operation.groups()
        hard = sign == "*" and min(len(left), len(right)) > 1 and not self._reliable
        step = f"{left} {sign} {right} = {_OPERATORS[sign](int(left), int(right)) + (10 if hard else 0)}.\n\n"
        if not step.startswith(begun):
            step = begun + ".\n\n"  # end a step that another model began differently
        return Continuation(step[len(begun) :], UNSURE if hard else SURE)


def _expression(question: str) -> str:
    plain = question.translate(str.maketrans("\u00d7\u00b7\u2212", "**-"))
    for found in re.findall(r"[\d(-][\d\s()+*/-]*", plain[:10_000]):
        if len(found) <= 200 and _EXPRESSION.fullmatch(found.strip()):
            return re.sub(r"\s", "", found)
    raise ScriptEndedError(
        "the scripted models understand only single-line arithmetic, such as 37 * 12 - 95",
        "for other problems, use real models: --draft DRAFT.gguf --target TARGET.gguf",
    )


def _next_operation(expression: str) -> re.Match[str] | None:
    return _PRODUCT.search(expression) or _SUM.search(expression)


def _after_step(expression: str, step: str) -> str:
    """Replace the expression's next operation with its result `c`, taken from a step such as `a op b = c.`."""
    operation, result = _next_operation(expression), re.search(r"=\s*(-?\d+)\.?\s*$", step)
    if operation is None or result is None:
        return expression
    return expression[: operation.start()] + result[1] + expression[operation.end() :]
