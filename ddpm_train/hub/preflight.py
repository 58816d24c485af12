"""Whether a push could succeed: asked before a run starts, so that nobody learns of it after days."""

import os
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from ddpm_train.hub.access import ASKING_SECONDS, limit_waiting, reason, status_of, with_retries

SCHEME = "hf://"
_URI = re.compile(rf"{SCHEME}(?P<repo_id>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_NAME = re.compile(r"[\w-][\w.-]*")
_RETRY_SECONDS = 5.0


def parse_uri(text: str) -> tuple[str, str | None] | None:
    """Repository and revision of hf://owner/name[@revision]; None if it is not of that form."""
    match = _URI.fullmatch(text)
    return (match["repo_id"], match["revision"]) if match else None


def is_offline() -> bool:
    """Whether the user keeps the Hub's clients from the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def name_mistakes(key: str, repo_id: str | None) -> Iterator[str]:
    """A line if that cannot be the name of a repository. Asks nobody."""
    if repo_id is None:
        yield f"{key}=null: where to? give {key}=owner/name"
        return
    parts = repo_id.split("/")
    if len(parts) != 2 or not all(map(_NAME.fullmatch, parts)) or re.search(r"--|\.\.|\.git$|[.-]$", repo_id):
        yield f"{key}={repo_id}: cannot be a repository; give owner/name, of letters, digits and single - _ ."
    elif len(parts[1]) > 96:
        yield f"{key}={repo_id}: {len(parts[1])} characters; the Hub takes names of at most 96"


def push_mistakes(
    asked_by: str, key: str, repo_id: str | None, private: bool | None, *, otherwise: str = ""
) -> Iterator[str]:
    """Token, permission, repository and reachability: a line for what would keep a push from succeeding.

    Args:
        asked_by, key: how the user asked for a push and named the repository, for the messages.
        repo_id: None if its name is wrong already.
        otherwise: what else one may do while the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        yield f"{asked_by}: no token; log in with `hf auth login`, or set HF_TOKEN to one that may write"
        return
    limit_waiting(ASKING_SECONDS)
    api = HfApi()
    try:
        me = with_retries(api.whoami, give_up_seconds=_RETRY_SECONDS)
    except Exception as error:
        yield f"{asked_by}: {_remedied(error, otherwise)}"
        return
    places = [me["name"], *(org["name"] for org in me.get("orgs", []))]
    role = me.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        yield f"{asked_by}: this token may only read; make one that may write, and set HF_TOKEN to it"
    if repo_id is None:
        return
    owner, name = repo_id.split("/")
    if owner not in places:
        yield f"{key}={repo_id}: this token belongs to {' and '.join(places)}; give {key}={me['name']}/{name}"
    elif role != "read":
        ask = partial(_repository_mistakes, api, key, repo_id, private)
        try:
            yield from with_retries(lambda: list(ask()), give_up_seconds=_RETRY_SECONDS)
        except Exception as error:
            yield f"{key}={repo_id}: {_remedied(error, otherwise)}"


def _repository_mistakes(api: Any, key: str, repo_id: str, private: bool | None) -> Iterator[str]:
    """What is in the way if the repository exists already. Whether it may be written to is tried."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        info = api.model_info(repo_id, timeout=ASKING_SECONDS)
    except RepositoryNotFoundError:
        return
    if private is not None and info.private != private:
        wish = f"{key.removesuffix('repo_id')}private={str(private).lower()}"
        is_now = "private" if info.private else "public"
        yield f"{wish}: {repo_id} exists and is {is_now}; change that in its settings"
    try:
        # The first thing that an upload asks; it changes nothing.
        api.preupload_lfs_files(repo_id, [CommitOperationAdd("README.md", b"-")])
    except HfHubHTTPError as error:
        if status_of(error) not in (401, 403):
            raise
        yield f"{key}={repo_id}: this token may not write there; use another, or another repository"


def _remedied(error: Exception, otherwise: str) -> str:
    status = status_of(error)
    if status == 401:
        return "the Hub refuses this token; log in with `hf auth login`, or set HF_TOKEN to one that may write"
    if status is not None:
        return f"{reason(error)}; try again later{otherwise}"
    endpoint = os.environ.get("HF_ENDPOINT")
    return f"{reason(error)}; check the network and HF_ENDPOINT{f'={endpoint}' if endpoint else ''}{otherwise}"
