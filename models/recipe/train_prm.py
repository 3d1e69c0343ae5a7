"""Train the process reward model from the target: `python train_prm.py --from target/checkpoint.pt --steps steps.jsonl ...`.

It reads the solutions whose steps `wrong_steps.py` labelled, laid out as the target wrote them, and learns to say `+` or `-`
where the next step would begin. So what it knows as a writer stays of use. Beside the verdicts it goes on learning to write
the right steps itself, which teaches verifiers (arXiv 2110.14168, section 4.3), and to judge after every token. Blocks put on
top (`--layers`) can compare what came with what the target would have written: its own last block is too late for that.
Writes to DIR: tokenizer.json, checkpoint.pt, log.jsonl, as `train.py` does.
"""

import argparse
import dataclasses
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import Model, load_model
from quality import by_group
from tokenizer import ASSISTANT, PAD, SEPARATOR, load_tokenizer, prompt, token_id
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from train import (
    EVAL_TOKENS,
    IGNORED,
    Example,
    Log,
    Progress,
    Run,
    add_options,
    batches,
    by_length,
    learnt_logits,
    optimisers,
    read_options,
    spend_budget,
    tensors,
)

GOOD, BAD = "+", "-"
EVAL_PER_SOURCE = 500  # solutions


@dataclass(frozen=True, slots=True)
class Row:
    """What `wrong_steps.py` wrote about one question."""

    question: str
    steps: list[str]
    labels: list[bool]
    source: str
    agrees: int = 0


@dataclass(frozen=True, slots=True)
class Solution(Example):
    """A row as tokens. Its labels are the verdicts and, where asked for, the tokens of right steps."""

    source: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of `wrong_steps.py`."""
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]


def solution(row: Row, num_steps: int | None = None) -> str:
    """Question and steps, each with the separator after it, where the verdict on it is asked for."""
    return prompt(row.question) + "".join(step + SEPARATOR for step in row.steps[:num_steps])


class Encoder:
    """Rows to solutions of at most `context_size` tokens: later steps are left out."""

    def __init__(self, tokenizer: Tokenizer, context_size: int) -> None:
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._assistant, self._separator = token_id(tokenizer, ASSISTANT), token_id(tokenizer, SEPARATOR)
        self.good, self.bad = token_id(tokenizer, GOOD), token_id(tokenizer, BAD)

    def to_judge(self, rows: Sequence[Row]) -> list[Solution]:
        """With the verdicts as labels: GOOD or BAD after each step."""
        return [example for example in self._encode(rows, self._verdicts) if len(example.learnt)]

    def to_learn(self, rows: Sequence[Row]) -> list[Solution]:
        """With labels for `lesson`: the verdicts, the tokens of right steps, and after each token whether all was right so far."""
        return self._encode(rows, self._lessons)

    def _encode(self, rows: Sequence[Row], label: Callable[[Row, Encoding], np.ndarray]) -> list[Solution]:
        encoded = self._tokenizer.encode_batch([solution(row) for row in rows], add_special_tokens=False)
        examples = []
        for row, encoding in zip(rows, encoded, strict=True):
            kept = min(len(encoding.ids), self._context_size)
            padded = [*encoding.ids[:kept], self._separator]  # training drops the last: nothing comes after a verdict
            examples.append(Solution(np.array(padded, dtype=np.int16), label(row, encoding)[:kept], source=row.source))
        return examples

    def _verdicts(self, row: Row, encoding: Encoding) -> np.ndarray:
        tokens = np.array(encoding.ids)
        labels = np.full(len(tokens), IGNORED, dtype=np.int16)
        labels[tokens == self._separator] = np.where(row.labels, self.good, self.bad)
        return labels

    def _lessons(self, row: Row, encoding: Encoding) -> np.ndarray:
        tokens = np.array(encoding.ids)
        first = encoding.ids.index(self._assistant)
        ended = np.flatnonzero(tokens == self._separator)
        written = np.full(len(tokens), NOTHING)
        for start, end, right in zip((first, *ended[:-1]), ended, row.labels, strict=True):
            if right:
                written[start:end] = tokens[start + 1 : end + 1]
        written[ended] = np.where(row.labels, self.good, self.bad)
        wrong = np.array([end for _, end in encoding.offsets]) > self._first_error(row)
        wrong[ended] = ~np.array(row.labels)
        is_step = np.arange(len(tokens)) > first
        return lesson(written, np.where(is_step, np.where(wrong, WRONG, RIGHT), 0))

    @staticmethod
    def _first_error(row: Row) -> float:
        """The place in the text up to which all is right."""
        if all(row.labels):
            return math.inf
        return len(solution(row, row.labels.index(False))) + row.agrees


RIGHT, WRONG = 1, 2
NOTHING = -1


def lesson(written: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Two labels as one: the next token, or NOTHING; and RIGHT, WRONG or 0 for what stands so far."""
    both = (written + 1) * 3 + judged
    return np.where(both == 0, IGNORED, both).astype(np.int16)


def lesson_loss(good: int, bad: int, language: float, tokenwise: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy of the verdicts, of right steps' tokens times `language`, and of the signs after each token.

    The last compares the logits of the two signs alone, which leaves the model free to say something else.
    """

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        written, judged = labels // 3 - 1, labels % 3
        losses = functional.cross_entropy(logits, written, ignore_index=NOTHING, reduction="none")
        is_verdict = (written == good) | (written == bad)
        is_language = (written != NOTHING) & ~is_verdict
        signs = functional.binary_cross_entropy_with_logits(
            logits[:, good] - logits[:, bad], (judged == RIGHT).float(), (judged != 0).float(), reduction="sum"
        )
        return (
            losses[is_verdict].mean()
            + language * losses[is_language].sum() / max(1, int(is_language.sum()))
            + tokenwise * signs / max(1, int((judged != 0).sum()))
        )

    return loss


def deepened(model: Model, num_layers: int) -> Model:
    """The same function with more blocks, which pass on what they get until they have learnt something."""
    deep = Model(dataclasses.replace(model.shape, num_layers=num_layers))
    deep.token_embd.load_state_dict(model.token_embd.state_dict())
    deep.output_norm.load_state_dict(model.output_norm.state_dict())
    for index, block in enumerate(deep.blk):
        if index < len(model.blk):
            block.load_state_dict(model.blk[index].state_dict())
        else:
            nn.init.zeros_(block.attn_output.weight)
            nn.init.zeros_(block.ffn_down.weight)
    return deep


@torch.no_grad()
def rewards(
    model: Model, solutions: Sequence[Solution], encoder: Encoder, pad: int
) -> Iterable[tuple[Solution, np.ndarray]]:
    """Each solution with the share of `+` of the two signs after each of its steps."""
    for batch in by_length(solutions, EVAL_TOKENS):
        logits, _ = learnt_logits(model, *tensors(batch, pad))
        found = torch.sigmoid(logits[:, encoder.good] - logits[:, encoder.bad]).numpy()
        ends = np.cumsum([len(example.learnt) for example in batch])
        yield from zip(batch, np.split(found, ends[:-1]), strict=True)


def evaluate(model: Model, solutions: Sequence[Solution], encoder: Encoder, pad: int) -> dict[str, Any]:
    """The quality of the rewards by source of the steps; the labels must be verdicts alone."""
    rated = rewards(model, solutions, encoder, pad)
    return dict(by_group((example.source, found, example.learnt == encoder.good) for example, found in rated))


def train(options: argparse.Namespace) -> None:
    """Train until the budget is spent, from the checkpoint in `options.out` where asked and there is one."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(options.tokenizer or options.start.with_name("tokenizer.json"))
    tokenizer.save(str(out / "tokenizer.json"))
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    model = load_model(options.start)
    if options.layers:
        model = deepened(model, options.layers)
    encoder = Encoder(tokenizer, model.shape.context_size)
    pad = token_id(tokenizer, PAD)
    run = Run(
        model,
        optimisers(model, options),
        Progress(),
        lesson_loss(encoder.good, encoder.bad, options.language, options.tokenwise),
    )
    checkpoint = out / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    examples = encoder.to_learn(read_rows(options.steps))
    held_out = encoder.to_judge(_sample(read_rows(options.held_out), options.seed))

    def chunk(number: int) -> list[list[Example]]:
        """Everything once, in an order of its own."""
        rng = random.Random(options.seed * 1_000_000 + number)
        shuffled = by_length(rng.sample(examples, len(examples)), options.batch_tokens)
        rng.shuffle(shuffled)
        return shuffled

    log = Log(out / "log.jsonl", goes_on=options.resume)
    log.write(parameters=model.num_parameters(), options={name: str(value) for name, value in vars(options).items()})
    stream = batches(run.progress, chunk)
    spend_budget(options, run, stream, pad, log, lambda: evaluate(model, held_out, encoder, pad))


def _sample(rows: Sequence[Row], seed: int) -> list[Row]:
    """Some of each source."""
    sources = sorted({row.source for row in rows})
    shuffled = random.Random(seed).sample(rows, len(rows))
    return [row for source in sources for row in [row for row in shuffled if row.source == source][:EVAL_PER_SOURCE]]


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--from", dest="start", type=Path, required=True, help="the target's checkpoint")
    parser.add_argument("--steps", type=Path, required=True, help="labelled steps to train on")
    parser.add_argument("--held-out", type=Path, required=True, help="labelled steps to evaluate on")
    parser.add_argument("--tokenizer", type=Path, help="instead of tokenizer.json beside the target's checkpoint")
    parser.add_argument("--language", type=float, default=0.5, help="weight of writing right steps, beside judging them")
    parser.add_argument("--tokenwise", type=float, default=1.0, help="weight of judging after every token of a step")
    parser.add_argument("--layers", type=int, help="more blocks than the checkpoint has, put on top")
    add_options(parser)
    parser.set_defaults(muon_rate=1e-3, adam_rate=1e-3, batch_tokens=4096)
    train(read_options(parser))


if __name__ == "__main__":
    main()
