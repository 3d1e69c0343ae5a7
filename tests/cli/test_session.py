"""What a session does with the models it has loaded."""

import pytest
from cli import run


@pytest.mark.parametrize(
    ("head", "warns"), [("builtin:qwen2.5-coder", True), ("builtin:builtin", False), ("builtin:universal", False)]
)
def test_a_head_of_another_pair_is_a_warning(head: str, warns: bool) -> None:
    """It decides all the same, and its name is in the record."""
    result = run("solve", "5 + 6", "--json", "-q", "--head", head, "--max-tokens", "1")
    assert (result.code, result.records[0]["settings"]["head"]) == (0, head.removeprefix("builtin:"))
    assert ("was trained on" in result.err.replace("which was trained on others", "")) == warns
