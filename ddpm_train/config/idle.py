"""Keys that a user has changed and that nothing follows from, given the other keys."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

import yaml

from ddpm_train.config.mistakes import as_written
from ddpm_train.config.parts import CONF


@cache
def own_values(program: str) -> dict[str, Any]:
    """What `conf/PROGRAM.yaml` gives the keys of a program, and what it chooses of each group."""
    values: dict[str, Any] = yaml.safe_load((CONF / f"{program}.yaml").read_text("utf-8"))
    del values["hydra"]
    chosen = (entry for entry in values.pop("defaults") if isinstance(entry, dict))
    return values | {
        group: name and {"name": name} for entry in chosen for group, name in entry.items() if " " not in group
    }


def idle_mistakes(config: object, program: str, idle: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A line for each key that is not as the program's own config has it, and does nothing.

    Args:
        idle: the keys that do nothing in this config, each with "without …" or "with …".
    """
    for key, why in idle:
        value = getattr(config, key)
        if (list(value) if isinstance(value, tuple) else value) != own_values(program)[key]:
            yield f"{key}={as_written(value)}: does nothing {why}; leave it out"
