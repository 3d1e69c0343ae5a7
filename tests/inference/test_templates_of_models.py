"""Chat templates that do what those of real models do about thoughts: the switch, the end of the prompt, and what becomes of earlier turns.

Each is shortened to what it does with text; tools and images are left out.
"""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from writing import text

from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.thinking import without_thoughts
from arbitrage_cli.types import Message, Problem

TURNS = (Message("user", "a"), Message("assistant", "b"))
STRIPPED = "{% set text = m.content.split('</think>')[-1].strip() if '</think>' in m.content else m.content %}"

TEMPLATES: Mapping[str, str] = {
    "GLM-4.6": (
        "[gMASK]<sop>{% for m in messages %}{% if m.role == 'user' %}<|user|>\n{{ m.content }}"
        "{{ '/nothink' if enable_thinking is defined and not enable_thinking else '' }}"
        "{% elif m.role == 'assistant' %}" + STRIPPED + "<|assistant|>\n<think></think>\n{{ text }}"
        "{% else %}<|{{ m.role }}|>\n{{ m.content }}{% endif %}{% endfor %}"
        "<|assistant|>{{ '\\n<think></think>' if enable_thinking is defined and not enable_thinking else '' }}"
    ),
    "GLM-4.7": (
        "[gMASK]<sop>{% for m in messages %}{% if m.role == 'assistant' %}" + STRIPPED + "<|assistant|></think>{{ text }}"
        "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}{% endfor %}"
        "<|assistant|>{{ '</think>' if enable_thinking is defined and not enable_thinking else '<think>' }}"
    ),
    "DeepSeek-V3.1": (
        "{% if thinking is not defined %}{% set thinking = false %}{% endif %}"
        "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<U>{{ m.content }}"
        "{% else %}" + STRIPPED + "<A></think>{{ text }}</s>{% endif %}{% endfor %}"
        "<A>{{ '<think>' if thinking else '</think>' }}"
    ),
    "LFM2.5-Instruct": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + STRIPPED + "{{ text }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\\n' }}"
    ),
    "gemma-4": (
        "{% set on = enable_thinking is defined and enable_thinking %}{% set first = messages[0] %}"
        "{% if on or first.role == 'system' %}{{ '<|turn>system\\n' }}{{ '<|think|>' if on else '' }}"
        "{{ first.content if first.role == 'system' else '' }}{{ '<turn|>\\n' }}{% endif %}"
        "{% for m in messages if m.role != 'system' %}<|turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content.split('<channel|>')[-1] }}<turn|>\n{% endfor %}{{ '<|turn>model\\n' }}"
        "{{ '' if on else '<|channel>thought\\n<channel|>' }}"
    ),
    "gpt-oss": (
        "{% if reasoning_effort is not defined %}{% set reasoning_effort = 'medium' %}{% endif %}"
        "<|start|>system<|message|>Reasoning: {{ reasoning_effort }}<|end|>"
        "{% for m in messages %}{% if m.role == 'system' %}<|start|>developer<|message|>{{ m.content }}<|end|>"
        "{% elif m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
        "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant"
    ),
    "SmolLM3": (
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
        "{% set skips = '' if enable_thinking else '<think>\\n\\n</think>\\n' %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ skips if m.role == 'assistant' else '' }}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{{ '<|im_start|>assistant\\n' }}{{ skips }}"
    ),
    "Nemotron-Nano-v2": (
        "{% set ns = namespace(on=true) %}{% for m in messages %}{% if '/no_think' in m.content %}{% set ns.on = false %}{% endif %}"
        "{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}" + STRIPPED + "<A>\n{{ text }}\n<E>\n"
        "{% else %}<{{ m.role }}>\n{{ m.content }}\n{% endif %}{% endfor %}"
        "{{ '<A>\\n' }}{{ '<think>\\n\\n' if ns.on else '<think></think>' }}"
    ),
    "Nemotron-Super-v1.5": (
        "{% set enable_thinking = '/no_think' not in messages[0].content %}"
        "{% for m in messages %}<{{ m.role }}>" + STRIPPED + "{{ text }}<E>{% endfor %}"
        "<assistant>{{ '' if enable_thinking else '<think>\\n\\n</think>\\n\\n' }}"
    ),
}
CHAT = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
GLM_TURN = "/nothink<|assistant|>\n<think></think>"
GEMMA = "S<turn|>\n<|turn>user\na<turn|>\n<|turn>model\nb<turn|>\n<|turn>user\nc<turn|>\n<|turn>model\n"
OSS = (
    "<|start|>system<|message|>Reasoning: medium<|end|><|start|>developer<|message|>S<|end|><|start|>user<|message|>a<|end|>"
    "<|start|>assistant<|channel|>final<|message|>b<|end|><|start|>user<|message|>c<|end|><|start|>assistant"
)
NANO = "<system>\nS\n<user>\na\n<A>\nb\n<E>\n<user>\nc\n<A>\n"

PROMPTS: Mapping[str, tuple[bool | None, str, str]] = {
    "GLM-4.6": (
        True,
        "[gMASK]<sop><|system|>\nS<|user|>\na<|assistant|>\n<think></think>\nb<|user|>\nc<|assistant|><think>\n",
        f"[gMASK]<sop><|system|>\nS<|user|>\na{GLM_TURN}\nb<|user|>\nc{GLM_TURN}",
    ),
    "GLM-4.7": (
        True,
        "[gMASK]<sop><|system|>S<|user|>a<|assistant|></think>b<|user|>c<|assistant|><think>",
        "[gMASK]<sop><|system|>S<|user|>a<|assistant|></think>b<|user|>c<|assistant|></think>",
    ),
    "DeepSeek-V3.1": (False, "<s>S<U>a<A></think>b</s><U>c<A><think>", "<s>S<U>a<A></think>b</s><U>c<A></think>"),
    "LFM2.5-Instruct": (
        None,
        CHAT + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n",
        CHAT + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma-4": (
        False,
        f"<|turn>system\n<|think|>{GEMMA}<|channel>thought\n",
        f"<|turn>system\n{GEMMA}<|channel>thought\n<channel|>",
    ),
    "gpt-oss": (True, f"{OSS}<|channel|>analysis<|message|>", f"{OSS}<|channel|>final<|message|>"),
    "SmolLM3": (
        True,
        CHAT + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n",
        CHAT
        + "<think>\n\n</think>\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "Nemotron-Nano-v2": (True, f"{NANO}<think>\n\n", f"{NANO}<think>\n\n\n</think>\n\n"),
    "Nemotron-Super-v1.5": (
        None,
        "<system>S<E><user>a<E><assistant>b<E><user>c<E><assistant><think>\n",
        "<system>S<E><user>a<E><assistant>b<E><user>c<E><assistant>",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_conversation_with_and_without_thoughts(name: str) -> None:
    by_itself, thoughts, answer = PROMPTS[name]
    prompt = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S"))
    assert prompt.thinks_by_itself is by_itself
    assert text(prompt.segments(Problem("", "c", TURNS, thinks=True))) == thoughts
    assert text(prompt.segments(Problem("", "c", TURNS))) == answer


@pytest.mark.parametrize("name", ["LFM2.5-Instruct", "Nemotron-Super-v1.5", "DeepSeek-V3.1"])
def test_who_wants_no_thoughts_gets_none_of_a_model_whose_template_does_not_show_it(name: str) -> None:
    by_itself, _, answer = PROMPTS[name]
    without = answer + ("" if by_itself is False else "<think>\n\n</think>\n\n")
    prompt, problem = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S")), Problem("1", "c", TURNS)
    assert [text(prompt.for_problem(replace(problem, thinks=thinks))) for thinks in (None, False)] == [answer, without]


def test_an_effort_that_a_template_refuses_is_left_out() -> None:
    template = "{% if reasoning_effort == 'low' %}{{ raise_exception('no') }}{% endif %}{{ messages[-1].content }}:"
    prompt = ChatPrompt(template, [], style=PromptStyle(""))
    assert not prompt.supports_effort
    assert text(prompt.for_problem(Problem("1", "c", effort="low"))) == "c:"


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<think>\nhm\n</think>\n\n42", "42"),
        ("[THINK]hm[/THINK]42", "42"),
        ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>42", "42"),
        ("<|channel|>analysis<|message|>hm<|end|>\n42", None),  # the answer has no mark of its own: it is not lost
        ("<think> is a tag", None),
        ("42 </think>", None),
    ],
)
def test_thoughts_in_an_earlier_answer_are_dropped(said: str, answer: str | None) -> None:
    assert without_thoughts(said) == (said if answer is None else answer)


def test_a_template_of_an_unknown_format_is_told_to_skip_thoughts() -> None:
    template = "{{ messages[-1].content }}<|open|>{{ 'think' if thinking | default(true) else 'response' }}<|sep|>"
    prompt = ChatPrompt(template, [], style=PromptStyle(""))
    assert (prompt.own_format, prompt.thinks_by_itself) == (None, False)
    assert text(prompt.segments(Problem("", "c", thinks=False))) == "c<|open|>response<|sep|>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_effort_is_for_templates_that_ask_for_more_or_less_thought(name: str) -> None:
    prompt = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S"))
    assert prompt.supports_effort is (name == "gpt-oss")
    assert ("Reasoning: high" in text(prompt.segments(Problem("", "c", effort="high")))) is prompt.supports_effort


@pytest.mark.parametrize(("name", "off"), [("GLM-4.7", "</think>"), ("SmolLM3", "<think>\n\n</think>\n")])
def test_variables_of_a_pair_switch_thoughts_off(name: str, off: str) -> None:
    prompt = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S"), variables={"enable_thinking": False})
    assert prompt.thinks_by_itself is False
    assert text(prompt.segments(Problem("", "c"))).endswith(off)
