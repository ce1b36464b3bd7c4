"""Chat templates of model files: rendered as people expect, bounded whatever they do."""

import resource
import sys

import pytest

from h2qd.wire.workers import Turn
from h2qd.worker import template
from h2qd.worker.engine import EngineError
from h2qd.worker.template import ChatTemplate

TURNS = [Turn("user", "Hi {{ 1 + 1 }}"), Turn("assistant", "Hello"), Turn("user", "Bye")]

GEMMA = """{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate") }}
    {%- endif %}
    {{- '<start_of_turn>' + message.role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""


def render(source: str, turns: list[Turn] = TURNS) -> str:
    return ChatTemplate(source.encode()).render(turns, bos="<bos>", eos="<eos>")


def test_a_conversation_is_rendered_and_its_text_is_no_template() -> None:
    assert render(GEMMA) == (
        "<bos><start_of_turn>user\nHi {{ 1 + 1 }}<end_of_turn>\n<start_of_turn>assistant\nHello<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )


def test_what_templates_are_used_to_is_there() -> None:
    assert render(
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    ) == ('{"role": "user", "content": "Hi {{ 1 + 1 }}"}')
    assert len(render("{{ strftime_now('%Y-%m-%d') }}")) == len("2000-01-31")
    assert (
        render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}")
        == "3"
    )
    assert render("{{ eos_token }}{% if tools %}tools{% endif %}{{ undefined_name }}") == "<eos>"


def code_of(source: str) -> str:
    with pytest.raises(EngineError) as caught:
        render(source)
    return caught.value.code


def test_a_refusal_of_the_template_is_told() -> None:
    with pytest.raises(EngineError, match="roles must alternate") as caught:
        render(GEMMA, [Turn("assistant", "Hello")])
    assert caught.value.code == "invalid_messages"


@pytest.mark.parametrize("source", ["{{ messages[7].content }}", "{{ 1 / 0 }}", "{{ messages[0].content + 1 }}"])
def test_a_template_that_fails_blames_the_messages(source: str) -> None:
    assert code_of(source) == "invalid_messages"


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{", "{% nonsense %}", "{{ x|nofilter }}", "(" * 5000 + "{{" + "(" * 5000]
)
def test_a_template_that_is_none_is_unusable(source: str) -> None:
    assert code_of(source) == "no_chat_template"


def test_bytes_and_sizes_are_checked() -> None:
    for source in (b"\xff", b"x" * (template.SOURCE_BYTES_MAX + 1)):
        with pytest.raises(EngineError) as caught:
            ChatTemplate(source)
        assert caught.value.code == "no_chat_template"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    assert code_of(source) == "invalid_messages"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{% for a in range(9999) %}{{ m() }}{% endfor %}{% endmacro %}{{ m() }}",
        "{% set x = 'x' * 1000000000 %}{{ x }}",
        "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{% for i in range(99) %}{{ 'x' * 1000000 }}{% endfor %}",
        "{{ range(99999) | list * 99999 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}",
        "{{ range(100000000) }}",
        "{{ strftime_now('%999999999d' * 9) }}",
    ],
)
def test_a_hostile_template_ends(source: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    tracing = sys.gettrace()
    assert code_of(source) in {"no_chat_template", "invalid_messages"}
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert sys.gettrace() is tracing


def test_a_long_conversation_is_within_the_bounds() -> None:
    turns = [Turn("assistant" if n % 2 else "user", "word " * 200) for n in range(2047)]
    assert render(GEMMA, turns).count("<end_of_turn>") == 2047
