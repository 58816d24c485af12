"""Reads a command line: those of Hydra's flags that all programs have, and overrides."""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ddpm_train
from ddpm_train.config.mistakes import Mistakes, did_you_mean
from ddpm_train.config.overrides import secret_mistakes
from ddpm_train.config.parts import CONF
from ddpm_train.config.program import Program
from ddpm_train.system import launch

_FLAGS: dict[str, dict[str, Any]] = {
    "--help -h": {"action": "store_true"},
    "--cfg -c": {"choices": ["job"]},
    "--multirun -m": {"action": "store_true"},
    "--plan": {"action": "store_true"},
    "--config-path -cp": {"type": Path, "default": CONF},
    "--config-name -cn": {},
    "--config-dir -cd": {"type": Path},
}
_KNOWN = [flag for flags in _FLAGS for flag in flags.split()] + ["--version"]


@dataclass(frozen=True)
class Arguments:
    """A command line.

    Attributes:
        cfg: "job" to show the composed config instead of running.
        plan: whether to show what a run would take instead of running.
        config_path: the folder of the config that `config_name` names.
        config_dir: a folder with further choices.
    """

    overrides: list[str]
    help: bool
    cfg: str | None
    multirun: bool
    plan: bool
    config_path: Path
    config_name: str
    config_dir: Path | None

    def flags(self, config_name: str) -> list[str]:
        """The flags that say where the configs are, as far as they are not those of a program with that config."""
        given = {"--config-path": self.config_path, "--config-name": self.config_name, "--config-dir": self.config_dir}
        return [f"{flag}={value}" for flag, value in given.items() if value not in (CONF, config_name, None)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Mistakes(message)


def read(texts: Sequence[str], program: Program[Any], *, sweeps_itself: bool, plans: bool = False) -> Arguments:
    """Read a command line.

    Args:
        sweeps_itself: whether the program starts the jobs of a sweep as processes of their own.
        plans: whether it knows what a run would take.

    Raises:
        Mistakes: a line for each that the flags have.
    """
    parser = _Parser(add_help=False)
    for flags, options in _FLAGS.items():
        parser.add_argument(*flags.split(), **options)
    parser.add_argument("--version", action="version", version=f"{program.name} {ddpm_train.__version__}")
    parser.add_argument("overrides", nargs="*")
    given, unknown = parser.parse_known_args(texts)
    if given.plan and not plans:
        unknown.append("--plan")
    # argparse takes no overrides after a flag that stands between them.
    given.overrides += [text for text in unknown if not text.startswith("-")]
    given.config_path = given.config_path.resolve()
    given.config_name = (given.config_name or program.config_name).removesuffix(".yaml")
    arguments = Arguments(**vars(given))
    if lines := [*secret_mistakes(texts), *_flag_mistakes(arguments, unknown, sweeps_itself)]:
        raise Mistakes(*dict.fromkeys(lines))
    return arguments


def _flag_mistakes(arguments: Arguments, unknown: Sequence[str], sweeps_itself: bool) -> Iterator[str]:
    for flag in (text for text in unknown if text.startswith("-")):
        if flag.startswith("--experimental-rerun"):
            yield "--experimental-rerun: not for these runs; use --config-path RUN --config-name config"
        else:
            yield f"{flag}: no such flag;{did_you_mean(flag.split('=')[0], _KNOWN) or ' see --help'}"
    yield from _place_mistakes(arguments)
    if arguments.multirun and arguments.cfg:
        yield "--cfg: shows the config of one run, not of a sweep; leave out --multirun"
    if arguments.multirun and arguments.plan:
        yield "--plan: shows what one run would take, not a sweep; leave out --multirun"
    countable = not any(launch.variable_mistakes())  # which are told by themselves
    if arguments.multirun and countable and (count := launch.num_processes()) > 1:
        remedy = f" with hydra/launcher=accelerate hydra.launcher.num_processes={count}" if sweeps_itself else ""
        yield f"--multirun: each of {count} processes would sweep; start it without a launcher{remedy}"


def _place_mistakes(arguments: Arguments) -> Iterator[str]:
    """A line for each folder or config that is not there."""
    given = {"--config-path": arguments.config_path, "--config-dir": arguments.config_dir}
    folders = {flag: folder for flag, folder in given.items() if folder is not None}
    if missing := {flag: folder for flag, folder in folders.items() if not os.path.isdir(folder)}:
        yield from (f"{flag}={folder}: no such folder" for flag, folder in missing.items())
        return
    # What is no regular file, Hydra would wait for.
    names = [path.stem for folder in folders.values() for path in folder.glob("*.yaml") if path.is_file()]
    if arguments.config_name not in names:
        places = " or ".join(map(str, folders.values()))
        remedy = did_you_mean(arguments.config_name, names)
        yield f"--config-name={arguments.config_name}: no such file in {places};{remedy}".rstrip(";")
