"""Refuses pairs of models that do not suit policies whose draft and target share token ids."""

from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

from arbitrage_cli.errors import UsageError
from arbitrage_cli.model_files.gguf import read_facts, vocabulary_sha256
from arbitrage_cli.routing.policies import Policy
from arbitrage_cli.types import WRITING, ByRole, ModelRole


def refuse_other_token_ids(policies: Iterable[Policy], files: ByRole[Sequence[Path]]) -> None:
    """Raise UsageError if, according to their files, the draft and the target do not share token ids."""
    asked = [policy for policy in policies if policy.shares_token_ids]
    found = {role: files[role] for role in WRITING if files.get(role)} if asked else {}
    for role, paths in found.items():
        if read_facts(paths).state_bytes:
            refuse_memory(asked, role)
    if len(found) == len(WRITING):
        refuse_other_vocabularies(asked, [vocabulary_sha256(paths[0]) for paths in found.values()])


def refuse_memory(policies: Iterable[Policy], role: ModelRole) -> None:
    """Raise UsageError if a policy needs to remove tokens from a model's memory, which this model does not support."""
    for policy in policies:
        if policy.shares_token_ids:
            raise UsageError(
                f"policy {policy.name} removes tokens from a model's memory, which the {role} does not support",
                "use a model without recurrent layers, or another --policy",
                option="policy",
            )


def refuse_other_vocabularies(policies: Iterable[Policy], vocabularies: Sequence[Hashable]) -> None:
    """Raise UsageError if a policy needs models with the same vocabulary, and these vocabularies differ."""
    for policy in policies:
        if policy.shares_token_ids and len({*vocabularies}) > 1:
            raise UsageError(
                f"policy {policy.name} needs two models with the same vocabulary, but those of the draft and the target differ",
                "use two models of one family, such as Qwen2.5 0.5B and 7B, or another --policy",
                option="policy",
            )
