"""What the `datasets` library loads: a repository on the Hub or on the disk, `save_to_disk` folders, parquet files."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm_train.mistakes import Mistakes

if TYPE_CHECKING:
    from ddpm_train.config import Dataset


def load_dataset(config: "Dataset", split: str) -> Any:
    """One split of `dataset.path`, a `datasets.Dataset`.

    Raises:
        Mistakes: there is no such dataset, revision, configuration or split, or it cannot be had now.
    """
    import datasets

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(config.path).expanduser()
    try:
        if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
            loaded = datasets.load_from_disk(str(path))
            if not isinstance(loaded, datasets.DatasetDict):
                return loaded
            if split not in loaded:
                raise ValueError(f'Unknown split "{split}". Should be one of {sorted(loaded)}.')
            return loaded[split]
        if path.suffix == ".parquet" and path.exists():
            return datasets.load_dataset("parquet", data_files=str(path), split="train")
        if path.is_dir():
            return datasets.load_dataset(str(path), config.config_name, split=split)
        return _load_from_hub(config, split)
    except ValueError as error:
        raise Mistakes(_value_mistake(config, split, error)) from None
    except (datasets.exceptions.DatasetsError, OSError) as error:
        raise Mistakes(f"dataset.path={config.path}: {str(error).splitlines()[0]}") from None


def _load_from_hub(config: "Dataset", split: str) -> Any:
    """One split of the repository `owner/name`.

    The Hub is asked first which commit `dataset.revision` means: that answers within a moment where `load_dataset`
    alone would retry a Hub that is down for 23 s, and a pinned commit keeps it from asking a second service (which a
    mirror does not have, and which would be sent the token). Without a Hub the cached copy serves.
    """
    import datasets

    datasets.config.USE_PARQUET_EXPORT = False
    commit, problem = _commit(config)
    if problem is not None:
        datasets.config.HF_HUB_OFFLINE = True
    try:
        return datasets.load_dataset(config.path, config.config_name, split=split, revision=commit or config.revision)
    except ConnectionError:
        raise Mistakes(
            f"dataset.path={config.path}: {problem or 'the Hub went away'}, and there is no copy of it in the cache; "
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        ) from None


def _value_mistake(config: "Dataset", split: str, error: ValueError) -> str:
    """What `load_dataset` says of a split or a configuration, as a line."""
    first = next(line for line in [*str(error).splitlines(), type(error).__name__] if line)
    if "Unknown split" in first:
        key = "split" if split == config.split else "validation_split"
        return f"dataset.{key}={split}: {first}"
    if "BuilderConfig" in first or "Config name" in first:
        return f"dataset.config_name={config.config_name or 'null'}: {' '.join(str(error).split())}"
    return f"dataset.path={config.path}: {first}"


def _commit(config: "Dataset") -> tuple[str | None, str | None]:
    """The commit that the Hub has for `dataset.revision`, or None and why the Hub does not say.

    Raises:
        Mistakes: the Hub says that there is no such thing, or that the token may not see it.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = f"dataset.path={config.path}"
    try:
        return HfApi().dataset_info(config.path, revision=config.revision, timeout=20).sha, None
    except RepositoryNotFoundError:
        token = "with this HF_TOKEN" if get_token() else "without a token; if it is private, set HF_TOKEN"
        raise Mistakes(f"{place}: no such dataset on the Hub {token}") from None
    except RevisionNotFoundError:
        raise Mistakes(
            f"dataset.revision={config.revision}: not in {config.path}; give a branch, tag or commit of it"
        ) from None
    except HFValidationError:
        raise Mistakes(f"{place}: neither a folder nor a repository name of the form owner/name") from None
    except OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise Mistakes(
                f"{place}: the Hub refuses this HF_TOKEN; check it, or unset it for a public dataset"
            ) from None
        return None, f"the Hub answers {str(error).splitlines()[0]}"
    except Exception as error:
        # The HTTP client's own errors (it was httpx, and is not always): nobody answers at HF_ENDPOINT.
        return None, f"the Hub cannot be reached ({type(error).__name__})"
