"""Train the process reward model from the target: `python train_prm.py --from target/checkpoint.pt --steps steps.jsonl ...`.

It reads the steps that `wrong_steps.py` labelled, as a conversation in which every step is answered with `+`, and learns
to say `+` or `-` after each. Many verdicts a text, all with `+` before them: so it will be asked. Beside the verdicts it
goes on learning to write the right steps itself, which teaches verifiers (arXiv 2110.14168, section 4.3).
Writes to DIR: tokenizer.json, checkpoint.pt, log.jsonl, as `train.py` does.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model import Model, load_model
from quality import by_group
from tokenizer import ASSISTANT, END, PAD, USER, load_tokenizer, token_id
from tokenizers import Encoding, Tokenizer
from torch import Tensor
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
EVAL_PER_SOURCE = 150  # conversations


@dataclass(frozen=True, slots=True)
class Row:
    """What `wrong_steps.py` wrote about one question."""

    question: str
    steps: list[str]
    labels: list[bool]
    source: str


@dataclass(frozen=True, slots=True)
class Conversation(Example):
    """A row as tokens. Its labels are the verdicts and, where asked for, the tokens of right steps."""

    source: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of `wrong_steps.py`."""
    with path.open(encoding="utf-8") as lines:
        return [Row(**json.loads(line)) for line in lines]


def conversation(row: Row) -> str:
    """The text up to a verdict on the last step, in the built-in models' chat layout."""
    first, *others = row.steps
    turns = [f"{row.question} {first}", *others]
    return END.join(f"{USER}{turn}{ASSISTANT}{GOOD}" for turn in turns)


class Encoder:
    """Rows to conversations of at most `context_size` tokens: later steps are left out."""

    def __init__(self, tokenizer: Tokenizer, context_size: int) -> None:
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._assistant = token_id(tokenizer, ASSISTANT)
        self.good, self.bad = token_id(tokenizer, GOOD), token_id(tokenizer, BAD)

    def encode(self, rows: Sequence[Row], *, language: bool) -> list[Conversation]:
        """`language` adds the tokens of right steps to what is to be learnt."""
        encoded = self._tokenizer.encode_batch_fast([conversation(row) for row in rows], add_special_tokens=False)
        found = (self._conversation(row, encoding, language) for row, encoding in zip(rows, encoded, strict=True))
        return [example for example in found if len(example.learnt)]

    def _conversation(self, row: Row, encoding: Encoding, language: bool) -> Conversation:
        tokens = np.array(encoding.ids, dtype=np.int16)
        labels = np.full(len(tokens) - 1, IGNORED, dtype=np.int16)
        asked = np.flatnonzero(tokens == self._assistant)
        starts = [len(self._tokenizer.encode(USER + row.question, add_special_tokens=False).ids), *(asked[:-1] + 4)]
        for start, end, right in zip(starts, asked, row.labels, strict=True):
            labels[end] = self.good if right else self.bad
            if language and right:
                labels[start - 1 : end - 1] = tokens[start:end]
        asked = asked[asked < self._context_size]
        kept = int(asked[-1]) + 2 if len(asked) else 1
        return Conversation(tokens[:kept], labels[: kept - 1], source=row.source)


def verdict_loss(signs: Sequence[int], language: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean cross-entropy of the verdicts, plus `language` times that of the other tokens."""
    verdicts = torch.tensor(signs)

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        is_verdict = torch.isin(labels, verdicts)
        others = losses[~is_verdict]
        return losses[is_verdict].mean() + language * others.sum() / max(1, len(others))

    return loss


@torch.no_grad()
def rewards(
    model: Model, conversations: Sequence[Conversation], encoder: Encoder, pad: int
) -> Iterable[tuple[Conversation, np.ndarray]]:
    """Each conversation with the share of `+` of the two signs after each of its steps."""
    for batch in by_length(conversations, EVAL_TOKENS):
        logits, _ = learnt_logits(model, *tensors(batch, pad))
        found = torch.sigmoid(logits[:, encoder.good] - logits[:, encoder.bad]).numpy()
        ends = np.cumsum([len(example.learnt) for example in batch])
        yield from zip(batch, np.split(found, ends[:-1]), strict=True)


def evaluate(model: Model, conversations: Sequence[Conversation], encoder: Encoder, pad: int) -> dict[str, Any]:
    """The quality of the rewards by source of the steps; the labels must be verdicts alone."""
    rated = rewards(model, conversations, encoder, pad)
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
    encoder = Encoder(tokenizer, model.shape.context_size)
    pad = token_id(tokenizer, PAD)
    run = Run(model, optimisers(model, options), Progress(), verdict_loss((encoder.good, encoder.bad), options.language))
    checkpoint = out / "checkpoint.pt"
    if options.resume and checkpoint.exists():
        run.load(checkpoint)
    examples = encoder.encode(read_rows(options.steps), language=options.language > 0)
    held_out = encoder.encode(_sample(read_rows(options.held_out), options.seed), language=False)

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
    add_options(parser)
    parser.set_defaults(muon_rate=1e-3, adam_rate=1e-3, batch_tokens=4096)
    train(read_options(parser))


if __name__ == "__main__":
    main()
