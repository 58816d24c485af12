"""Finds every mistake in a composed config: wrong types, ranges and names, and combinations that cannot work.

Importing it is cheap: no torch, diffusers or datasets.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ddpm_train.config.extensions import KEY, unnamed_mistakes
from ddpm_train.config.foreign import printable
from ddpm_train.config.mistakes import Mistakes, as_written, did_you_mean, no_such_key
from ddpm_train.config.registry import Registry

C = TypeVar("C")


class Schema(Generic[C]):
    """What a program's config must be.

    Args:
        config_type: a dataclass of sections.
        cross_field_mistakes: yields a line for each combination of keys that cannot work.
    """

    def __init__(
        self, config_type: type[C], cross_field_mistakes: Callable[[C], Iterator[str]] = lambda config: iter(())
    ) -> None:
        self._config_type = config_type
        self._cross_field_mistakes = cross_field_mistakes
        self._adapter: tuple[int, TypeAdapter[C]] | None = None

    def parse(self, values: Mapping[str, Any]) -> C:
        """Check a composed config (plain dicts and lists) and return it typed.

        Raises:
            Mistakes: every wrong type, range, name and combination in it, a line each.
        """
        config, lines = self.check(values)
        if config is None or lines:
            raise Mistakes(*lines)
        return config

    def check(
        self,
        values: Mapping[str, Any],
        defaults: Callable[[], Mapping[str, Any]] = dict,
        preflight: Callable[[C], Iterator[str]] = lambda config: iter(()),
    ) -> tuple[C | None, list[str]]:
        """Find all mistakes in a composed config.

        Args:
            values: the config.
            defaults: gives what takes the place of what is wrong, so that one mistake does not hide the next.
            preflight: yields further mistakes of a config whose keys are right one by one.

        Returns:
            The config, typed, and no lines; or a line for each mistake.
        """
        unnamed = list(unnamed_mistakes(values))
        if unnamed and KEY in {key.name for key in fields(self._config_type)}:  # type: ignore[arg-type]
            return None, unnamed
        lines: list[str] = []
        wrong: set[str] = set()
        try:
            config = self._validate(values)
        except ValidationError as error:
            if unnamed:
                return None, unnamed  # nobody knows which choices that code would add
            replacements = defaults()
            wrong = {".".join(map(str, _location(detail, values)[:2])) for detail in error.errors()}
            known = [key for key, _ in dotted(replacements) if key not in wrong]  # a user's file may bring wrong keys
            details = [detail for detail in error.errors() if not _is_echo(detail, error.errors())]
            lines = list(dict.fromkeys(_explain(detail, values, known) for detail in details))
            try:
                config = self._validate(_repaired(values, replacements, error))
            except ValidationError:
                return None, lines
        further = chain(self._cross_field_mistakes(config), _looked_at(preflight(config)))
        # What involves a repaired key says something of the default, not of what the user wrote.
        lines += [line for line in further if not any(_mentions(line, key) for key in wrong)]
        return None if lines else config, lines

    def _validate(self, values: Mapping[str, Any]) -> C:
        """The schema is built when it is first needed, and again when an extension has added a choice."""
        if self._adapter is None or self._adapter[0] != Registry.additions:
            self._adapter = Registry.additions, TypeAdapter(self._config_type)
        return self._adapter[1].validate_python(values)


def _looked_at(mistakes: Iterator[str]) -> Iterator[str]:
    """The lines of a look at the machine, and one for a path that it does not let anybody look at."""
    try:
        yield from mistakes
    except OSError as error:
        if error.filename is None:
            raise
        yield f"{printable(str(error.filename))}: {error.strerror}; give another path"


MISSING = ": missing; give it a value"  # how such a line ends
_STAND_IN = "embedded"  # for what the defaults leave to the user: right as a source and as a path


def _repaired(values: Mapping[str, Any], defaults: Mapping[str, Any], error: ValidationError) -> dict[str, Any]:
    """A copy of `values` with the two-part keys that `error` names taken from `defaults`."""
    repaired = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for detail in error.errors():
        section, *rest = _location(detail, values)
        if section not in defaults:
            repaired.pop(section, None)
        elif not rest or not isinstance(repaired.get(section), dict):
            repaired[section] = defaults[section]
        elif rest[0] in defaults[section]:
            default = defaults[section][rest[0]]
            repaired[section][rest[0]] = _STAND_IN if default == "???" else default
        else:
            repaired[section].pop(rest[0], None)
    return repaired


def _mentions(line: str, key: str) -> bool:
    return re.search(rf"(?<![\w./]){re.escape(key)}(?!\w)", line) is not None


def dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of nested sections as one writes it, with its value: `train`, `train.batch_size`, …"""
    for key, value in values.items():
        yield f"{prefix}{key}", value
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{key}.")


def dotted_values(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key of nested sections that is no section itself, with its value."""
    return ((key, value) for key, value in dotted(values) if not isinstance(value, Mapping))


def _location(detail: Any, values: Mapping[str, Any]) -> list[Any]:
    """The key that an error is about, in parts. Of a group pydantic tells the choice besides, which is no key."""
    section, *rest = detail["loc"]
    given = values.get(section)
    is_choice = bool(rest) and isinstance(given, Mapping) and given.get("name") == rest[0]
    return [section, *(rest[1:] if is_choice else rest)]


def _is_echo(detail: Any, details: Sequence[Any]) -> bool:
    """Whether it is told already: of a list whose items were wrong that it is too short, of the output folder what is
    wrong with the name in it."""
    if detail["loc"] == ("output_dir",):
        named = [str(other["input"]) for other in details if (other["loc"], other["msg"]) == (("name",), detail["msg"])]
        return any(name in str(detail["input"]) for name in named)
    return detail["type"] == "too_short" and len(detail["input"]) > 0


def _explain(detail: Any, values: Mapping[str, Any], known_keys: list[str]) -> str:
    """One validation error of pydantic as "key=value: what is wrong"."""
    key = ".".join(map(str, _location(detail, values)))
    kind, context = detail["type"], detail.get("ctx", {})
    given = f"{key}={as_written(detail['input'])}"
    if key == "experiment" and isinstance(detail["input"], Mapping):
        return (
            f"{given}: would go below that key; begin its file with `# @package _global_`, and with no byte order mark"
        )
    if kind in _NO_SECTION and detail["input"] is None:
        return f"{given}: must be a section of keys; leave it out of the file that names it without any"
    if kind == "unexpected_keyword_argument":
        return no_such_key(given, key, known_keys)
    if kind == "value_error":
        return f"{given}: {context['error']}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{key}{'' if kind == 'missing' else '.name'}{MISSING}"
    if kind == "union_tag_invalid":
        given, expected, word = f"{key}.name={context['tag']}", context["expected_tags"], context["tag"]
    elif kind == "literal_error":
        expected, word = context["expected"], detail["input"]
    else:
        return f"{given}: must be {_WANTED.get(kind, detail['msg']).format_map(context)}"
    known = [choice.strip("' ") for choice in expected.replace(" or ", ", ").split(",")]
    remedy = did_you_mean(str(word), known)
    if word is False and "no" in known:
        remedy = " in a file, write 'no' in quotes, which YAML takes for false without them"
    return f"{given}: not one of {', '.join(known)};{remedy}".rstrip(";")


_NO_SECTION = ("dict_type", "dataclass_type", "model_attributes_type")
# What pydantic's kinds of errors ask for, in words that follow "must be".
_WANTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    **dict.fromkeys(_NO_SECTION, "a section of keys"),
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": "made of letters, digits and . _ = , + - and begin with a letter or digit",
}
