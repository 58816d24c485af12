"""`ddpm-push`: shares a run that exists already, by hand or after a push of its own has failed."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ddpm_train.cli import app
from ddpm_train.config.mistakes import Mistakes
from ddpm_train.config.parts import Hub
from ddpm_train.config.program import Program
from ddpm_train.config.push import PUSHING, PushConfig
from ddpm_train.hub.preflight import is_offline, name_mistakes, push_mistakes
from ddpm_train.runs import checkpoint
from ddpm_train.runs.folder import CHECKPOINTS, CONFIG, read_part
from ddpm_train.system import exit_codes
from ddpm_train.system.signals import handle_signals


@dataclass(frozen=True)
class _Pushes:
    """What of a run's config says where it is pushed to."""

    hub: Hub


def main() -> None:
    app.main(Program("ddpm-push", "push", "run", "'run={}'", PUSHING, preflight), job, alone=True)


def preflight(config: PushConfig) -> Iterator[str]:
    """What is wrong on this machine and at the Hub, a line each."""
    run = Path(config.run)
    wanted = _wanted(config)
    if not (run / CONFIG).is_file():
        what = "no such folder" if not run.is_dir() else f"not a run: no {CONFIG} in it"
        yield f"run={config.run}: {what}; give the folder of a run, such as outputs/default"
    elif not checkpoint.published(run / CHECKPOINTS):
        yield f"run={config.run}: no checkpoint yet; push it once it has saved one"
    wrong_name = list(name_mistakes("repo_id", wanted.repo_id))
    yield from wrong_name
    if is_offline():
        yield f"run={config.run}: HF_HUB_OFFLINE is set; unset it to push"
        return
    repo_id = None if wrong_name else wanted.repo_id
    yield from push_mistakes(f"run={config.run}", "repo_id", repo_id, wanted.private)


def job(config: PushConfig, values: dict[str, Any]) -> None:
    # torch takes seconds to import; a typo must not wait for it.
    from ddpm_train.training.push import push_run

    handle_signals(lambda *_: sys.exit(exit_codes.REQUEUE))  # leaving no folder of links behind
    push_run(Path(config.run), _wanted(config))


def _wanted(config: PushConfig) -> Hub:
    """The command's keys, and what the run's config says where the command says nothing."""
    try:
        hub = read_part(Path(config.run), _Pushes).hub
    except Mistakes:  # there is no config that can be read
        hub = Hub(True, None, None, None, "every_save", 1, 1, 1)
    keys = ("repo_id", "private", "revision", "strategy")
    given = {key: value for key in keys if (value := getattr(config, key)) not in (None, "")}
    given |= {"retry_minutes": config.retry_minutes, "finish_minutes": config.retry_minutes}
    return replace(hub, push=True, stall_seconds=config.stall_seconds, **given)


if __name__ == "__main__":
    main()
