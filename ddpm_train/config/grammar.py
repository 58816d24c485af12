"""One override in Hydra's grammar, but for this: a key whose type is text takes the text as it is written.

Hydra alone takes `name=2024_11_27` for 20241127, and refuses `dataset.path=/data/my cats (2)`, `~/cats` and `/data/é`.
Quotes around the whole value, `null`, `${key}` and, in a sweep, commas and functions mean what they mean to Hydra.
Whatever else Hydra cannot read is a text, too: the checks of the config know better what the key should hold. A key
whose type is a list takes one value, or values with commas between them, without brackets.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.override_parser.overrides_parser import (
    CommonTokenStream,
    InputStream,
    OverrideLexer,
    OverrideParser,
    OverridesParser,
    create_functions,
)
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import ChoiceSweep, Key, Override, Quote, QuotedString
from hydra.errors import HydraException

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.push import PushConfig
from ddpm_train.config.registry import Group, Registry
from ddpm_train.config.sample import SampleConfig
from ddpm_train.config.train import Config

# Groups of which several choices may stand in a list.
SEVERAL_AT_ONCE = ("tracker", "experiment")
# Functions of the grammar that only list what they are given; the others compute with it.
_LISTING = ("choice", "shuffle")
_ASSIGNMENT = re.compile(r"(\+{0,2}([A-Za-z_][\w./@:$-]*)=)(.*)", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class _Keys:
    """Keys of all programs by their type.

    Attributes:
        texts: a text, one of several, or a list of these.
        free: any text.
        lists: a list of any length.
        pairs: a list of a fixed length.
    """

    texts: frozenset[str]
    free: frozenset[str]
    lists: frozenset[str]
    pairs: frozenset[str]


def parse(text: str) -> Override:
    """The override in a text.

    Raises:
        HydraException, ValueError, RecursionError: it is none.
    """
    return _parse(text, _keys(Registry.additions))[0]


@cache
def _parse(text: str, keys: _Keys) -> tuple[Override, bool]:
    """The override, and whether it certainly is what Hydra reads."""
    assignment = _ASSIGNMENT.fullmatch(text)
    override, is_hydras = _read_assignment(assignment, keys) if assignment else _read(text, keys)
    override.input_line = text
    return override, is_hydras


def _read_assignment(assignment: re.Match[str], keys: _Keys) -> tuple[Override, bool]:
    text, _, key, written = assignment[0], *assignment.groups()
    try:
        override, is_hydras = _read(text, keys)
    except HydraException:
        return _read(_in_quotes(assignment), keys)[0], False
    except (ValueError, RecursionError):
        if key not in keys.free:
            raise
        return _read(_in_quotes(assignment), keys)[0], False
    value = override._value
    if override.is_sweep_override() or value is None:
        return override, is_hydras
    if key in keys.free and not written.lstrip().startswith(("'", '"')):
        return _read(_in_quotes(assignment), keys)[0], False
    if key in keys.lists and not isinstance(value, list | dict) and "${" not in written:
        override._value = [value]
        return override, False
    return override, is_hydras


def _read(text: str, keys: _Keys) -> tuple[Override, bool]:
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(HydraErrorListener())
    visitor = _Visitor(keys.texts)
    return visitor.visit(parser.override()), visitor.is_hydras


def _in_quotes(assignment: re.Match[str]) -> str:
    return f"{assignment[1]}{QuotedString(assignment[3], Quote.double).with_quotes()}"


def is_free_text(key: str) -> bool:
    """Whether a key takes any text, and nothing else."""
    return key in _keys(Registry.additions).free


def without_sweep(override: Override) -> Override:
    """The override where nothing is swept: a comma is part of a text, or stands between the items of a list."""
    key, value, text = override.key_or_group, override._value, str(override.input_line)
    if not override.is_sweep_override():
        return override
    keys, assignment = _keys(Registry.additions), _ASSIGNMENT.fullmatch(text)
    if key in keys.free and assignment:
        return parse(_in_quotes(assignment))
    if (key in keys.lists or key in SEVERAL_AT_ONCE) and _is_plain(value):
        return parse(_in_brackets(override))
    return override


def as_one_value(override: Override) -> str | None:
    """An override in which Hydra sees several values, written so that it sees one; None: its key takes none such."""
    key, assignment = override.key_or_group, _ASSIGNMENT.fullmatch(str(override.input_line))
    keys = _keys(Registry.additions)
    if override.is_sweep_override() and not _is_plain(override._value):
        return None
    if override.is_sweep_override() and key in keys.pairs:
        return _in_brackets(override)
    if assignment and (key in keys.free or key.startswith(("sampler.", "tracker."))):
        return _in_quotes(assignment)
    return None


def _is_plain(value: Any) -> bool:
    """Whether it is `A,B`, of no more than single values."""
    simple = isinstance(value, ChoiceSweep) and value.simple_form
    return simple and not any(isinstance(item, list | dict) for item in value.list)


def _in_brackets(override: Override) -> str:
    key, _, values = str(override.input_line).partition("=")
    return f"{key}=[{values}]"


def is_ambiguous(override: Override) -> bool:
    """Whether in a sweep its commas may separate values, although Hydra cannot read it."""
    text = str(override.input_line)
    if "," not in text.partition("=")[2]:
        return False
    try:
        OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError):
        return True
    return False


def as_hydra_reads(text: str) -> str:
    """The override, of one value, as Hydra's own parser reads the same: with quotes where it would see another."""
    override, is_hydras = _parse(text, _keys(Registry.additions))
    if is_hydras or override.is_delete():
        return text
    try:
        if override.value() == OverridesParser.create().parse_override(text).value():
            return text
    except (HydraException, ValueError, RecursionError):
        pass
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


class _Visitor(HydraOverrideVisitor):
    def __init__(self, texts: frozenset[str]) -> None:
        super().__init__(create_functions())
        self.is_hydras = True  # it has read all as Hydra does
        self._texts = texts
        self._key: list[str] = []  # and those of the mappings that it is in
        self._lists = True

    def visitKey(self, ctx: OverrideParser.KeyContext) -> Key:
        key = super().visitKey(ctx)
        self._key = [key.key_or_group]
        return key

    def visitDictKeyValuePair(self, ctx: OverrideParser.DictKeyValuePairContext) -> Any:
        self._key.append(ctx.getChild(0).getText().strip())
        pair = super().visitDictKeyValuePair(ctx)
        self._key.pop()
        return pair

    def visitFunction(self, ctx: OverrideParser.FunctionContext) -> Any:
        before, self._lists = self._lists, ctx.getChild(0).getText() in _LISTING
        result = super().visitFunction(ctx)
        self._lists = before
        return result

    def visitPrimitive(self, ctx: OverrideParser.PrimitiveContext) -> Any:
        value, text = super().visitPrimitive(ctx), ctx.getText().strip()
        if not self._lists or ".".join(self._key) not in self._texts:
            return value
        if isinstance(value, int | float):
            read = text
        elif isinstance(value, str) and value != text:  # without escapes, which it has no more when it is read again
            read = value
        else:
            return value
        self.is_hydras = False
        return QuotedString(read, Quote.single)


@cache
def _keys(additions: int) -> _Keys:
    """Of all programs; anew when an extension has added a choice."""
    configs = (Config, SampleConfig, EvaluateConfig, PushConfig)
    hints = [each for config in configs for each in _hints(config, "")]
    texts = {"hydra.sweep.dir", *(key for key, hint in hints if {*_kinds(hint)} == {str})}
    of_choices = {key for key, hint in hints if any(_is_choice(part) for part in _parts(hint))}
    lists = {key: get_args(part) for key, hint in hints for part in _parts(hint) if get_origin(part) is tuple}
    return _Keys(
        texts=frozenset(texts),
        free=frozenset(texts - of_choices - lists.keys()),
        lists=frozenset(key for key, parts in lists.items() if ... in parts),
        pairs=frozenset(key for key, parts in lists.items() if ... not in parts),
    )


def _hints(section: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The keys below a section that are no sections themselves, each with its type."""
    for name, hint in get_type_hints(section, include_extras=True).items():
        groups = (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Group))
        sections = [*filter(is_dataclass, _kinds(hint)), *(choice for group in groups for choice in group.values())]
        for part in sections:
            yield from _hints(part, f"{prefix}{name}.")
        if not sections:
            yield f"{prefix}{name}", hint


def _parts(hint: Any) -> Iterator[Any]:
    """A hint, and those that it is made of, but for the items of a list."""
    yield hint
    for part in get_args(hint) if get_origin(hint) in (Annotated, Union, UnionType) else ():
        yield from _parts(part)


def _is_choice(hint: Any) -> bool:
    return get_origin(hint) is Literal or isinstance(hint, Registry)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that a hint admits besides None, a list by what it holds, and choices by what they are."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield from map(type, parts)
    elif origin in (Annotated, tuple):
        yield from _kinds(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _kinds(part)
    elif hint is not NoneType:
        yield hint
