"""Asking the Hugging Face Hub; what can go wrong there, in one line each; how long to wait for it."""

import errno
import os
from collections.abc import Callable
from typing import TypeVar

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.system.failures import one_line, retry

# A call that must answer before a run starts gives up after this long without a byte.
ASKING_SECONDS = 15.0
# What another try cannot change. Everything else may be the network, or a server that is restarted.
_FINAL = (401, 402, 403, 404)
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")  # which the client trusts; it opens them without saying their names
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)

T = TypeVar("T")


def limit_waiting(seconds: float) -> None:
    """Give up a connection to the Hub on which nothing moves for so long. By itself the client waits for ever.

    Raises:
        Mistakes: a variable names a proxy that the client cannot use.
    """
    from huggingface_hub import get_session

    try:
        get_session().timeout = seconds
    except (ValueError, ImportError) as error:
        remedy = "give http://HOST:PORT, or unset it"
        raise Mistakes(f"ALL_PROXY, HTTPS_PROXY or HTTP_PROXY: {one_line(error).rstrip('.')}; {remedy}") from None


def with_retries(call: Callable[[], T], *, give_up_seconds: float) -> T:
    """The result of `call`, tried again (see `retry`) where another try can help: what the client does not repeat.

    Raises:
        Exception: the client's own.
    """
    return retry(call, seconds=give_up_seconds, is_final=_is_final, asked_to_wait=_retry_after)


def _is_final(error: Exception) -> bool:
    """Whether another try cannot help."""
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    final = FileNotFoundError | ValueError | ImportError | HFValidationError | OfflineModeIsEnabled | Mistakes
    return status_of(error := _cause(error)) in _FINAL or isinstance(error, final)


def reason(error: Exception) -> str:
    """What went wrong with the Hub, as it follows "because"."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if not constants.ENDPOINT.startswith(("http://", "https://")):
        return f"HF_ENDPOINT={constants.ENDPOINT} does not begin with https://"
    error = _cause(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, HfHubHTTPError):
        said = getattr(error, "server_message", None) or str(error)
        return f"the Hub answers {status_of(error) or 'with an error'}: {' '.join(said.split())[:200]}"
    if isinstance(error, UnicodeEncodeError):  # of the header that it stands in, which is the only text that is sent
        return "the token (HF_TOKEN, or what `hf auth login` has stored) holds characters that no token has"
    if isinstance(error, UnicodeDecodeError):
        return f"the token in {constants.HF_TOKEN_PATH} is no text (hf auth login stores it anew)"
    if isinstance(error, OSError) and (variable := next(filter(os.environ.get, _CERTIFICATES), None)):
        return f"{variable}={os.environ[variable]} cannot be used: {one_line(error)}"
    if "Timeout" in type(error).__name__:
        return "the Hub does not answer"
    if "Error" in type(error).__name__ and not isinstance(error, OSError | ValueError | RuntimeError | ImportError):
        # The HTTP client's own errors (it was requests, then httpx, and may change again).
        return f"the Hub cannot be reached ({type(error).__name__})"
    return one_line(error)


def _cause(error: Exception) -> Exception:
    """What really happened: the client raises a failed download as a ValueError or FileNotFoundError, from that."""
    while isinstance(error, ValueError | FileNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def status_of(error: Exception) -> int | None:
    """The status of the HTTP answer that an error is about, if it is about one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _retry_after(error: Exception) -> float:
    """The seconds that the Hub asks to wait for."""
    asked = getattr(getattr(_cause(error), "response", None), "headers", {}).get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0


def into_cache(place: str, download: Callable[[], T]) -> T:
    """What a download returns.

    Args:
        place: how the user wrote what is downloaded, for the message.

    Raises:
        Mistakes: the client's cache cannot be written, or the owner has not let this user in.
        Exception: the client's other errors.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError

    try:
        return download()
    except GatedRepoError:
        whose = "the owner of this HF_TOKEN" if get_token() else "you, without a token"
        remedy = "ask for access on its page at the Hub, and set HF_TOKEN"
        raise Mistakes(f"{place}: gated, and its owner has not let in {whose}; {remedy}") from None
    except OSError as error:
        if error.filename is None or error.errno not in _UNWRITABLE:
            raise
        line = f"{place}: {error.filename}: {error.strerror}; set HF_HOME to a folder that can be written"
        raise Mistakes(line) from None


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
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"{key}={repository}"
    if revision == "":
        raise Mistakes(f"{revision_key}=: empty; give a branch, tag or commit of {repository}, or leave it out")
    ask = HfApi().dataset_info if kind == "dataset" else HfApi().model_info
    try:
        return ask(repository, revision=revision, timeout=ASKING_SECONDS).sha, None
    except RepositoryNotFoundError:
        token = "with this HF_TOKEN" if get_token() else "without a token; if it is private, set HF_TOKEN"
        raise Mistakes(f"{place}: no such {kind} on the Hub {token}") from None
    except RevisionNotFoundError:
        raise Mistakes(f"{revision_key}={revision}: not in {repository}; give a branch, tag or commit of it") from None
    except HFValidationError:
        raise Mistakes(f"{place}: neither a folder nor a repository name of the form owner/name") from None
    except Exception as error:
        if status_of(error) in (401, 403):
            remedy = f"check it, or unset it for a public {kind}"
            raise Mistakes(f"{place}: the Hub refuses this HF_TOKEN; {remedy}") from None
        return None, reason(error)


def find_licence(dataset: str, revision: str | None) -> str | None:
    """What the card of a dataset on the Hub says of its licence; None if it says nothing or cannot be asked."""
    from huggingface_hub import HfApi

    try:
        card = HfApi().dataset_info(dataset, revision=revision, timeout=ASKING_SECONDS).card_data
    except Exception:  # the model card then says that it is unknown
        return None
    licence = card.get("license") if card is not None else None
    return ", ".join(licence) if isinstance(licence, list) else licence
