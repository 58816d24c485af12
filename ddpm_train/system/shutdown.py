"""How a program without a training loop runs and ends: asked to stop, mistaken, or broken on one of many processes."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import diffusers
import torch

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.system import exit_codes
from ddpm_train.system.compute import keep_memory
from ddpm_train.system.signals import Stopped, StopRequest

# A process that has done its share waits for the others, however long they take; a dead one ends all at once.
PATIENCE = timedelta(days=30)


@contextmanager
def orderly(*, again: str) -> Iterator[StopRequest]:
    """Run a program's work, without gradients.

    Args:
        again: what the same command does after a stop.
    """
    stop = StopRequest()
    diffusers.logging.set_verbosity_error()
    keep_memory()
    try:
        with torch.inference_mode():
            yield stop
    except Stopped:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped ({stop.signal_name}); {again}", flush=True)
        sys.exit(exit_codes.REQUEUE)
    except Mistakes:
        raise
    except Exception:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # an orderly end would wait for the others
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
