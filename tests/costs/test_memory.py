"""The number of concurrent problems, given the free memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from gguf import GGUFWriter
from made_up_tuning import unit_costs

from arbitrage_cli.costs import memory
from arbitrage_cli.costs.memory import (
    Need,
    Part,
    check_memory,
    memory_needed,
    rollback_of,
)
from arbitrage_cli.errors import ModelFileError, ModelMemoryError, UsageError
from arbitrage_cli.inference.backend import LoadOptions
from arbitrage_cli.inference.speculation import most_verified
from arbitrage_cli.model_files.gguf import num_snapshots, read_facts
from arbitrage_cli.types import MAX_CONCURRENCY, ModelRole

OWN_GPU_MEMORY = "arbitrage_cli.inference.llama.backend.own_gpu_memory"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 2000 bytes of memory, 1000 of them free."""
    monkeypatch.setattr(memory, "total_memory", lambda: 2000)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)


def test_models_on_servers_take_no_memory_and_many_problems(tiny: Mapping[ModelRole, Path]) -> None:
    served: dict[ModelRole, str] = {"draft": "http://a/v1", "target": "http://b/v1"}
    need = memory_needed(served, LoadOptions())
    check_memory(need, MAX_CONCURRENCY)
    mixed = memory_needed(served | {"draft": str(tiny["draft"])}, LoadOptions(256))
    assert mixed.most == 256
    with pytest.raises(UsageError) as raised:
        check_memory(memory_needed({"draft": str(tiny["draft"])}, LoadOptions(256)), 65)
    assert (raised.value.option, "--concurrency 64" in raised.value.hint) == ("concurrency", True)


def test_need_is_read_from_the_files(tiny: Mapping[ModelRole, Path]) -> None:
    found: dict[ModelRole, str] = {"draft": str(tiny["draft"]), "target": str(tiny["target"])}
    full = memory_needed(found, LoadOptions(256, num_sequences=2))
    assert full.host.weights == sum(path.stat().st_size for path in (tiny["draft"], tiny["target"]))
    alone = memory_needed(found, LoadOptions(256))
    assert 0 < 2 * alone.host.each == full.host.each
    assert memory_needed(found, LoadOptions(512)).host.each == 2 * alone.host.each
    assert memory_needed(found, LoadOptions(256, kv_type="f32")).host.each == 2 * alone.host.each
    assert [memory_needed(found, LoadOptions(256, num_sequences=count)).most for count in (2, 17)] == [64, 15]
    assert memory_needed({"draft": "scripted:draft"}, LoadOptions()) == Need(Part())
    with pytest.raises(ModelFileError):
        memory_needed({"draft": "nowhere.gguf"}, LoadOptions())


def test_a_target_keeps_earlier_states_to_remove_rejected_tokens(tiny: Mapping[str, Path]) -> None:
    path, costs = str(tiny["hybrid"]), unit_costs(1.0, 2.9, 8.2)
    found: dict[ModelRole, str] = {"target": path}
    assert rollback_of(path, costs) == most_verified(costs) == 8
    assert rollback_of(path, None) == rollback_of(str(tiny["draft"]), costs) == 0
    without, with_them = (memory_needed(found, LoadOptions(256, num_sequences=3), {"target": count}) for count in (0, 8))
    assert with_them.host.each - without.host.each == 3 * 8 * read_facts([tiny["hybrid"]]).state_bytes
    assert num_snapshots(200 << 20, 8) == 2


def test_layers_with_other_numbers_of_heads(tmp_path: Path) -> None:
    """A layer without attention has no cache. Without head counts, the need is unknown. The header is enough."""
    path = tmp_path / "layers.gguf"

    def need(heads: Sequence[int] | None, kv_heads: Sequence[int] | None, *lengths: int) -> Need:
        writer = GGUFWriter(path, "llama")
        writer.add_block_count(3)
        writer.add_embedding_length(64)
        for numbers, add in ((heads, writer.add_head_count), (kv_heads, writer.add_head_count_kv)):
            if numbers:
                add(numbers)
        for length, add in zip(lengths, (writer.add_key_length, writer.add_value_length), strict=False):
            add(length)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return memory_needed({"draft": str(path)}, LoadOptions(100))

    assert need([4, 4, 4], [2, 1, 0]).host.each == 100 * (2 + 1 + 0) * (16 + 16) * 2
    assert need([4, 8, 0], [2, 1, 0]).host.each == 100 * (2 * (16 + 16) + 1 * (8 + 8)) * 2
    assert need([4, 4, 4], [2, 1, 0], 512, 4096).host.each == 100 * (2 + 1 + 0) * (512 + 4096) * 2
    for unknown in (need(None, None), need([4, 4], None)):
        assert unknown.host.each == 0


@pytest.mark.parametrize(("layers", "share"), [(None, 1.0), (-1, 1.0), (99, 1.0), (3, 1.0), (1, 1 / 3), (0, 0.0)])
def test_layers_on_a_gpu_are_not_the_machines(
    layers: int | None, share: float, tiny: Mapping[ModelRole, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output counts as a third layer of a model with two."""

    def need(gpu: tuple[int, int] | None, *, shares_memory: bool) -> Need:
        monkeypatch.setattr(OWN_GPU_MEMORY, lambda: gpu)
        monkeypatch.setattr(memory, "gpu_shares_memory", lambda: shares_memory)
        return memory_needed({"draft": str(tiny["draft"])}, LoadOptions(256, gpu_layers=layers))

    plain = need(None, shares_memory=False)
    assert plain.gpu == Part()
    offloaded = need((900, 900), shares_memory=False)
    assert offloaded.host + offloaded.gpu == plain.host
    assert offloaded.gpu.weights == int(share * plain.host.weights)
    assert offloaded.gpu.each == int(share * plain.host.each)
    assert need((900, 900), shares_memory=True) == plain


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 1500 bytes of memory, 500 of them free."""
    monkeypatch.setattr(OWN_GPU_MEMORY, lambda: (1500, 500))


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("fits", "is_tight", "too_large", "hint"),
    [
        (Need(Part(900, 100)), Need(Part(1900, 100)), Need(Part(1900, 101)), "--ctx"),
        (Need(Part(), Part(400, 100)), Need(Part(), Part(1400, 100)), Need(Part(), Part(1400, 101)), "gpu-layers"),
    ],
    ids=["machine", "GPU"],
)
def test_one_is_refused_only_if_it_never_fits(
    fits: Need, is_tight: Need, too_large: Need, hint: str, caplog: pytest.LogCaptureFixture
) -> None:
    check_memory(fits)
    assert not caplog.messages
    check_memory(is_tight)
    assert len(caplog.messages) == 1
    with pytest.raises(ModelMemoryError) as caught:
        check_memory(too_large)
    assert hint in caught.value.hint


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("count", "need", "hint"),
    [
        (10, Need(Part(100, 100)), "--concurrency 9"),
        (2, Need(Part(800, 300)), "--concurrency 1"),
        (2, Need(Part(1500, 0)), "--concurrency 1"),
        (9, Need(Part(10, 10), Part(100, 50)), "--concurrency 8"),
        (2, Need(Part(), Part(1501)), "gpu-layers"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(count: int, need: Need, hint: str) -> None:
    with pytest.raises(ModelMemoryError) as caught:
        check_memory(need, count)
    assert hint in caught.value.hint


@pytest.mark.usefixtures("gpu")
def test_what_fits_is_taken() -> None:
    check_memory(Need(Part(10, 10), Part(100, 50)), 8)
    check_memory(Need(Part(100, 100)), 9)


@pytest.mark.usefixtures("gpu")
def test_problems_in_reserve_need_memory_too() -> None:
    check_memory(Need(Part(100, 100)), 7, num_spare=2)
    with pytest.raises(ModelMemoryError) as caught:
        check_memory(Need(Part(100, 100)), 8, num_spare=2)
    assert "--concurrency 7" in caught.value.hint
    with pytest.raises(UsageError) as refused:
        check_memory(Need(Part(), most=16), 15, num_spare=2)
    assert "--concurrency 14" in refused.value.hint
