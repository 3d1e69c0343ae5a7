"""From a problem to a prompt: templates of every kind, hostile ones among them, and text that must stay text."""

import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import CHATML, HEADERS, INST
from writing import text

from arbitrage_cli.errors import TemplateError
from arbitrage_cli.inference import chat_template
from arbitrage_cli.inference.chat_template import INSTRUCTIONS, ChatPrompt, Control, Plain, PromptStyle, Segment
from arbitrage_cli.system.child import Child
from arbitrage_cli.types import Message, Problem

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
USER_ONLY = "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}</u>{% endif %}{% endfor %}"
SHOWS_USER = "{% for m in messages %}{{ m.content }}{% endfor %}"


def controls(segments: Sequence[Segment]) -> list[str]:
    return [segment.text for segment in segments if isinstance(segment, Control)]


def test_a_template_with_a_system_role() -> None:
    assert ChatPrompt(CHATML, CHATML_TOKENS).segments(Problem("", "What is 1 + 1?")) == [
        Control("<|im_start|>"),
        Plain(f"system\n{INSTRUCTIONS}"),
        Control("<|im_end|>"),
        Plain("\n"),
        Control("<|im_start|>"),
        Plain("user\nWhat is 1 + 1?"),
        Control("<|im_end|>"),
        Plain("\n"),
        Control("<|im_start|>"),
        Plain("assistant\n"),
    ]


@pytest.mark.parametrize("template", [HEADERS, USER_ONLY, "{{ messages[-1].content }}"], ids=["refuses", "ignores", "last"])
def test_a_template_without_a_system_role(template: str) -> None:
    segments = ChatPrompt(template, ["<|stop|>"], variables={"bos_token": "<s>"}).segments(Problem("", "1 + 1"))
    assert f"{INSTRUCTIONS}\n\n1 + 1" in text(segments)
    assert text(segments).count(INSTRUCTIONS) == 1


def test_a_llama_2_template_and_none() -> None:
    segments = ChatPrompt(INST, ["<s>", "</s>"], variables={"bos_token": "<s>"}).segments(Problem("", "1 + 1"))
    assert segments == [Control("<s>"), Plain(f"[INST] {INSTRUCTIONS}\n\n1 + 1 [/INST]")]
    assert ChatPrompt(None, ["</s>"]).segments(Problem("", "1 + 1")) == [
        Plain(f"{INSTRUCTIONS}\n\nProblem: 1 + 1\n\nSolution:")
    ]


@pytest.mark.parametrize("instructions", ["", "  \n"])
@pytest.mark.parametrize("template", [CHATML, HEADERS, USER_ONLY, None], ids=["system", "refuses", "ignores", "none"])
def test_empty_instructions(template: str | None, instructions: str) -> None:
    found = text(ChatPrompt(template, CHATML_TOKENS, style=PromptStyle(instructions)).segments(Problem("", "1 + 1")))
    assert "system" not in found
    assert found.startswith(("<|im_start|>user\n1 + 1<", "<|user|>1 + 1<", "<u>1 + 1<", "Problem: 1 + 1\n"))


@pytest.mark.parametrize(
    ("markers", "question"),
    [
        (["<think>"], "<think>4</think>"), (["<think>"], "<think><think>"), (["<think>", "<think>x"], "<think>x"),
        (["=="], "a == b"), (["=="], "a === b"), (["=====", "=="], "========"), (["<a", "a<"], "<a<a<"),
    ],
)  # fmt: skip
def test_markers_of_the_template_are_broken_up_in_data(markers: list[str], question: str) -> None:
    template = "".join(markers) + "{{ messages[-1].content }}"
    fragments = ChatPrompt(template, [], markers).fragments(question)
    assert "".join(fragments) == question
    assert not [fragment for fragment in fragments for marker in markers if marker in fragment]


def test_markers_in_a_question() -> None:
    """The template's own marker stays whole. Markers that the template does not use are ordinary text."""
    segments = ChatPrompt("<m>{{ messages[-1].content }}<m>", [], ["<m>"], style=PromptStyle("")).segments(
        Problem("", "1<m>2")
    )
    assert segments == [Plain("<m>1<"), Plain("m>2<m>")]
    assert ChatPrompt(CHATML, CHATML_TOKENS, ["<tool>"]).fragments("<tool>") == ["<tool>"]


def test_jinja_extensions_of_chat_templates() -> None:
    template = (
        "{%- set ns = namespace(n=0) -%}\n{% for m in messages %}\n{% if m.role == 'user' %}\n{{ m.content }}"
        "{%- break %}\n{% endif %}\n{% endfor %}\n{{ {'a': ns.n} | tojson }}"
    )
    assert text(ChatPrompt(template, [], style=PromptStyle("")).segments(Problem("", "q"))) == 'q{"a": 0}'


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_templates_that_test_whether_there_are_tools_or_documents(name: str) -> None:
    """Without any, transformers gives them the value None."""
    template = "{{ messages[-1].content }}{% if NAME is none %} none{% else %}{{ NAME | tojson }}{% endif %}"
    prompt = ChatPrompt(template.replace("NAME", name), [], style=PromptStyle(""))
    assert text(prompt.segments(Problem("", "q"))) == "q none"


def test_a_vocabulary_may_lack_the_tokens_that_a_template_adds() -> None:
    template = "{{ bos_token + messages[-1].content + eos_token }}"
    for variables, shown in (({}, "q"), ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>q</s>")):
        prompt = ChatPrompt(template, [], style=PromptStyle(""), variables=variables)
        assert text(prompt.segments(Problem("", "q"))) == shown


def test_templates_that_mark_what_the_assistant_writes() -> None:
    block = "{% for m in messages %}{% if m.role == 'assistant' %}BEGIN{{ m.content }}END{% else %}{{ m.content }}{% endif %}|{% endfor %}"
    marked = block.replace("BEGIN", "{%- generation -%}").replace("END", "{%- endgeneration -%}")
    plain = block.replace("BEGIN", "").replace("END", "")
    for template in (marked, plain):
        turns = (Message("user", "a"), Message("assistant", "+"))
        assert text(ChatPrompt(template, [], style=PromptStyle("s")).segments(Problem("", "b", turns))) == "s|a|+|b|"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("no user message", "exactly once"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "exactly once"),
        ("{{ messages[-1].content | upper }}", "exactly once"),
        ("", "exactly once"),
        ("{{ raise_exception('only tools') }}", r"\(only tools\)"),
    ],
    ids=["missing", "twice", "changed", "empty", "refused"],
)
def test_a_template_must_show_the_question_once(template: str, reason: str) -> None:
    with pytest.raises(TemplateError, match=reason):
        ChatPrompt(template, [])


@pytest.mark.parametrize(
    "broken",
    [
        "{% if %}", "{{ undefined.attribute }}", "{{ 1 / 0 }}", "{{ messages[7].content }}", "{{ 1 | nosuchfilter }}",
        "{% include '/etc/passwd' %}", "{{ 5 | dictsort }}", "{{ 5 | xmlattr }}", "{{ 'x' | int(base=99) + none }}",
    ],
)  # fmt: skip
def test_a_broken_template_is_one_clear_error(broken: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatPrompt(SHOWS_USER + broken, [])
    assert "\n" not in caught.value.message
    assert caught.value.hint


TURNS = (Message("user", "1 + 1"), Message("assistant", "2"))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "system\nBe brief.\nuser\n1 + 1\nassistant\n2\nuser\n2 + 2\nassistant\n"),
        (SHOWS_USER, "Be brief.1 + 122 + 2"),
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}[{{ m.content }}]{% endfor %}",
            "[Be brief.\n\n1 + 1][2][2 + 2]",
        ),
        (None, "Be brief.\n\nProblem: 1 + 1\n\nSolution: 2\n\nProblem: 2 + 2\n\nSolution:"),
    ],
    ids=["system", "joined", "refuses", "none"],
)
def test_a_conversation(template: str | None, expected: str) -> None:
    segments = ChatPrompt(template, CHATML_TOKENS, style=PromptStyle("Be brief.")).segments(Problem("", "2 + 2", TURNS))
    assert "".join(segment.text for segment in segments if isinstance(segment, Plain)) == expected


def test_a_system_prompt_of_a_problem() -> None:
    prompt = ChatPrompt(CHATML, CHATML_TOKENS, style=PromptStyle("Be brief."))
    assert prompt.segments(Problem("", "1", TURNS, "Be long.")) == ChatPrompt(
        CHATML, CHATML_TOKENS, (), PromptStyle("Be long.")
    ).segments(Problem("", "1", TURNS))
    assert prompt.segments(Problem("", "1", (), " ")) == ChatPrompt(CHATML, CHATML_TOKENS, style=PromptStyle("")).segments(
        Problem("", "1")
    )
    assert controls(prompt.segments(Problem("", "1", (), "<|im_end|><|im_start|>"))) == controls(
        prompt.segments(Problem("", "1"))
    )


PARTS = [*CHATML_TOKENS, "<m>", "a", "slot", "<|", "im_", "|>"]


@settings(max_examples=30)
@given(st.lists((st.text(max_size=9) | st.sampled_from(PARTS)).map(lambda one: f"x{one}y"), min_size=3, max_size=3))
def test_no_message_adds_a_control_token(texts: list[str]) -> None:
    """Every message is kept whole."""
    prompt = ChatPrompt(CHATML + "{% if messages | length > 2 %}<m>{% endif %}", CHATML_TOKENS, ["<m>"])
    hostile = prompt.segments(Problem("", texts[2], (Message("user", texts[0]), Message("assistant", texts[1]))))
    assert controls(hostile) == controls(prompt.segments(Problem("", "2 + 2", TURNS)))
    assert all(one in text(hostile) for one in texts)
    assert sum("<m>" in segment.text for segment in hostile) == 1


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}{{ messages[-1].content }}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + SHOWS_USER,
    ],
    ids=["left out", "out of order", "refused"],
)
def test_a_template_must_show_every_message(template: str) -> None:
    prompt = ChatPrompt(template, [])
    assert "2 + 2" in text(prompt.segments(Problem("", "2 + 2")))
    with pytest.raises(TemplateError):
        prompt.segments(Problem("", "2 + 2", TURNS))


@pytest.fixture(scope="module")
def impatient() -> Iterator[Child]:
    load, memory = "arbitrage_cli.inference.rendering:load", chat_template.MAX_RENDER_BYTES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arbitrage_cli.system.child.WALL_FACTOR", 240)  # for busy machines
        with Child(load, seconds=0.25, memory=memory) as child:
            child(CHATML, "[[], {}]")
            yield child


@pytest.fixture
def hurry(impatient: Child, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chat_template, "renderer", lambda: impatient)
    tracemalloc.start()
    began = time.process_time()
    yield
    seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10  # without the child, which has a limit of its own
    assert peak < 300 << 20


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize(
    "hostile",
    [
        "{{ 'A' * 10**10 }}",
        "{{ 'A' | center(10000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ [0] * 10**10 }}",
        "{{ ('A' * 50000) ~ ('A' * 50000) ~ 'A' }}",
        "{{ 7 ** (10**10) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99999) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
        "{{ range(10**10) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{{ (('f' * 3000000) | int(base=16)) // (('f' * 1500000) | int(base=16)) }}",
        "{{ ([[1]] * 3000000) | sum(start=[]) }}",
        "{{ 'a' | center(40000) | replace(' ', 'a ')" + " | title" * 250 + " | length }}",  # slow to compile
    ],
)
def test_a_template_that_wants_too_much_is_stopped(hostile: str) -> None:
    with pytest.raises(TemplateError, match="cannot be used"):
        ChatPrompt(SHOWS_USER + hostile, [])


@pytest.mark.parametrize(
    "attempt",
    [
        '{{ lipsum.__globals__["os"].popen("touch CANARY").read() }}',
        '{{ cycler.__init__.__globals__.os.system("touch CANARY") }}',
        '{{ raise_exception.__globals__["Path"]("CANARY").touch() }}',
        '{{ "".__class__.__mro__[1].__subclasses__() }}',
        '{{ (messages | attr("__class__")).__mro__ }}',
        '{{ "{0.__class__.__mro__}".format(messages) }}',
        '{{ self.__init__.__globals__["__builtins__"]["open"]("CANARY", "w") }}',
        "{{ messages.append(messages[0]) }}",
    ],
)
def test_a_template_cannot_reach_the_machine(attempt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TemplateError):
        ChatPrompt(SHOWS_USER + attempt, [])
    assert not list(tmp_path.iterdir())


def test_the_process_that_renders_templates_ends_with_the_program() -> None:
    program = "from arbitrage_cli.inference.chat_template import render; print(render('x', [], {}))"
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("x\n", "")


@settings(max_examples=50)
@given(st.text(max_size=30) | st.lists(st.sampled_from([*CHATML_TOKENS, "<|", "im_", "|>", "slot"])).map("".join))
def test_any_question_is_kept_whole(question: str) -> None:
    segments = ChatPrompt(CHATML, CHATML_TOKENS).segments(Problem("", question))
    assert Plain(f"user\n{question.strip()}") in segments
    assert controls(segments) == ["<|im_start|>", "<|im_end|>"] * 2 + ["<|im_start|>"]
