"""Facts about models, their files and what is stored about them, for `models` and `doctor`."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from arbitrage_cli.display.run_facts import Fact
from arbitrage_cli.display.text import aligned, one_line, role_name
from arbitrage_cli.model_files.checksums import Identity
from arbitrage_cli.numbers import formatting
from arbitrage_cli.system.machine import processor_name
from arbitrage_cli.types import Json

if TYPE_CHECKING:
    from arbitrage_cli.costs.store import TunedFile
    from arbitrage_cli.evaluation.bounds import Bound

ORIGINS = {
    "shipped": "the file that ships with arbitrage",
    "published": "the published file",
    "recorded": "the file that was first used on this machine",
    "unknown": "no known sha256 to compare with",
}


def block(title: str, facts: Iterable[Fact]) -> str:
    return "\n".join([one_line(title), *(f"  {name:<14} {one_line(value)}" for name, value in facts)])


def pair_line(model: Json) -> str:
    place = formatting.size_words(model["bytes"]) if model["here"] else "not here"
    return f"  {role_name(model['role']):<7}  {place:>8}  {one_line(model['model'])}"


def download_lines(files: Sequence[Json]) -> Iterator[str]:
    """Yield a line for each file with its size, and the sum of the sizes of the files that are not on this machine."""
    for file in files:
        place = "here" if file["is_here"] else "not here"
        yield f"{place:<8}  {formatting.size_words(file['size']):>8}  {one_line(file['name'])}"
    missing = [file["size"] for file in files if not file["is_here"]]
    known = formatting.size_words(sum(size for size in missing if size is not None))
    unknown = f", and {formatting.count(missing.count(None), 'file')} of unknown size" if None in missing else ""
    yield f"to download: {formatting.count(len(missing), 'file')}, {known}{unknown}"


def found_lines(models: Sequence[Json]) -> Iterator[str]:
    """Yield a table of other programs' models, and a line for each model that cannot be used."""
    rows = [
        [
            one_line(model["model"]),
            formatting.size_words(model["file_bytes"]),
            model["quantization"] or "unknown",
            str(model["trained_context_size"] or "unknown"),
            model["think_format"] or "no",
        ]
        for model in models
        if "error" not in model
    ]
    if rows:
        yield from aligned(["model", "size", "quantization", "context", "thinking"], rows)
    yield from (one_line(model["error"]) for model in models if "error" in model)


def file_facts(model: Json) -> Iterator[Fact]:
    files, parameters = model["files"], model["num_parameters"]
    total, weights, kv = (formatting.size_words(model[name]) for name in ("memory_bytes", "file_bytes", "kv_bytes"))
    more = f" and {len(files) - 1} more" if len(files) > 1 else ""
    sampling = ", ".join(f"{name} {value:g}" for name, value in model["sampling"].items())
    trained = f"trained with a context of {model['trained_context_size'] or 'an unknown number of'} tokens"
    yield "file", f"{files[0]}{more}, {weights}"
    yield "name", model["name"]
    yield "architecture", model["architecture"] or "unknown"
    yield "parameters", f"{parameters / 1e9:.2f} billion" if parameters >= 1e7 else str(parameters)
    yield "quantization", model["quantization"] or "unknown"
    yield "context", f"{model['context_size']} tokens; {trained}"
    yield "chat template", "yes" if model["has_template"] else "none; system prompt and problem are joined as plain text"
    yield "vocabulary", f"{model['vocabulary_size'] or 'no'} tokens"
    states = f", recurrent states {formatting.size_words(model['states_bytes'])}" if model["states_bytes"] else ""
    yield "memory", f"{total}: weights {weights}, KV cache {kv}{states}"
    limit = f"; up to {model['think_max_tokens']:,} tokens per solution" if model["think_max_tokens"] else ""
    yield "thinking", f"{_thinking(model)}{limit}"
    yield "sampling", sampling or "no recommendation"


def together(record: Json) -> Fact:
    """Return a fact with the memory that all models need."""
    needed, present = record["memory_bytes"], record["machine_bytes"]
    fits = "" if needed is None or present is None or needed < present else "; IT DOES NOT FIT"
    return "memory", f"{formatting.size_words(needed)} of {formatting.size_words(present)}{fits}"


def bound_fact(bound: "Bound") -> Fact:
    """Return a fact about the speed that a policy can reach, by the token costs on this machine."""
    if bound.escalates_all:
        return bound.route.policy.name, f"preset {bound.route.tau_name} escalates every step"
    words = f"at most {formatting.number(bound.at_most)}x as fast as the target alone"
    likely = f", probably at most {formatting.number(bound.likely)}x" if bound.likely < bound.at_most else ""
    return bound.route.policy.name, f"{words}{likely} (by token costs)"


def identity_fact(identity: Identity) -> Fact:
    """Return a fact with the result of verifying a file, and the file's sha256."""
    origin = ORIGINS[identity.origin]
    return identity.path.name, f"{f'DAMAGED: not {origin}' if identity.is_damaged else origin}: sha256 {identity.sha256}"


def _thinking(model: Json) -> str:
    if model["think_format"] is None:
        return "no"
    when = {True: "by default", False: "with --think on", None: "with --think on; the default is unknown"}
    return f"format {model['think_format']}, {when[model['thinks_by_itself']]}"


def stored_facts(cache: "TunedFile") -> Iterator[Fact]:
    """Yield a fact for each model with token costs."""
    for one in cache.tuned:
        where = "" if one.machine.cpu == processor_name() else f", on {one.machine.cpu}"
        about = ", approximate" if one.is_disturbed else ""
        costs = f"{1000 * one.costs.decode:.3g} ms per token with {formatting.count(one.threads, 'thread')}"
        yield "token costs", f"{one.name}, sha256 {one.sha256[:12]}: {costs}, {one.created[:10]}{about}{where}"
