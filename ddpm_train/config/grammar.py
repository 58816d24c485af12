"""One override in Hydra's grammar, but for this: where a key's type is text, a number is the text that was written.

Hydra alone takes `name=2024_11_27` for 20241127, and `name=1.10` for 1.1.
"""

from collections.abc import Iterator
from dataclasses import is_dataclass
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
from hydra.core.override_parser.types import Key, Override, Quote, QuotedString

from ddpm_train.config.evaluate import EvaluateConfig
from ddpm_train.config.push import PushConfig
from ddpm_train.config.registry import Group, Registry
from ddpm_train.config.sample import SampleConfig
from ddpm_train.config.train import Config

# Functions of the grammar that only list what they are given; the others compute with it.
_LISTING = ("choice", "shuffle")


def parse(text: str) -> Override:
    """The override in a text.

    Raises:
        HydraException, ValueError, RecursionError: it is none.
    """
    return _parse(text, _texts(Registry.additions))


@cache
def _parse(text: str, texts: frozenset[str]) -> Override:
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(HydraErrorListener())
    override: Override = _Visitor(texts).visit(parser.override())
    override.input_line = text
    return override


def as_hydra_reads(text: str) -> str:
    """The override, of one value, as Hydra's own parser reads the same: with quotes where it would see a number."""
    override = parse(text)
    if override.is_delete() or override._value == OverridesParser.create().parse_override(text)._value:
        return text
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


class _Visitor(HydraOverrideVisitor):
    def __init__(self, texts: frozenset[str]) -> None:
        super().__init__(create_functions())
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
        value = super().visitPrimitive(ctx)
        if isinstance(value, int | float) and self._lists and ".".join(self._key) in self._texts:
            return QuotedString(ctx.getText().strip(), Quote.single)
        return value


@cache
def _texts(additions: int) -> frozenset[str]:
    """The keys of all programs whose type is text, or a list of texts; anew when an extension has added a choice."""
    configs = (Config, SampleConfig, EvaluateConfig, PushConfig)
    return frozenset(["hydra.sweep.dir", *(key for config in configs for key in _texts_of(config, ""))])


def _texts_of(section: Any, prefix: str) -> Iterator[str]:
    for name, hint in get_type_hints(section, include_extras=True).items():
        kinds = [kind for kind in _kinds(hint) if kind is not NoneType]
        groups = (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Group))
        for part in [*filter(is_dataclass, kinds), *(choice for group in groups for choice in group.values())]:
            yield from _texts_of(part, f"{prefix}{name}.")
        if kinds and all(kind is str for kind in kinds):
            yield f"{prefix}{name}"


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that a hint admits, a list by what it holds, and choices by what they are."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield from map(type, parts)
    elif origin in (Annotated, tuple):
        yield from _kinds(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _kinds(part)
    else:
        yield hint
