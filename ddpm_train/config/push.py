"""The keys of `ddpm-push`, typed; the values stand in `conf/push.yaml`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from ddpm_train.config.parts import Real, Required, Section
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class PushConfig(Section):
    """All keys of `ddpm-push`. None: what the run's own config says."""

    run: Annotated[str, Required]
    repo_id: str | None
    private: bool | None
    revision: str | None
    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None
    retry_minutes: Annotated[Real, Gt(0)]
    stall_seconds: Annotated[Real, Gt(0)]
    extensions: tuple[str, ...] = ()  # modules to import, which the run's config names


PUSHING = Schema(PushConfig)
