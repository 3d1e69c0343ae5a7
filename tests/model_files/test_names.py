"""Names on the Hub, and the selection of a repository's files."""

import pytest

from arbitrage_cli.errors import HubError, UsageError
from arbitrage_cli.model_files.hub import HubName, choose, parse_name

NAME = HubName("user/repo")
DATASET_FILE = HubName("user/rows", "test.jsonl", kind="dataset")
PATHS = ("model", "model.gguf", "a/small.gguf", "./a/b", "../a/b", "~/a", "/a/b", "a/b/c", "a\\b/c", "a/..", "a/b--c", "")
LEADING_OUT = (
    *("u/r:../../x.gguf", "u/r:/etc/x.gguf", "u/r:a/../x.gguf", "u/r:a\\x.gguf", "u/r:a\x1b[2J.gguf", "u/r@../../x"),
    *("u/r:*", "u/r:latest"),
)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("user/repo", HubName("user/repo", "Q4_K_M", "main")),
        ("user/repo:q8_0", HubName("user/repo", "q8_0", "main")),
        ("user/repo@v1.0", HubName("user/repo", "Q4_K_M", "v1.0")),
        ("user/repo:IQ3_XS@refs/pr/1", HubName("user/repo", "IQ3_XS", "refs/pr/1")),
        ("user/repo:UD-Q4_K_XL", HubName("user/repo", "UD-Q4_K_XL", "main")),
        ("u-s/re.po_1:sub/file.gguf@main", HubName("u-s/re.po_1", "sub/file.gguf", "main")),
    ],
)
def test_names(source: str, name: HubName) -> None:
    assert parse_name(source) == name


@pytest.mark.parametrize("source", PATHS)
def test_paths_are_not_names(source: str) -> None:
    assert parse_name(source) is None


@pytest.mark.parametrize("source", LEADING_OUT)
def test_names_that_lead_out_of_the_cache(source: str) -> None:
    with pytest.raises(UsageError):
        parse_name(source)


@pytest.mark.parametrize("selector", ["q4_k_m", "Q4_K_M", "Model-Q4_K_M.gguf"])
def test_quantization_in_any_case_or_file(selector: str) -> None:
    files = ["Model-Q4_K_M.gguf", "Model-Q8_0.gguf"]
    assert choose(HubName("user/repo", selector), files) == ("Model-Q4_K_M.gguf",)


@pytest.mark.parametrize("file", ["model.Q5_K_S.gguf", "sub/q5_k_s.gguf", "Q5_K_S/a-b_q5_k_s.gguf"])
def test_quantization_as_repositories_spell_it(file: str) -> None:
    assert choose(HubName("user/repo", "Q5_K_S"), [file, "mmproj-q5_k_s.gguf", "model-IQ5_K_S.gguf"]) == (file,)


def test_all_parts_of_a_split_model() -> None:
    parts = tuple(f"M-Q4_K_M-0000{number}-of-00003.gguf" for number in (1, 2, 3))
    assert choose(NAME, parts[::-1]) == choose(HubName("user/repo", parts[1]), parts) == parts


@pytest.mark.parametrize(
    ("name", "files", "message", "hint"),
    [
        (HubName("user/repo", "Q2_K"), ["M-Q4_K_M.gguf", "M-Q8_0.gguf"], "has no Q2_K", "M-Q4_K_M.gguf, M-Q8_0.gguf"),
        (NAME, ["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], "a-Q4_K_M.gguf, b-Q4_K_M.gguf", "user/repo:a-Q4_K_M.gguf"),
        (NAME, [], "has no Q4_K_M", "-GGUF"),
        (NAME, ["M-Q4_K_M-00001-of-00002.gguf"], "lacks parts", "another quantization"),
        (NAME, ["../../../evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (NAME, ["/etc/evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (NAME, ["a\\..\\evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (NAME, ["C:/evil-Q4_K_M.gguf"], "unsafe", "inside the repository"),
        (DATASET_FILE, ["other.jsonl"], "has no test.jsonl", "other.jsonl"),
    ],
)
def test_no_single_safe_choice(name: HubName, files: list[str], message: str, hint: str) -> None:
    with pytest.raises(HubError) as caught:
        choose(name, files)
    assert message in caught.value.message
    assert hint in caught.value.hint
