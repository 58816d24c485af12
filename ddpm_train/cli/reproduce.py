"""`ddpm-reproduce`: prints the commands that repeat a run, and warns of what is not today as it was then.

A person copies the commands and runs them, and the run may come from somebody else. So a command holds only values that
were checked.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from ddpm_train._version import __version__
from ddpm_train.cli.app import printing, tell
from ddpm_train.config.foreign import BadFile, read_json
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.config.overrides import as_overrides
from ddpm_train.config.schema import dotted_values
from ddpm_train.config.text import shown
from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, read_config
from ddpm_train.runs.length import LENGTH
from ddpm_train.system.output import forgiving, take_every_character


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


@dataclass(frozen=True)
class _Change:
    step: int
    key: str
    was: Annotated[Any, Field(alias="from")]
    to: Any


@dataclass(frozen=True)
class _State:
    """What the newest checkpoint says of the run's config, see `ResumedState`."""

    changes: list[_Change]
    max_steps: int | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="ddpm-reproduce", description="Prints the commands that repeat a run.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, such as outputs/default")
    run = parser.parse_args().run
    take_every_character()
    sys.stderr = forgiving(sys.stderr)
    try:
        config, environments, then = _recorded(run)
        stretches, lines = _stretches(run, config)
        repeat = [command(run, config, then, changed) for changed in stretches]
    except Mistakes as mistakes:
        tell(mistakes, everyone=True)
    for line in [*lines, *_history(environments), *_differences(then)]:
        print(f"warning: {shown(line)}", file=sys.stderr)
    with printing():
        print("\n".join(repeat))


def command(run: Path, config: dict[str, Any], then: _Then, changed: Mapping[str, Any]) -> str:
    """Repeats the run beside itself: its config, as many processes, and what `auto` had chosen.

    Args:
        changed: the keys that are not as the config has them.

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
    output_dir = str(Path(config["output_dir"]).parent / name)
    # From its beginning, and not into the repository of the run itself.
    apart = {"resume": "auto"} | ({"hub.push": False} if (config.get("hub") or {}).get("push") else {})
    overrides = {"name": name, "output_dir": output_dir, **apart, **chosen, **changed}
    for key, value in overrides.items():
        # It would stand in the command, and there be resolved, or be another line.
        if "${" in str(value) or not (str(value).isprintable() and re.fullmatch(r"[\w.]+", key)):
            raise Mistakes(f"{run}: {key}={value}: no run of this program has that; do not trust its files")
    saved = ["--config-path", str(run), "--config-name", "config"]
    return shlex.join([*launcher, *saved, *as_overrides(overrides)])


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


def _stretches(run: Path, config: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The keys, besides the run's config, of the commands that repeat it: one to each change of the config on the way,
    and one from there to the end. And what to say of them.
    """
    checkpoints = checkpoint.published(run / CHECKPOINTS)
    try:
        state = read_json(checkpoints[-1] / checkpoint.STATE, _State) if checkpoints else None
    except (BadFile, OSError) as error:
        return [{}], [f"{error}; changes of the config on the way are not known"]
    if state is None:
        return [{}], [f"{run / CHECKPOINTS}: no checkpoint; changes of the config on the way are not known"]
    if not state.changes:
        return [{}], []
    stretches = _until_changes(state, dict(dotted_values(config)))
    if stretches is None:
        return [{}], [
            f"{change.key}: changed from {as_written(change.was)} to {as_written(change.to)} at step "
            f"{change.step}; no command repeats that change; the command here has the value of the end"
            for change in state.changes
        ]
    return stretches, [f"the config changed on the way: give these {len(stretches)} commands one after the other"]


def _until_changes(state: _State, values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The keys of each command; None: a key cannot be changed back, or a command not end where it must.

    Args:
        values: the run's config at its end, by dotted key.
    """
    steps = sorted({change.step for change in state.changes if change.step})
    length, before, stretches = state.max_steps or values["train.max_steps"], dict[str, Any](), [dict[str, Any]()]
    for step in reversed(steps):
        changes = [change for change in state.changes if change.step == step]
        if any(change.key not in values or change.key.endswith(".name") for change in changes):
            return None  # a choice brings keys of its own, and others stand for what is no key
        accepted = [change.key for change in changes if change.key not in LENGTH]
        stretches[0] |= {"allow_change": accepted} if accepted else {}
        before |= {change.key: change.was for change in changes}
        length = before.pop("train.max_steps", length)
        stretch = {**before, "train.max_steps": step, "train.epochs": None}
        if "lr_scheduler.total_steps" in values:
            stretch["lr_scheduler.total_steps"] = before.get("lr_scheduler.total_steps") or length
        elif step != length and values["lr_scheduler.name"] != "constant":
            return None
        stretches.insert(0, stretch)
    return stretches


def _history(environments: list[dict[str, Any]]) -> Iterator[str]:
    """Why the commands may not make the same weights again to the bit."""
    for before, after in pairwise(environments):
        changed = [key for key in after if key not in ("from_step", "command") and before.get(key) != after[key]]
        if changed:
            yield (
                f"step {after['from_step']}: from here on another {', '.join(changed)}; a repetition is rounded "
                "differently"
            )


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
