"""Grammars as text, as plain rules, and as text again: all of one language."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2qd.worker.gbnf import Characters, Element, GrammarError, Rule, read, write


def matches(rules: list[Rule], text: str) -> bool:
    """Whether the grammar's root matches all of `text`: every way is tried."""

    def ends(element: Element, start: int) -> set[int]:
        if isinstance(element, int):
            return {end for sequence in rules[element] for end in ends_of(sequence, start)}
        return {start + 1} if start < len(text) and fits(element, ord(text[start])) else set()

    def ends_of(sequence: tuple[Element, ...], start: int) -> set[int]:
        places = {start}
        for element in sequence:
            places = {end for place in places for end in ends(element, place)}
        return places

    return len(text) in ends(0, 0)


def fits(characters: Characters, code: int) -> bool:
    inside = any(first <= code <= last for first, last in characters.ranges)
    return inside != characters.inverted


# Pairs of a GBNF expression and the regular expression of the same language.
_leaves = st.sampled_from(
    [
        ('"a"', "a"),
        ('"ab"', "(?:ab)"),
        ("[ab]", "[ab]"),
        ("[^a]", "[^a]"),
        ("[a-c]", "[a-c]"),
        (".", "(?s:.)"),
        ('"\\x61\\n"', "(?:a\\n)"),
        ("[\\]\\-]", "[\\]\\-]"),
    ]
)


def _larger(inner: st.SearchStrategy[tuple[str, str]]) -> st.SearchStrategy[tuple[str, str]]:
    return st.one_of(
        st.tuples(inner, inner).map(lambda two: (f"{two[0][0]} {two[1][0]}", f"{two[0][1]}{two[1][1]}")),
        st.tuples(inner, inner).map(lambda two: (f"({two[0][0]} |\n {two[1][0]})", f"(?:{two[0][1]}|{two[1][1]})")),
        st.tuples(inner, st.sampled_from(["?", "{2}", "{1,2}", "{0,3}"])).map(
            lambda two: (f"({two[0][0]}){two[1]}", f"(?:{two[0][1]}){two[1]}")
        ),
        st.tuples(_leaves, st.sampled_from(["*", "+", "{2,}"])).map(
            lambda two: (f"{two[0][0]}{two[1]}", f"{two[0][1]}{two[1]}")
        ),
    )


expressions = st.recursive(_leaves, _larger, max_leaves=6)


@given(expression=expressions, text=st.text(alphabet="abc\n]-", max_size=6))
def test_a_grammar_matches_what_the_regular_expression_does(expression: tuple[str, str], text: str) -> None:
    gbnf, pattern = expression
    rules = read(f"root ::= {gbnf}")
    expected = re.fullmatch(pattern, text) is not None
    assert matches(rules, text) == expected
    assert matches(read(write(rules)), text) == expected


def test_rules_refer_to_each_other_in_any_order() -> None:
    rules = read('# a list\nitem ::= [0-9]+ # digits\nroot ::=\n  "[" (item ("," item)*)? "]"\n\n')
    assert matches(rules, "[]")
    assert matches(rules, "[1,22,333]")
    assert not matches(rules, "[1,]")


def test_names_of_the_text_are_not_written_back() -> None:
    assert set(
        re.findall(r"[a-zA-Z0-9-]+(?= ::=)", write(read('root ::= root-1 x-2\nroot-1 ::= "a"\nx-2 ::= "b"')))
    ) == {
        "root",
        "r1",
        "r2",
    }


def test_what_is_written_has_no_parentheses_and_no_repetition() -> None:
    assert not set("(){}*+?") & set(write(read('root ::= (("a" | "b"){2,5} "(*)"?)* "x"+')))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rule is named 'root'"),
        ('rot ::= "a"', "no rule is named 'root'"),
        ("root ::= other", "no rule is named 'other'"),
        ('root ::= "a"\nroot ::= "b"', "two rules are named 'root'"),
        ('root := "a"', "line 1: '::=' expected"),
        ('root ::= "a', "a character expected, not the end"),
        ("root ::= [a", "a character expected, not the end"),
        ("root ::= []", "a character expected"),
        ("root ::= [b-a]", "the range 'b'-'a' is empty"),
        ('root ::= "\\q"', "an escape"),
        ('root ::= "\\x4"', "an escape"),
        ('root ::= "\\UFFFFFFFF"', "a character up to"),
        ('root ::= ("a"', "')' expected, not the end"),
        ('root ::= "a")', "the end of the line expected"),
        ("root ::= *", "an item before a repetition"),
        ('root ::= "a"{2,1}', "repeats less than the least"),
        ('root ::= "a"{1000000}', "over 2000 times"),
        ('root ::= "a"{99999999999999999999999}', "over 2000 times"),
        ('root ::= "a"{,3}', "a number expected"),
        ('root ::= "a"{2', "'}' expected"),
        ("root ::= <[1]>", "expected, not '<[1]>'"),
        ('root ::= "a"\0', "expected, not"),
        ('\nroot ::= "a"\n!', "line 3: a rule's name expected"),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_place(text: str, reason: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(reason)) as caught:
        read(text)
    assert str(caught.value).startswith("cannot ")


@pytest.mark.parametrize(
    "text",
    [
        'root ::= "' + "a" * 60_000 + '"{2000}',
        "root ::= " + '"a"{2000} ' * 6000,
        "root ::= " + "((((" * 10 + '"a"' + "){2000}" * 40,
        "root ::= " + "[ab]{0,2000}" * 5000,
    ],
)
def test_an_expansion_is_bounded_before_it_happens(text: str) -> None:
    with pytest.raises(GrammarError, match=r"expands to over 100000 elements|cannot"):
        read(text)


def test_deep_parentheses_need_no_stack() -> None:
    deep = 20_000
    assert len(read("root ::= " + "(" * deep + '"a"' + ")" * deep)) == deep + 1
