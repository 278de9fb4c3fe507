from typing import Any

import pytest

pytest.importorskip("jinja2")

from bittorch.models.chat_template import ChatTemplate

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße <|im_end|>"}]


def test_chatml() -> None:
    text = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGrüße <|im_end|><|im_end|>\n"
    assert ChatTemplate(CHATML).render(MESSAGES) == text + "<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render(MESSAGES, add_generation_prompt=False) == text


def test_what_templates_in_the_wild_use() -> None:
    source = """{{ bos_token }}{% set ns = namespace(n=0) %}
{% for m in messages %}
    {% if m.role == 'system' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + 1 %}
{{ ns.n }} {{ m.content | trim }} {{ {'ä': [1]} | tojson }}{% if tools is defined %} {{ tools[0].name }}{% endif %}

{% endfor %}{{ strftime_now('%Y')[:2] }}"""
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(MESSAGES, tools=[{"name": "f"}]) == (
        '<s>1 Grüße <|im_end|> {"ä": [1]} f\n20'
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% if tools is defined and tools is none and documents is none %}none{% endif %}",
        "{% for m in messages %}{% generation %}\n{{ m.content }}{% endgeneration %}\n{% endfor %}",
        "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true, indent=none) }}",
        "{{ messages[1] | tojson(ensure_ascii=true) }}",
    ],
)
def test_templates_render_as_in_transformers(source: str) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    ((expected,), _) = utils.render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True)
    assert ChatTemplate(source).render(MESSAGES) == expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [([], "there is no message"), ([{"role": "user"}], "message 0 must be"), (["hi"], "message 0 must be")],
    ids=str,
)
def test_bad_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(CHATML).render(messages)


def test_what_a_template_refuses_is_an_error() -> None:
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ range(10**9) }}", "{{ messages.nobody.there }}"]
)
def test_mistakes_of_a_template_are_errors(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses these messages: "):
        ChatTemplate(source).render(MESSAGES)


def test_a_broken_template_is_an_error() -> None:
    with pytest.raises(ValueError, match="error in line 2"):
        ChatTemplate("a\n{% if %}")


@pytest.mark.parametrize(
    "attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_templates_are_confined(attack: str) -> None:
    with pytest.raises(ValueError, match="refuses"):
        ChatTemplate(attack).render(MESSAGES)
