"""Plain English: the part of it that a program can check.

Docstrings, comments, messages, help texts and pages have many readers whose first language is not English. This test
finds constructions that have to be read twice. It does not find all of them: a text that passes may be hard to read.

In the package and in texts for users, everything is checked. Of tests, only docstrings and comments are, and their
functions may be described in any form except a question. To see the findings of one path, run
``python -m tests.test_language pupsourcing_sa/store``.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]

#: No docstring begins with one of these: the reader learns only at the end of the sentence what it is about.
_QUESTION_WORDS = """
    What Whatever Whether Who Whoever Whom Whose How However Where Wherever When Whenever Which Whichever Why
    That Those While Although Also As Else Nobody Somebody Everybody
"""
QUESTION_WORDS = frozenset(_QUESTION_WORDS.split())
#: In the package, the docstring of a function begins with an imperative verb: "Return the head", not "The head".
#: A property is named by a noun phrase.
_NO_VERBS = """
    A After All An And At Before Because Between Both By Each Either Else Enough Every Everything For From Highest If In
    It Its Less Lowest More My Neither No Not Nothing Of On Once One Or Other Our Since So Some Something Such The Their
    Them Then There They This To Too Until Up We With Without You Your
"""
NO_VERBS = frozenset(_NO_VERBS.split())
#: Imperative verbs that end in a single s. Any other such word is a plural or the third person: "Gets …".
VERBS_IN_S = frozenset({"Bias", "Focus"})
#: A class or module is named by a noun phrase: "Runner of …", not "Runs …".
_THIRD_PERSON = """
    Calls Complains Executes Finds Follows Gives Holds Keeps Listens Looks Makes Passes Reads Returns Runs Starts Tells
    Waits Writes
"""
THIRD_PERSON = frozenset(_THIRD_PERSON.split())

#: What not to write, as a regular expression in which a space is any white space, and what to write instead.
PHRASES = {
    r"(somebody|someone) else( than)?": "name the role: another transaction, another node, the operator",
    r"(somebody|nobody|anybody|everybody)": "name the role: another transaction, no node, the operator, each node",
    r"whoever": "name the role: the node that …",
    r"those who": "users who …",
    r"else than": "other than",
    r"any more(?! (than|\w+s\b))": "no longer",
    r"anew": "again",
    r"for ever": "until it succeeds; never (with a negation)",
    r"at the (most|least)": "at most, at least",
    r"(take|takes|taken|took|taking)( \w+)? for dead": "presume dead",
    r"as by": "such as",
    r"complain(s|ed|ing|t|ts)?": "warn, report, refuse",
    r"(is|are|was|were) to be": "say who does it: the worker retries the event; or: must be",
    r"so (many|few|much|long)": "name the number or the time; as long as",
    r"also (when|if|where|after|while|with|without|for those|in those)": "even when, even if; or: it also …",
    r"(goes|go|went|going) on": "continue; the name of what happens",
    r"in the meantime": "meanwhile",
    r"as it is(?=[.,;:)]|$)": "unchanged",
    r"told": "reported, logged, notified",
    r"tells": "returns, shows, reports, explains",
    r"(hear|hears|heard) (of|from)": "notice, receive a heartbeat",
    r"(take|takes|took) notice": "record, notice",
    r"(befall|befalls|befell|befallen)": "happen to",
    r"(that|which|it|this) is none": "not a …",
    r"(mend|mends|mended|mending)": "fix, repair",
    r"gives(?! (up|back|way))": "returns, yields, has",
    r"need be": "if necessary",
    r"(stand|stands|standing|stood) still": "is stalled, is paused, hangs",
    r"(crew|hire|hires|hired|dismiss|dismisses|dismissed)": "processor pool, start, stop",
    r"(head of the log|log's head)": "last position: the head is the aggregate's row",
    r"(will|to|and) try again": "retry",
    r"(tried|tries) again": "retried, retries",
    r"(see|sees) to it": "ensure, make sure",
    r"all the same": "nevertheless, anyway",
    r"known to no": "no running node has …",
    r"such a one": "one",
    r"of which that": "split the sentence",
    r"(who|which) of them": "name them",
    r"than are wanted": "name the number",
    r"the one time|the other time": "split the sentence",
    r"(has|have|had) come to(?! mean)": "has reached",
    r"(of ours|of theirs)": "our, their",
    r"whose fault": "the cause",
    r"in the place of": "instead of",
    r"to speak": "to send a heartbeat",
    r"(look|looks|looked) after": "manage, watch",
    r"ever less": "less and less",
}
_PHRASES = {
    re.compile(r"(?<!\w)(?:" + phrase.replace(" ", r"\s+") + r")(?!\w)", re.IGNORECASE): remedy
    for phrase, remedy in PHRASES.items()
}
_CODE = re.compile(r"``[^`]+``|`[^`\n]+`|\]\([^)\s]*\)|https?://\S+")


class Text(NamedTuple):
    """A piece of prose and the line on which it begins."""

    line: int
    text: str


class Finding(NamedTuple):
    path: str
    line: int
    problem: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.problem}"


def _comments(source: str) -> Iterator[Text]:
    """Comments; consecutive lines are one text, because a phrase may be broken across them."""
    lines: list[str] = []
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, text = token.start[0], token.string.lstrip("#:! ")
        if lines and line != last + 1:
            yield Text(first, "\n".join(lines))
            lines = []
        if not lines:
            first = line
        lines.append(text)
        last = line
    if lines:
        yield Text(first, "\n".join(lines))


def _documented(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.Constant]]:
    """Each node that has a docstring, with the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield node, first.value


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(
        "property" in ast.unparse(decorator) or ".setter" in ast.unparse(decorator) for decorator in node.decorator_list
    )


def _bad_beginning(node: ast.AST, docstring: str, *, strict: bool) -> str | None:
    words = docstring.split()
    word = words[0].rstrip(".,:;") if words else ""
    if word in QUESTION_WORDS:
        return f"docstring begins with {word!r}"
    if not strict:
        return None
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        if _is_property(node):
            return None
        plural = re.fullmatch(r"[A-Z][a-z]*[^s\W]s", word) is not None and word not in VERBS_IN_S
        if word in NO_VERBS or plural:
            return f"docstring begins with {word!r}, not with an imperative verb"
    elif word in THIRD_PERSON:
        return f"docstring begins with {word!r}, not with a noun phrase"
    return None


def _bad_phrases(text: Text) -> Iterator[tuple[int, str]]:
    prose = _CODE.sub(lambda code: re.sub(r"[^\n]", "`", code[0]), text.text)
    for pattern, remedy in _PHRASES.items():
        for match in pattern.finditer(prose):
            phrase = " ".join(match[0].split())
            yield text.line + prose.count("\n", 0, match.start()), f'"{phrase}"; instead: {remedy}'


def findings_in_python(path: str, source: str) -> Iterator[Finding]:
    """Return what is wrong with a module. Of tests, the first words of functions and the strings are not judged."""
    is_package = not path.startswith("tests/")
    tree = ast.parse(source)
    docstrings = list(_documented(tree))
    for node, docstring in docstrings:
        problem = _bad_beginning(node, str(docstring.value), strict=is_package)
        if problem:
            yield Finding(path, docstring.lineno, problem)
    texts = [Text(docstring.lineno, str(docstring.value)) for _, docstring in docstrings]
    if is_package:
        known = {id(docstring) for _, docstring in docstrings}
        texts += [
            Text(node.lineno, node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in known
        ]
    for text in [*texts, *_comments(source)]:
        for line, problem in _bad_phrases(text):
            yield Finding(path, line, problem)


def findings_in(path: str, source: str) -> list[Finding]:
    if path.endswith(".py"):
        return sorted(findings_in_python(path, source))
    return sorted(Finding(path, line, problem) for line, problem in _bad_phrases(Text(1, source)))


def _files() -> Iterator[Path]:
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml"):
        yield ROOT / name
    for directory, patterns in {
        "docs": ["*.md"],
        "alembic_templates": ["*.py", "*.mako", "README"],
        "pupsourcing_sa": ["*.py"],
        "tests": ["*.py", "*.md"],
    }.items():
        for pattern in patterns:
            yield from sorted((ROOT / directory).rglob(pattern))


def _findings() -> dict[str, list[Finding]]:
    found = {}
    for path in _files():
        name = path.relative_to(ROOT).as_posix()
        if name != "tests/test_language.py":
            found[name] = findings_in(name, path.read_text())
    return found


def test_texts_are_in_plain_english() -> None:
    problems = [str(finding) for found in _findings().values() for finding in found]
    assert not problems, "\n" + "\n".join(problems)


def test_the_reader_finds_bad_texts() -> None:
    source = '''"""What a module is for."""
class Runner:
    """Runs things."""
    @property
    def name(self):
        """The name of it."""
    def position(self):
        """The last position."""
    def rows(self):
        """Returns rows, for so
        long; gives them."""
    def process(self):
        """Process ``for ever`` and `anew`, as soon as it is due."""
        # Comments are read
        # for
        # ever.
        raise ValueError(f"{self} is known to no node")
'''
    assert [str(finding) for finding in findings_in("pupsourcing_sa/sample.py", source)] == [
        "pupsourcing_sa/sample.py:1: docstring begins with 'What'",
        "pupsourcing_sa/sample.py:3: docstring begins with 'Runs', not with a noun phrase",
        "pupsourcing_sa/sample.py:8: docstring begins with 'The', not with an imperative verb",
        'pupsourcing_sa/sample.py:10: "so long"; instead: name the number or the time; as long as',
        "pupsourcing_sa/sample.py:10: docstring begins with 'Returns', not with an imperative verb",
        'pupsourcing_sa/sample.py:11: "gives"; instead: returns, yields, has',
        'pupsourcing_sa/sample.py:15: "for ever"; instead: until it succeeds; never (with a negation)',
        'pupsourcing_sa/sample.py:17: "known to no"; instead: no running node has …',
    ]
    # In tests, strings and the first words of functions are free.
    assert [finding.line for finding in findings_in("tests/sample.py", source)] == [1, 10, 11, 15]


def test_the_reader_finds_bad_phrases_in_pages() -> None:
    page = "# Watch it\n\nThe worker\ngoes on `for ever`; see [it](for-ever.md). Nobody\nis told.\n"
    assert {(finding.line, finding.problem.partition(";")[0]) for finding in findings_in("docs/page.md", page)} == {
        (4, '"goes on"'),
        (4, '"Nobody"'),
        (5, '"told"'),
    }


@pytest.mark.parametrize(
    "text",
    [
        "As soon as it is committed, the worker continues.",
        "Pass `n` events; no more than five, and not any more events than that.",
        "The process gives up after ten seconds.",
        "A mender of hairdos: nothing here is anewly told_apart_.",
    ],
)
def test_the_reader_leaves_good_texts_alone(text: str) -> None:
    assert findings_in("docs/page.md", text) == []


def test_every_phrase_is_found_as_it_is_written() -> None:
    """A phrase that its own pattern misses, after an edit of the list, protects nothing."""
    for text in (
        "anew",
        "at the most",
        "is to be",
        "as by",
        "also when",
        "complained",
        "a node taken for dead",
        "not any more",
    ):
        assert findings_in("docs/page.md", f"It {text}."), text


if __name__ == "__main__":
    import sys

    for name, found in _findings().items():
        if name.startswith(tuple(sys.argv[1:]) or ""):
            print(*found, sep="\n", end="\n" if found else "")
