"""What sets one program's command line apart from another's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ddpm_train.config.objective import Criterion
from ddpm_train.config.program import Program

C = TypeVar("C")


@dataclass(frozen=True)
class Sweeps(Generic[C]):
    """What a program needs for sweeps whose jobs run in processes of their own and are compared.

    Attributes:
        module: the program, as `python -m` takes it.
        preflight: the program's, for a job of so many processes.
        criterion: what the jobs are compared by.
    """

    module: str
    preflight: Callable[[C, int], Iterator[str]]
    criterion: Callable[[C], Criterion | None]


@dataclass(frozen=True)
class Command(Generic[C]):
    """What one program makes of a command line.

    Attributes:
        name: how a user calls it.
        output_key: the key that names the folder of a run.
        naming: how to name the runs of a sweep apart, with {} for what varies.
        job: takes the config, and the same as plain values to be saved with the run.
        sweeps: None: a sweep's jobs run one after the other in this process.
    """

    name: str
    program: Program[C]
    output_key: str
    naming: str
    job: Callable[[C, dict[str, Any]], None]
    sweeps: Sweeps[C] | None = None
