"""Chat templates that treat thinking like those of real models: the switch, the end of the prompt, and earlier turns.

They are shortened to what they do with text; tools and images are left out.
"""

from collections.abc import Mapping

from tiny_gguf import CHATML

MESSAGES = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
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
    "switched": (
        MESSAGES
        + "<|assistant|>\n{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    ),
    "always": MESSAGES + "{{ '<|assistant|><think>\\n' }}",
    "seed": MESSAGES + "{% set think_end_token = '</seed:think>' %}{{ '<|assistant|>\\n' }}",
    "mistral": MESSAGES + "{% if false %}[THINK][/THINK]{% endif %}[/INST]",
    "none": CHATML,
}
