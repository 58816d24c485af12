"""Overrides, `key=value` in Hydra's grammar: reading them, and writing Python's keywords as such."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, RangeSweep
from hydra.errors import HydraException

from ddpm_train.config import extensions
from ddpm_train.config.grammar import as_hydra_reads, as_one_value, is_ambiguous, parse, without_sweep
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.parts import CONF
from ddpm_train.config.text import holds_secret, printable

# How keys end whose values are secret.
_ASKING = ("token", "api_key", "access_key", "secret", "password")

_MOST_RUNS = 10_000
_IDLE = {
    "hydra.run.dir": "another key says where files are written (see --help)",
    "hydra.sweep.subdir": "the jobs' folders are named after what varies; name='…${seed}' gives other names",
    "hydra.output_subdir": "the config stands beside what was made; leave it out",
    "hydra.job.chdir": "paths count from the folder in which the command is given; write absolute ones",
}


def read_overrides(
    texts: Sequence[str], config_dir: Path | None = None, *, multirun: bool = False
) -> tuple[list[Override], list[str]]:
    """The overrides, and a line for each text that is none. Imports the extensions that they name.

    Args:
        config_dir: a folder of configs of the user's own; extensions may lie there as in the current folder.
        multirun: whether commas separate the values of a sweep.

    Raises:
        Mistakes: a text holds a token, which no message may repeat; an extension cannot be imported; or there are more
            runs in a sweep than anybody could list.
    """
    if lines := [*secret_mistakes(texts), *_encoding_mistakes(texts)]:
        raise Mistakes(*lines)

    def read(text: str) -> Override:
        return parse(text) if multirun else without_sweep(parse(text))

    parsed, lines = [], []
    for number, text in enumerate(texts):
        try:
            parsed.append(read(text))
        except HydraException:
            lines.append(_no_assignment(texts, number))
        except (ValueError, RecursionError):
            lines.append(f"{printable(text, 60)}: a number of too many digits, or lists too deep in each other")
    if too_many := list(_sweep_mistakes(parsed)):
        raise Mistakes(*too_many)
    lines += _idle_mistakes(parsed)
    for override in parsed:
        if override.key_or_group == extensions.KEY and isinstance(names := override.value(), list):
            extensions.import_modules(names, config_dir)
    parsed = [read(str(override.input_line)) for override in parsed]  # of the keys that they have added, too
    return parsed, lines + (list(_ambiguous_mistakes(parsed)) if multirun else [])


def _encoding_mistakes(texts: Iterable[str]) -> Iterator[str]:
    """A line for each text that no config can hold: Python has other bytes than UTF-8 as lone surrogates."""
    for text in texts:
        if re.search("[\ud800-\udfff]", text):
            yield f"{printable(text)}: not UTF-8; rename it, or for a path make a link with another name (ln -s)"


def _no_assignment(texts: Sequence[str], number: int) -> str:
    """The line for a text that is none. It may belong to the value before it, which the shell has split at a blank."""
    assignments = [index for index, text in enumerate(texts) if "=" in text]
    first = max((index for index in assignments if index < number), default=None)
    if first is None:
        return f"{texts[number]}: not of the form key=value"
    words = texts[first : min((index for index in assignments if index > number), default=len(texts))]
    whole = shlex.quote(" ".join(words))
    return f"{' '.join(words[1:])}: not of the form key=value; a value with blanks needs quotes: {whole}"


def _ambiguous_mistakes(overrides: Iterable[Override]) -> Iterator[str]:
    for override in filter(is_ambiguous, overrides):
        if one := as_one_value(override):
            text = str(override.input_line)
            yield f"{text}: commas separate the values of a sweep; write {shlex.quote(one)} if it is one value"


def _sweep_mistakes(overrides: Iterable[Override]) -> Iterator[str]:
    """A line for each override of which the values cannot be enumerated, and one if all together are too many."""
    counts = {}
    for override in overrides:
        value: Any = override.value()
        text = str(override.input_line)
        if isinstance(value, Glob):
            yield f"{text}: write the choices out, {override.key_or_group}=A,B"
        try:
            values: Iterable[Any] = value.range() if isinstance(value, RangeSweep) else getattr(value, "list", [value])
            counts[text] = sum(1 for _ in islice(values, _MOST_RUNS + 1))
        except (HydraException, ValueError, ArithmeticError):
            yield f"{text}: not a range; write range(START,STOP) or range(START,STOP,STEP)"
        else:
            if counts[text] == 0:
                yield f"{text}: there is nothing in it; write range(START,STOP) with START below STOP"
    if prod(counts.values()) > _MOST_RUNS:
        several = " ".join(text for text, count in counts.items() if count > 1)
        yield f"{several}: more than {_MOST_RUNS:,} runs; try fewer values"


def secret_mistakes(texts: Iterable[str]) -> Iterator[str]:
    """A line for each text "key=value" that holds credentials or asks for them, which is not repeated."""
    for text in texts:
        key, equals, value = text.partition("=")
        if "://" in text and holds_secret(text):
            yield (
                f"{text}: credentials do not belong into a URL, which is saved and printed; the cloud's own variables "
                "(AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS …), its own file or ~/.config/fsspec may hold them"
            )
        elif holds_secret(text) or (equals and value not in ("", "None") and key.endswith(_ASKING)):
            shown = key if equals and not holds_secret(key) else "hf_…"
            yield (
                f"{shown}: a token does not belong in a command or a config, which are saved and pushed; "
                "log in with `hf auth login`, or set HF_TOKEN"
            )


def _idle_mistakes(overrides: Iterable[Override]) -> Iterator[str]:
    """A line for each key of Hydra that does in other programs what nothing does here."""
    for override in overrides:
        if (instead := _IDLE.get(str(override.key_or_group))) is not None:
            yield f"{override.input_line}: does nothing here; {instead}"


def is_hydra(override: Override) -> bool:
    """Whether it is for Hydra itself, and not for the program."""
    return str(override.key_or_group).startswith(("hydra.", "hydra/"))


def is_open(key: str) -> bool:
    """Whether a config takes the key although none of its files names it: the schema knows those of a sampler."""
    return key == extensions.KEY or key.rpartition(".")[0] == "sampler"


def opened(text: str) -> str:
    """The override, of one value, as Hydra takes it."""
    text = as_hydra_reads(text)
    return f"++{text}" if is_open(text.split("=")[0]) else text


def choice_mistakes(overrides: Iterable[Override], *, multirun: bool) -> Iterator[str]:
    """A line for each override with several values that cannot be tried one after the other."""
    for override in filter(Override.is_sweep_override, overrides):
        if not override.is_discrete_sweep():
            key = override.key_or_group
            yield f"{override.input_line}: a sweep needs choices; write {key}=A,B or range(A,B)"
        elif not multirun:
            one = as_one_value(override)
            remedy = f", or write {shlex.quote(one)} if it is one value" if one else ""
            yield f"{override.input_line}: several values; add --multirun to try each{remedy}"


def swept_text_mistakes(overrides: Iterable[Override], lines: Sequence[str]) -> Iterator[str]:
    """A line for each text whose commas were taken to separate values, if one of these is wrong.

    Args:
        lines: what is wrong with the jobs.
    """
    for override in filter(Override.is_sweep_override, overrides):
        wrong = any(line.startswith(f"{override.key_or_group}=") for line in lines)
        if wrong and (one := as_one_value(override)):
            yield f"{override.input_line}: several values; write {shlex.quote(one)} if it is one value"


def discrete(override: Override) -> list[str]:
    """One override for each value of a discrete choice, none for an interval."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if not override.is_discrete_sweep():
        return []
    return [f"{override.get_key_element()}={choice}" for choice in override.sweep_string_iterator()]


def as_overrides(keys: Mapping[str, Any]) -> list[str]:
    """Python's keywords as overrides.

    A nested mapping holds keys of a section: `train={"max_steps": 10}`. The choice of a group is a text,
    `dataset="imagefolder"`, or stands as "name" beside the keys to change: `sampler={"name": "ddim", "eta": 0.5}`.
    Texts mean what they say, but for `${…}`, which refers to another key as in any config.
    """
    return [text for key, value in keys.items() for text in _override(key, value)]


def _override(key: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or not value:
        yield f"{key}={_literal(value)}"
        return
    sign, keys = "", dict(value)
    if key == "tracker":  # several at once, each with arguments that no config names
        sign = "++"
        keys = {name: arguments for name, arguments in keys.items() if arguments is not None}
        yield f"{key}={_literal(list(keys))}"
    elif "name" in keys and (key == "sampler" or (CONF / key).is_dir()):
        yield f"{key}={_literal(keys.pop('name'))}"
    for part, item in keys.items():
        yield from (f"{sign}{text}" for text in _override(f"{key}.{part}", item))


# What Hydra's grammar takes for a text without quotes. They would hide it in messages.
_PLAIN = re.compile(r"(?!(true|false|null|inf|nan)$)[a-z_][\w./-]*", re.ASCII | re.IGNORECASE)


def _literal(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool | int | float):
        return as_written(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_literal(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_literal, value))}]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
