"""Asking the Hugging Face Hub which commit is meant; what can go wrong there, in one line each."""

from ddpm_train.mistakes import Mistakes


def find_commit(
    kind: str, repository: str, revision: str | None, *, key: str, revision_key: str
) -> tuple[str | None, str | None]:
    """The commit that the Hub has for a revision, or None and why the Hub does not say.

    Args:
        kind: "dataset" or "model".
        key, revision_key: how the user wrote the repository and the revision, for the messages.

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

    place = f"{key}={repository}"
    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        return ask(repository, revision=revision, timeout=20).sha, None
    except RepositoryNotFoundError:
        token = "with this HF_TOKEN" if get_token() else "without a token; if it is private, set HF_TOKEN"
        raise Mistakes(f"{place}: no such {kind} on the Hub {token}") from None
    except RevisionNotFoundError:
        raise Mistakes(f"{revision_key}={revision}: not in {repository}; give a branch, tag or commit of it") from None
    except HFValidationError:
        raise Mistakes(f"{place}: neither a folder nor a repository name of the form owner/name") from None
    except OfflineModeIsEnabled:
        return None, "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise Mistakes(
                f"{place}: the Hub refuses this HF_TOKEN; check it, or unset it for a public {kind}"
            ) from None
        return None, f"the Hub answers {str(error).splitlines()[0]}"
    except Exception as error:
        # The HTTP client's own errors (it was httpx, and is not always): nobody answers at HF_ENDPOINT.
        return None, f"the Hub cannot be reached ({type(error).__name__})"
