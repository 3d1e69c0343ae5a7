"""The byte-level BPE of the built-in models: 512 tokens, trained on generated problems, in the layout of llama.cpp's `smollm`.

The module also has the chat format, as text and as tokens. Run as a program, it trains the vocabulary and writes `tokenizer.json`.
Training scripts do so if the file is missing.
"""

import argparse
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

from generate import Problem, training_problems
from gguf import GGUFReader
from thoughts import OPENS
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer

VOCABULARY_SIZE = 512
SEPARATOR = "\n\n"
END, USER, ASSISTANT, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|pad|>"
SPECIALS = (END, USER, ASSISTANT, PAD)
SEED = 0
NUM_PROBLEMS = 20_000

MESSAGES = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + "{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}" + ASSISTANT + "{{ message['content'] }}" + END + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ASSISTANT
)  # the models were trained without system messages, so a system message is ignored
CHAT_TEMPLATE = MESSAGES + "{% if enable_thinking is defined and enable_thinking %}" + OPENS + "{% endif %}{% endif %}"
THINKING_TEMPLATE = MESSAGES + OPENS + "{% endif %}"


def prompt(question: str) -> str:
    """Return the prompt for a question."""
    return f"{USER}{question}{ASSISTANT}"


def train_tokenizer(problems: Sequence[Problem], size: int = VOCABULARY_SIZE) -> Tokenizer:
    """Train a vocabulary of `size` tokens: special tokens, the step separator, 256 bytes and merges."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    trainer = BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(ByteLevel.alphabet()),
        special_tokens=[*SPECIALS, SEPARATOR],
        show_progress=False,
    )
    lines = (line for problem in problems for line in (problem.question, *problem.steps))
    trained.train_from_iterator(lines, trainer)
    return _assemble(trained.get_vocab(), merges(trained))


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer from a file of `load_or_train` or a GGUF of `export.py`."""
    if path.suffix == ".gguf":
        fields = GGUFReader(path).fields
        texts = fields["tokenizer.ggml.tokens"].contents()
        pairs = fields["tokenizer.ggml.merges"].contents()
        return _assemble({text: number for number, text in enumerate(texts)}, pairs)
    return Tokenizer.from_file(str(path))


def load_or_train(path: Path) -> Tokenizer:
    """Load the tokenizer from `path`, or train and write it if the file is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        problems = list(itertools.islice(training_problems(SEED), NUM_PROBLEMS))
        part = path.with_suffix(f".{os.getpid()}.part")
        train_tokenizer(problems).save(str(part))
        part.replace(path)
    return load_tokenizer(path)


def token_id(tokenizer: Tokenizer, text: str) -> int:
    """Return the id of a token. Raises ValueError if the vocabulary does not contain it."""
    found = tokenizer.token_to_id(text)
    if found is None:
        raise ValueError(f"the vocabulary does not contain {text!r}")
    return found


def merges(tokenizer: Tokenizer) -> list[str]:
    """Return the merges in order of rank, each as "left right" in GPT-2's byte alphabet."""
    found = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in found]


def _pre_tokenizer() -> PreTokenizer:
    return PreTokenizers([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])


def _assemble(ids: dict[str, int], pairs: Sequence[str]) -> Tokenizer:
    """Build a vocabulary in which the separator is ordinary text that no merge crosses."""
    split = [pair.split(" ") for pair in pairs]
    result = Tokenizer(BPE(vocab=ids, merges=[(left, right) for left, right in split]))
    result.pre_tokenizer = _pre_tokenizer()
    result.decoder = ByteLevelDecoder()
    result.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    result.add_tokens([AddedToken(SEPARATOR, special=False, normalized=False)])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="output file, such as out/tokenizer.json")
    out: Path = parser.parse_args().out
    out.unlink(missing_ok=True)
    print(f"{out}: {load_or_train(out).get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
