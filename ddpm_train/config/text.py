"""Text that may be shown and kept: in its line, of a length that a person reads, and without credentials.

Names of files, messages of other libraries and values of configs come from elsewhere: in a terminal they can move the
cursor and make up lines, and in whatever is stored, printed, pushed or shared a password in them is lost.
"""

import re

_LONGEST_TEXT = 300
_LONGEST_WORD, _LONGEST_LINE = 400, 1200

_SECRETS = (
    # What the Hugging Face Hub gives out as access tokens; `hf_datasets/name` is none.
    (re.compile(r"(?<![\w/])hf_[A-Za-z0-9]{8,}(?![\w/.-])"), "hf_…"),
    # scheme://user:password@host, of which the password may hold anything; host:8080/a@b is none.
    (re.compile(r"\b(?!github:)([a-z][a-z0-9+.-]*://)[^\s/@'\"]*:(?!\d{1,5}(?:[/\s]|$))\S*@", re.I), r"\1…@"),
    (re.compile(r"(https?://)[^\s/@'\"]+@", re.I), r"\1…@"),
    # ?X-Amz-Signature=…, ?sig=…, &access_token=…: whoever has such a URL has what it opens.
    (
        re.compile(
            r"([?&](?:[\w.-]*(?:signature|token|secret|password|credential|api-?_?key|access-?_?key(?:id)?)|sig|key|auth)"
            r"=)[^\s&#'\"]+",
            re.I,
        ),
        r"\1…",
    ),
)


def holds_secret(text: str) -> bool:
    """Whether there is an access token in a text, or a URL with credentials."""
    return without_secrets(text) != text


def without_secrets(text: str) -> str:
    """The text with `…` in the place of its tokens, and of credentials in its URLs."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def printable(text: str, longest: int = _LONGEST_TEXT) -> str:
    """A text in one line that cannot move a terminal's cursor, change its colours or turn its reading direction:
    what is no printable character is written as Python escapes it, and what is too long is cut."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:longest])
    return shown if len(text) <= longest else f"{shown}… ({len(text):,} characters)"


def shown(message: str) -> str:
    """A message as a terminal or a log may have it: printable, without secrets, and with long words and lines cut in
    the middle, for the remedy stands at the end. Only a line that begins with two spaces, as those of a table do, may
    follow in a line of its own."""
    lines = re.split(r"\n(?=  )", without_secrets(message))
    return "\n".join(_cut(re.sub(r"\S+", _cut_word, printable(line, len(line)))) for line in lines)


def _cut_word(word: re.Match[str]) -> str:
    return _cut(word[0], _LONGEST_WORD)


def _cut(text: str, longest: int = _LONGEST_LINE) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}… ({len(text):,} characters) …{text[-longest // 4 :]}"
