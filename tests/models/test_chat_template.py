import importlib.metadata
import resource
import threading
from typing import Any

import pytest

pytest.importorskip("jinja2")

from bittorch.models.chat_template import LONGEST_SOURCE, ChatTemplate
from tests import helpers

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
    [([], "there is no message"), ([{"content": "hi"}], "message 0 must be"), (["hi"], "message 0 must be")],
    ids=str,
)
def test_bad_messages(messages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(CHATML).render(messages)


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": None, "tool_calls": []}])
def test_messages_without_content_render_as_in_transformers(message: dict[str, Any]) -> None:  # FIELD L14
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    body = "[{{ m.role }}{% if m.content %}: {{ m.content }}{% endif %}|{{ m['content'] }}]"
    source = "{% for m in messages %}" + body + "{% endfor %}"
    messages = [*MESSAGES, message]
    ((expected,), _) = utils.render_jinja_template([messages], chat_template=source)
    assert ChatTemplate(source).render(messages, add_generation_prompt=False) == expected


def test_what_a_template_refuses_is_an_error() -> None:
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(MESSAGES)


@pytest.mark.parametrize(
    "source", ["{{ 1 // 0 }}", "{{ 'a' + 1 }}", "{{ range(10**9) }}", "{{ messages.nobody.there }}"]
)
def test_mistakes_of_a_template_are_errors(source: str) -> None:
    with pytest.raises(ValueError, match="the chat template refuses these messages: "):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "error in line 2"),
        ("{{ 'a' | wordwrap }}", "error in line 1: No filter named 'wordwrap'"),
        ("x" * (LONGEST_SOURCE + 1), f"has {LONGEST_SOURCE + 1} characters, at most {LONGEST_SOURCE} are allowed"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be compiled: maximum recursion"),
        ("{% for i in x %}" * 30 + "{% endfor %}" * 30, "cannot be compiled: too many"),
    ],
    ids=range(5),
)
def test_a_broken_template_is_an_error_when_it_is_used(source: str, message: str) -> None:  # FIELD R9
    template = ChatTemplate(source)
    with pytest.raises(ValueError, match=message):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_templates_are_confined(attack: str) -> None:
    with pytest.raises(ValueError, match="refuses"):
        ChatTemplate(attack).render(MESSAGES)


# Each makes something of a size or number without limit, in another way.
GROWING = "{% set ns = namespace(x='aa', y=['a'], z=['a']) %}{% for a in range(60) %}"
PILED = GROWING + "{% set ns.y = [ns.y, ns.y] %}{% set ns.z = [ns.z, ns.z] %}{% endfor %}"
LONG = "{% set s = 'a' * 4000000 %}"
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}"
TWICE = "{% endfor %}" * 2
ATTACKS = [
    "{{ 'a' * 1500000000 }}",
    "{{ 1500000000 * 'a' }}",
    "{{ [0] * 1500000000 }}",
    "{{ 'a'.ljust(1500000000) }}",
    "{{ 'a'.zfill(width=1500000000) }}",
    "{{ 'a' | center(1500000000) }}",
    "{{ '%1500000000d' % 1 }}",
    "{{ '%*d' % (1500000000, 1) }}",
    "{{ '%1500000000d' | format(1) }}",
    "{{ '{:>1500000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 1500000000) }}",
    "{{ ('{:>1500000000}' | attr('format'))(1) }}",
    "{{ ('{0}' * 1000).format('a' * 100000) }}",
    "{{ ('%(a)s' * 1000) % {'a': 'a' * 100000} }}",
    "{{ 10 ** 1500000000 }}",
    LONG + "{{ s.replace('a', s) }}",
    LONG + "{{ s | replace('a', s) }}",
    LONG + "{{ s.join(s) }}",
    LONG + "{{ s | join(s) }}",
    LONG + "{{ s.split('a') }}",
    LONG + "{{ s | list }}",
    LONG + FOREVER + "{% if 'b' in s %}{% endif %}" + TWICE,
    LONG + FOREVER + "{% set t = s[1:] %}" + TWICE,
    "{{ ('a\n' * 4000000) | indent(1000000) }}",
    "{{ range(90000) | list | tojson(indent=1000000) }}",
    "{{ range(90000) | list | tojson(separators=('a' * 1000000, ':')) }}",
    "{{ (1).to_bytes(1500000000, 'big') }}",
    "{{ 'a'.expandtabs(1500000000) }}",
    "{{ ('f' * 4000000) | int(base=16) }}",
    "{{ ([[1]] * 100000) | sum(start=[]) }}",
    GROWING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    GROWING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    PILED + "{{ ns.y }}",
    PILED + "{{ ns }}",
    PILED + "{{ ns.y | tojson }}",
    PILED + "{{ ns.y | string | length }}",
    PILED + "{{ '%s' % ns.y }}",
    PILED + "{{ '' ~ ns.y }}",
    PILED + "{{ ns.y == ns.z }}",
    PILED + "{{ ns.y is eq(ns.z) }}",
    "{% filter replace('a', 'b' * 1000000) %}" + "a" * 100000 + "{% endfilter %}",
    "{% set y %}{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}{% endset %}",
]
ENDLESS = [
    FOREVER + TWICE,
    "{% for i in range(99999) %}{% for j in range(99999) if false %}" + TWICE,
    FOREVER + "x" * 10000 + TWICE,
    "{% block b %}{% endblock %}" + FOREVER + "{% set t = self.b() %}" + TWICE,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
    "{% for i in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | map('string') | map('length') | sum }}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | select('none') | list }}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' in range(99999) }}{% endfor %}",
]


REFUSED = r"the chat template refuses these messages: it (takes|calls|formats|computes|adds)"


@helpers.each("source", ATTACKS, ids=[source[:60] for source in ATTACKS])
def test_a_template_makes_nothing_large(source: str) -> None:  # FIELD R9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=REFUSED):
        ChatTemplate(source).render(MESSAGES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("source", ENDLESS, ids=[source[:60] for source in ENDLESS])
def test_a_template_ends(monkeypatch: pytest.MonkeyPatch, source: str) -> None:  # FIELD R9
    monkeypatch.setattr("bittorch.models.template_sandbox.LEAST", 1 << 20)
    with pytest.raises(ValueError, match=REFUSED):
        ChatTemplate(source).render(MESSAGES)


CONVERSATION = [{"role": "system", "content": " Be é 世.\n"}] + [
    message
    for i in range(3)
    for message in (
        {"role": "user", "content": f"  q{i} <b>\n\nx"},
        {"role": "assistant", "content": f"<think>\nhm {i}\n</think>\n\na{i}", "calls": [{"n": i, "x": None}]},
    )
]
LLAMA = """{{- bos_token }}
{%- if not date is defined %}
    {%- set date = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|system|>" + system + date }}{% if tools is not none %}{{ tools | tojson(indent=4) }}{% endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'calls' in message) %}
        {{- '<|' + message['role'] + '|>\n\n' + message['content'] | trim + '<|end|>' }}
    {%- elif 'calls' in message %}
        {%- for call in message.calls %}{{ call.n ~ ":" ~ (call | tojson) }}{% endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n\n' }}{%- endif %}"""
QWEN = """{%- macro content_of(content) %}{{- content }}{%- endmacro %}
{%- set ns = namespace(search=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.search and message.role == "user" and not message.content.startswith('<tool>') %}
        {%- set ns.search = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\n') %}
            {%- set thought = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and thought)) %}
            {{- '<|im_start|>' ~ message.role ~ '\n<think>\n' ~ thought ~ content }}
        {%- else %}{{- '<|im_start|>' + message.role + '\n' + content_of(content) }}{%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}"""
EVERYTHING = """{% macro outer() %}<{{ caller('k') }}>{% endmacro %}
{%- set rest = messages | rejectattr('role', 'equalto', 'system') | list %}
{%- set user = messages | selectattr("role", "equalto", "user") | list %}
{%- for m in rest if m.content %}{{ 'L' if m == user[-1] }}{{ loop.length }}{{ loop.revindex }}
{{- loop.previtem.role if loop.previtem is defined }}{% if loop.changed(m.role) %}c{% endif %}{% else %}none{% endfor %}
{% for m in [] %}{% else %}none{% endfor %}
{% for c in 'abc' %}{% if c == 'b' %}{% continue %}{% endif %}{{ c }}{% endfor %}
{{ messages | map(attribute='role') | join(', ') }} {{ messages | map(attribute='content') | map('length') | sum }}
{{ "%s-%03d" | format("a", 7) }} {{ '%s|%5.1f' % ('a', 2) }} {{ '{:>5}|{}'.format('a', 2) }}
{{ messages | groupby('role') | length }}
{{ dict(a=1) | items | list }} {{ 'abc' | replace('b', 'x') }} {{ 'a,b'.split(',') | last }}
{{ 'aXb' | lower | capitalize | title }}
{{ [3, 1, 2] | sort | join }} {{ {'b': 1, 'a': 2} | dictsort }} {{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ 7 / 2 }}
{{ -3 | abs }}
{{ 'x' * 3 }} {{ 1 in [1, 2] }} {{ 1 < 2 <= 2 }} {{ 'a' if false }} {{ 'line\nb' | indent(2) }} {{ 'a' | center(5) }}
{{ x is undefined }} {{ x | default('d') }} {{ (messages | first).role }} {{ messages | tojson(indent=2) }}
{{ [1, 2] + [3] }}
{% filter upper %}in{% endfilter %}{% set z %}q{{ 1 }}{% endset %}{{ z }}{% call(a) outer() %}{{ a }}{% endcall %}
{{ 'abcdef'[1:-1:2] }} {{ messages[-2:] | length }} {{ [1, [2]] | string }} {{ 'b' ~ 1 ~ none ~ x }}
{{ 'é' | urlencode }} {{ '12' | int }}"""


@pytest.mark.parametrize("source", [LLAMA, QWEN, EVERYTHING], ids=["llama", "qwen", "everything"])
@pytest.mark.parametrize("tools", [None, [{"name": "f", "parameters": {"a": ["é", 1, None, True]}}]], ids=["", "tools"])
def test_counting_changes_no_text(source: str, tools: Any) -> None:  # FIELD R9
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    ((expected,), _) = utils.render_jinja_template(
        [CONVERSATION], chat_template=source, tools=tools, add_generation_prompt=True, **names
    )
    assert ChatTemplate(source, names).render(CONVERSATION, tools=tools) == expected


def test_long_conversations_may_take_more_work() -> None:  # FIELD R9
    source = "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    messages = [{"role": "user", "content": "abcd" * 250_000}]
    assert ChatTemplate(source).render(messages) == messages[0]["content"]


def test_templates_render_in_several_threads() -> None:
    template, texts = ChatTemplate("{% for i in range(2000) %}{{ messages[0].content }}{% endfor %}"), []

    def render(text: str) -> None:
        texts.append(template.render([{"role": "user", "content": text}]))

    threads = [threading.Thread(target=render, args=(text,)) for text in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == [text * 2000 for text in "abcd"]


@pytest.mark.parametrize("version", ["3.1.5", "3.1", "2.11.3", "3.0.9rc1"])
def test_an_old_jinja_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:  # FIELD R8
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ImportError, match=rf"jinja2 3\.1\.6 or later, got {version}.*pip install 'jinja2>=3\.1\.6'"):
        ChatTemplate(CHATML).render(MESSAGES)


@pytest.mark.parametrize("version", ["3.1.6", "3.2.0", "3.1.10", "4.0"])
def test_a_newer_jinja_is_not(monkeypatch: pytest.MonkeyPatch, version: str) -> None:  # FIELD R8
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert ChatTemplate(CHATML).render(MESSAGES)


def test_a_missing_jinja_is_named(monkeypatch: pytest.MonkeyPatch) -> None:  # FIELD R8
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"need jinja2; install bittorch\[lm\]"):
        ChatTemplate(CHATML).render(MESSAGES)


@pytest.mark.parametrize("option", ["default", "cls", "object_hook", "skipkeys"])
def test_tojson_takes_no_code(option: str) -> None:  # FIELD R8
    with pytest.raises(ValueError, match=f"unexpected keyword argument '{option}'"):
        ChatTemplate(f"{{{{ messages | tojson({option}='{{0.__globals__}}'.format) }}}}").render(MESSAGES)
