"""`ddpm-reproduce`: prints the command that repeats a run, and warns of what is not today as it was then."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from ddpm_train.cli.app import tell
from ddpm_train.config.mistakes import Mistakes, as_written
from ddpm_train.runs import checkpoint, environment
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, ENVIRONMENT, read_config
from ddpm_train.runs.state import read_state


def main() -> None:
    parser = argparse.ArgumentParser(prog="ddpm-reproduce", description="Prints the command that repeats a run.")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, such as outputs/default")
    run = parser.parse_args().run
    try:
        config, environments = _recorded(run)
    except Mistakes as mistakes:
        tell(mistakes)
    for line in [*_history(run, environments), *_differences(environments[-1])]:
        print(f"warning: {line}", file=sys.stderr)
    print(command(run, config, environments[-1]))


def command(run: Path, config: dict[str, Any], then: dict[str, Any]) -> str:
    """Repeats the run beside itself: its config, as many processes, and what `auto` had chosen."""
    launcher = ["ddpm-train"]
    if then["num_processes"] > 1:
        how = ["accelerate", "launch", "--cpu" if then["device"].startswith("cpu") else "--multi_gpu"]
        launcher = [*how, "--num_processes", str(then["num_processes"]), "-m", "ddpm_train.cli.train"]
    name = f"{config['name']}_repeated"
    settled = {"micro_batch_size": then["micro_batch_size"], **then["compute"]}
    chosen = {f"train.{key}": as_written(value) for key, value in settled.items()}
    changed = {"name": name, "output_dir": str(Path(config["output_dir"]).parent / name), **chosen}
    saved = ["--config-path", str(run), "--config-name", "config"]
    return shlex.join([*launcher, *saved, *(f"{key}={value}" for key, value in changed.items())])


def _recorded(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The run's config, and what computed it, in order.

    Raises:
        Mistakes: no run is there, or none that recorded it.
    """
    try:
        return read_config(run / CONFIG), json.loads((run / ENVIRONMENT).read_text())
    except OSError as error:
        missing = Path(str(error.filename)).name
        raise Mistakes(f"{run}: {missing} cannot be read; give the folder of a run, such as outputs/default") from None


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


def _differences(then: dict[str, Any]) -> Iterator[str]:
    """What is not today as it was when the run ended, with the remedy."""
    commit, today = then["commit"], environment.commit()
    if commit and (today is None or commit["id"] != today["id"]):
        yield f"commit: {commit['id']} then, {today['id'] if today else 'unknown'} now; git checkout {commit['id']}"
    if commit and commit["dirty"]:
        yield "commit: the code then had changes that no commit holds"
    if today and today["dirty"]:
        yield "commit: the code now has changes that no commit holds"
    versions = environment.versions()
    for package, number in then["versions"].items():
        if (now := versions.get(package, "none")) != number:
            remedy = "" if package in ("python", "ddpm-train") else f"; pip install {package}=={number}"
            yield f"{package}: {number} then, {now} now{remedy}"
    set_then, set_now = then.get("variables", {}), environment.variables()
    its_own = {"CUBLAS_WORKSPACE_CONFIG"} if then.get("deterministic") else set()  # it will set this again
    for name in sorted({*set_then, *set_now} - its_own):
        if set_then.get(name) != set_now.get(name):
            remedy = f"export {name}={set_then[name]}" if name in set_then else f"unset {name}"
            yield f"{name}: {set_then.get(name, 'not set')} then, {set_now.get(name, 'not set')} now; {remedy}"


if __name__ == "__main__":
    main()
