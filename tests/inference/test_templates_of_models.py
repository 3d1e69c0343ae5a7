"""How chat templates treat thinking: its format, the switch, the end of the prompt, and earlier turns."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from chat_templates import TEMPLATES
from writing import text

from arbitrage_cli.inference.chat_template import ChatPrompt, PromptStyle
from arbitrage_cli.inference.thinking import FORMATS, without_thoughts
from arbitrage_cli.types import Message, Problem

TURNS = (Message("user", "a"), Message("assistant", "b"))
CHAT = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
ASKED = CHAT + "b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
PLAIN = "<|system|>S<|user|>a<|assistant|>b<|user|>c"
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
    "LFM2.5-Instruct": (None, f"{ASKED}<think>\n", ASKED),
    "gemma-4": (
        False,
        f"<|turn>system\n<|think|>{GEMMA}<|channel>thought\n",
        f"<|turn>system\n{GEMMA}<|channel>thought\n<channel|>",
    ),
    "gpt-oss": (True, f"{OSS}<|channel|>analysis<|message|>", f"{OSS}<|channel|>final<|message|>"),
    "SmolLM3": (
        True,
        f"{ASKED}<think>\n",
        CHAT
        + "<think>\n\n</think>\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n",
    ),
    "Nemotron-Nano-v2": (True, f"{NANO}<think>\n\n", f"{NANO}<think>\n\n\n</think>\n\n"),
    "Nemotron-Super-v1.5": (
        None,
        "<system>S<E><user>a<E><assistant>b<E><user>c<E><assistant><think>\n",
        "<system>S<E><user>a<E><assistant>b<E><user>c<E><assistant>",
    ),
    "switched": (True, f"{PLAIN}<|assistant|>\n<think>\n", f"{PLAIN}<|assistant|>\n<think>\n\n</think>\n\n"),
    "always": (True, f"{PLAIN}<|assistant|><think>\n", f"{PLAIN}<|assistant|><think>\n\n</think>\n\n"),
    "seed": (True, f"{PLAIN}<|assistant|>\n<seed:think>", f"{PLAIN}<|assistant|>\n<seed:think>\n\n</seed:think>\n"),
    "mistral": (True, f"{PLAIN}[/INST][THINK]", f"{PLAIN}[/INST][THINK]\n\n[/THINK]"),
    "none": (False, f"{ASKED}<think>\n", ASKED),
}
OWN_FORMATS = {"gemma-4": "channel", "gpt-oss": "harmony", "seed": "seed", "mistral": "mistral"}
ALWAYS = ("Nemotron-Nano-v2", "always")  # thinking cannot be turned off


@pytest.mark.parametrize("name", PROMPTS)
def test_a_conversation_with_and_without_thoughts(name: str) -> None:
    by_itself, thoughts, answer = PROMPTS[name]
    prompt = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S"))
    assert prompt.think_format is FORMATS[OWN_FORMATS.get(name, "think")]
    assert (prompt.thinks_by_itself, prompt.always_thinks) == (by_itself, name in ALWAYS)
    assert text(prompt.segments(Problem("", "c", TURNS, thinks=True))) == thoughts
    assert text(prompt.segments(Problem("", "c", TURNS))) == answer


@pytest.mark.parametrize("name", ["LFM2.5-Instruct", "Nemotron-Super-v1.5", "DeepSeek-V3.1"])
def test_who_wants_no_thoughts_gets_none_of_a_model_whose_template_does_not_show_it(name: str) -> None:
    by_itself, _, answer = PROMPTS[name]
    without = answer + ("" if by_itself is False else "<think>\n\n</think>\n\n")
    prompt, problem = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S")), Problem("1", "c", TURNS)
    assert [text(prompt.for_problem(replace(problem, thinks=thinks))) for thinks in (None, False)] == [answer, without]


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


@pytest.mark.parametrize(("name", "off"), [("GLM-4.7", "</think>"), ("SmolLM3", "<think>\n\n</think>\n")])
def test_variables_of_a_pair_switch_thoughts_off(name: str, off: str) -> None:
    prompt = ChatPrompt(TEMPLATES[name], [], style=PromptStyle("S"), variables={"enable_thinking": False})
    assert prompt.thinks_by_itself is False
    assert text(prompt.segments(Problem("", "c"))).endswith(off)
