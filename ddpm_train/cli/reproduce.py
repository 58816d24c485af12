"""`ddpm-reproduce`: prints the command that repeats a run, and warns of what is not today as it was then.

Whoever uses it runs what it prints, and the run may be somebody else's: a remedy is made of what can be nothing else.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddpm_train._version import __version__
from ddpm_train.cli.app import printing, tell
from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.overrides import as_overrides
from ddpm_train.config.text import shown
from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, read_config
from ddpm_train.runs.state import read_state
from ddpm_train.system.output import forgiving


@dataclass(frozen=True)
class _Commit:
    id: str
    dirty: bool


@dataclass(frozen=True)
class _Then:
    """What has computed a run from some step on, see `environment.py`."""

    num_processes: int
    device: str
    micro_batch_size: int
    compute: dict[str, bool | int | str]
    versions: dict[str, str]
    commit: _Commit | None
    variables: dict[str, str] = field(default_factory=dict)  # this and the next older runs do not say
    deterministic: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(prog="ddpm-reproduce", description="Prints the command that repeats a run.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, such as outputs/default")
    run = parser.parse_args().run
    sys.stderr = forgiving(sys.stderr)
    try:
        config, environments, then = _recorded(run)
        repeat = command(run, config, then)
    except Mistakes as mistakes:
        tell(mistakes, everyone=True)
    for line in [*_history(run, environments), *_differences(then)]:
        print(f"warning: {shown(line)}", file=sys.stderr)
    with printing():
        print(repeat)


def command(run: Path, config: dict[str, Any], then: _Then) -> str:
    """Repeats the run beside itself: its config, as many processes, and what `auto` had chosen.

    Raises:
        Mistakes: the record says what no run of this program would.
    """
    launcher = ["ddpm-train"]
    if then.num_processes > 1:
        how = ["accelerate", "launch", "--cpu" if then.device.startswith("cpu") else "--multi_gpu"]
        launcher = [*how, "--num_processes", str(then.num_processes), "-m", "ddpm_train.cli.train"]
    name = f"{config['name']}_repeated"
    settled = {"micro_batch_size": then.micro_batch_size, **then.compute}
    chosen = {f"train.{key}": value for key, value in settled.items()}
    changed = {"name": name, "output_dir": str(Path(config["output_dir"]).parent / name), **chosen}
    for key, value in changed.items():
        # It would stand in the command, and there be resolved, or be another line.
        if "${" in str(value) or not (str(value).isprintable() and re.fullmatch(r"[\w.]+", key)):
            raise Mistakes(f"{run}: {key}={value}: no run of this program has that; do not trust its files")
    saved = ["--config-path", str(run), "--config-name", "config"]
    return shlex.join([*launcher, *saved, *as_overrides(changed)])


def _recorded(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]], _Then]:
    """The run's config; what computed it, in order; the last of these.

    Raises:
        Mistakes: no run is there, or none that recorded it.
    """
    try:
        config = read_config(run / CONFIG)
        if not all(isinstance(config.get(key), str) for key in ("name", "output_dir")):
            raise BadFile(f"{run / CONFIG}: is no run's: it has no name and output_dir")
        environments = read_json(run / ENVIRONMENT, list[dict[str, Any]])
        if not environments:
            raise BadFile(f"{run / ENVIRONMENT}: is empty")
        return config, environments, read_json(run / ENVIRONMENT, list[_Then])[-1]
    except OSError as error:
        missing = Path(str(error.filename)).name
        raise Mistakes(f"{run}: {missing} cannot be read; give the folder of a run, such as outputs/default") from None
    except BadFile as error:
        raise Mistakes(str(error)) from None


def _history(run: Path, environments: list[dict[str, Any]]) -> Iterator[str]:
    """Why one command alone may not make the same weights again."""
    checkpoints = checkpoint.published(run / CHECKPOINTS)
    try:
        changes = read_state(checkpoints[-1]).changes if checkpoints else []
    except checkpoint.BadCheckpoint as error:
        changes = []
        yield f"{checkpoints[-1].name}: {error}; changes of the config on the way are not known"
    for change in changes:
        yield (
            f"{change['key']}: changed from {as_written(change['from'])} to {as_written(change['to'])} at step "
            f"{change['step']}; the command has what it was at the end"
        )
    for before, after in pairwise(environments):
        changed = [key for key in after if key not in ("from_step", "command") and before.get(key) != after[key]]
        if changed:
            yield f"step {after['from_step']}: from here on another {', '.join(changed)}; a repeat rounds otherwise"


def _differences(then: _Then) -> Iterator[str]:
    """What is not today as it was when the run ended, with the remedy."""
    commit, today = then.commit, environment.commit()
    if commit and (today is None or commit.id != today["id"]):
        remedy = f"; git checkout {commit.id}" if re.fullmatch("[0-9a-f]{40}", commit.id) else ""
        yield f"commit: {commit.id} then, {today['id'] if today else 'unknown'} now{remedy}"
    if commit and commit.dirty:
        yield "commit: the code then had changes that no commit holds"
    if today and today["dirty"]:
        yield "commit: the code now has changes that no commit holds"
    versions = environment.versions()
    for package, number in then.versions.items():
        if (now := versions.get(package, "none")) != number:
            plain = package in environment.PACKAGES and re.fullmatch(r"\d[\w.+!-]*", number, re.ASCII)
            yield f"{package}: {number} then, {now} now{f'; pip install {package}=={number}' if plain else ''}"
    set_then, set_now = then.variables, environment.variables()
    its_own = {"CUBLAS_WORKSPACE_CONFIG"} if then.deterministic else set()  # it will set this again
    for name in sorted(({*set_then, *set_now} & {*environment.VARIABLES}) - its_own):
        if set_then.get(name) != set_now.get(name):
            remedy = f"export {name}={shlex.quote(set_then[name])}" if name in set_then else f"unset {name}"
            yield f"{name}: {set_then.get(name, 'not set')} then, {set_now.get(name, 'not set')} now; {remedy}"


if __name__ == "__main__":
    main()
