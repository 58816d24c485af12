"""Images that kill the worker that decodes them, as the kernel does when memory runs out."""

import multiprocessing
import os
import signal

import numpy as np

from ddpm_train.data.decode import Decoder
from ddpm_train.data.sources import FolderSource


class Deadly(FolderSource):
    """There are so many that the parent is not done before the workers are there."""

    def __len__(self) -> int:
        return 10**6

    def load(self, index: int, decoder: Decoder) -> np.ndarray:
        if multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().load(index % 4, decoder)
