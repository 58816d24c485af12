"""The names of runs: by what sets apart the runs of a sweep, or after the folder of a run or of its images."""

import hashlib
import os
import re
from collections.abc import Mapping

# Within the 128 characters of trackers' names and the 255 bytes of a file's, with room for a sweep's own name.
MAX_LENGTH = 100
_WHOLE_NUMBERS = re.compile(r"\[\d+(,\d+)*\]")


def folder_name(choices: Mapping[str, str]) -> str:
    """`KEY=VALUE,KEY=VALUE` of letters, digits and `. _ = , + -`; other choices have another name.

    Where that takes other characters out of a value, or the end off a long name, a hash of the whole stands instead.
    """
    name = ",".join(f"{_plain(key)}={_plain(value)}" for key, value in choices.items())
    return name if len(name) <= MAX_LENGTH else f"{name[: MAX_LENGTH - 9]}-{_hash(repr(dict(choices)), 8)}"


def named_after(folder: str) -> str:
    """The name of a folder as that of a run: blanks and signs that need quotes become `_`."""
    return re.sub(r"[^\w.=,+-]", "_", folder)


def named_after_images(path: str) -> str:
    """The same of `dataset.path`: of a folder, a parquet file or a repository "owner/name"; "" if that is no name."""
    folder = os.path.basename(os.path.abspath(os.path.expanduser(path)))
    return named_after(folder.removesuffix(".parquet")).lstrip(".=,+-")


def _plain(text: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-")
    # A list of sizes, [8,16], is readable and unmistakable as 8-16.
    return plain if plain == text or _WHOLE_NUMBERS.fullmatch(text) else f"{plain}-{_hash(text, 6)}".lstrip("-")


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]
