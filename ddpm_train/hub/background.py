"""Pushes in the background: one in flight, the newest wins, and nothing of it reaches training."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ddpm_train.hub.push import Push
from ddpm_train.hub.share import Shared
from ddpm_train.runs import checkpoint


@dataclass(frozen=True)
class Outcome:
    """How the newest push ended: with a commit or an error."""

    step: int
    commit: str = ""
    error: str = ""


class PushThread:
    """Pushes checkpoints of one run, each from a folder of links that does not change, in a process of its own.

    A push that fails is reported, and the next one brings what it did not.

    Args:
        shared: the run; no single push of it may take longer than its `hub.finish_minutes`.
        warn: shows a line to a person.
        check: called before each push; may raise.
    """

    def __init__(self, shared: Shared, warn: Callable[[str], None], check: Callable[[], None]) -> None:
        self._shared = shared
        self._warn = warn
        self._check = check
        self._condition = threading.Condition()
        self._waiting: Path | None = None
        self._busy = False
        self._process: subprocess.Popen[str] | None = None
        self._step = 0
        self._outcome: Outcome | None = None
        self._finishing = self._over = False
        threading.Thread(target=self._run, name="push", daemon=True).start()

    def submit(self, path: Path) -> None:
        """Have the checkpoint at `path` pushed; one that still waits is passed over."""
        with self._condition:
            self._waiting = path
            self._condition.notify_all()

    def finish(self, seconds: float) -> Outcome | None:
        """Wait so long for what was submitted, and end what is not done by then.

        Returns:
            How the last push ended; None if none was submitted.
        """
        with self._condition:
            self._finishing = True
            if not self._condition.wait_for(lambda: self._waiting is None and not self._busy, seconds):
                step = checkpoint.step_of(self._waiting) if self._waiting else self._step
                self._outcome = Outcome(step, error=f"it did not end within {seconds:.0f} s")
            self._over = True
            if self._process is not None:
                self._process.kill()
            self._condition.wait_for(lambda: not self._busy, 5.0)
        return self._outcome

    def _run(self) -> None:
        while not self._over:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting is not None)
                path, self._waiting, self._busy = self._waiting, None, True
                assert path is not None
                self._step = checkpoint.step_of(path)
            try:
                outcome = Outcome(self._step, **self._push(path))
            except Exception as error:
                outcome = Outcome(self._step, error=f"{type(error).__name__}: {error}")
            with self._condition:
                if not self._over:
                    self._outcome = outcome
                self._busy = False
                self._condition.notify_all()
            if outcome.error and not self._finishing:
                missing = f"step {outcome.step:,} was not pushed to {self._shared.hub.repo_id}"
                self._warn(f"warning: {missing}: {outcome.error}; the next save pushes it")

    def _push(self, path: Path) -> dict[str, str]:
        """{"commit": …} or {"error": …}."""
        self._check()
        folder = self._shared.run / ".push"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            return self._in_a_process(self._shared.stage(path, folder))
        except FileNotFoundError:
            if path.exists():
                raise
            return {"error": "it was removed before it could be read; raise checkpoint.keep_last"}
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _in_a_process(self, push: Push) -> dict[str, str]:
        imported_from = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([imported_from, os.environ.get("PYTHONPATH", "")])
        with self._condition:
            if self._over:
                return {"error": "the run ended"}
            # A session of its own: Ctrl-C is for the run, which then decides. It dies with the run: its input ends.
            self._process = process = subprocess.Popen(
                [sys.executable, "-P", "-m", Push.__module__],
                env={**os.environ, "PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        assert process.stdin is not None and process.stdout is not None
        seconds = 60 * self._shared.hub.finish_minutes
        limit = threading.Timer(seconds, process.kill)
        limit.start()
        process.stdin.write(json.dumps(asdict(push)) + "\n")
        process.stdin.flush()
        said = process.stdout.read().splitlines()
        limit.cancel()
        process.wait()
        process.stdin.close()
        with self._condition:
            self._process = None
        try:
            outcome: dict[str, str] = json.loads(said[-1])
            return outcome
        except (ValueError, IndexError):
            return {
                "error": f"the pushing process ended: {said[-1]}" if said else f"it did not end within {seconds:.0f} s"
            }
