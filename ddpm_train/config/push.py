"""The keys of `ddpm-push`, typed; the values stand in `conf/push.yaml`."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from ddpm_train.config.parts import FilePath, Minutes, Real, Required, Section
from ddpm_train.config.schema import Schema


@dataclass(frozen=True)
class PushConfig(Section):
    """All keys of `ddpm-push`. None: what the run's own config says."""

    run: Annotated[FilePath, Required]
    repo_id: str | None
    private: bool | None
    revision: str | None
    strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] | None
    retry_minutes: Minutes
    stall_seconds: Annotated[Real, Gt(0), Le(1_000_000)]
    extensions: tuple[str, ...] = ()  # modules to import, which the run's config names


PUSHING = Schema(PushConfig)
