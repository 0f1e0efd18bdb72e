"""The connection to the Hugging Face hub: a test, which saves the library's retries, its client, and its errors."""

import os
import socket
import sys
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def endpoint() -> str:
    """Address of the hub: $HF_ENDPOINT, else https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def online() -> bool:
    """Whether the hub (or $HF_ENDPOINT) can be reached; behind a proxy always true, because only the proxy knows."""
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlsplit(endpoint())
    try:
        port = host.port or (80 if host.scheme == "http" else 443)
        socket.create_connection((host.hostname, port), timeout=5).close()
    except OSError:
        return False
    return True


def hub_api() -> Any:
    """The hub's client, huggingface_hub.HfApi, for the address in $HF_ENDPOINT as it is now."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint())


def download(repository: str, name: str, commit: str, part: Path, size: int) -> None:
    """Download a file of the hub into `part`, which holds its first bytes where an earlier download was interrupted."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    # `hf_hub_download` of the library's newer versions starts an interrupted file over.
    if part.exists() and part.stat().st_size > size:
        part.unlink()
    url = hf_hub_url(repository, name, revision=commit, endpoint=endpoint())
    with part.open("ab") as file:
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=size,
            displayed_filename=name,
        )


def show_progress(message: str) -> None:
    """On a terminal let the hub's library show a bar for each file; elsewhere print one line instead."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    (enable_progress_bars if sys.stderr.isatty() else disable_progress_bars)()
    if not sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)


def describe_hub_error(error: Exception, repository: str, revision: str | None = None) -> str:
    """One sentence on an error of the hub's client, with the remedy."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        page = f"{endpoint()}/{repository}"
        return f"{repository} is gated: accept its conditions at {page}, and log in with `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision}: give a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no repository {repository}, or it is private: check the name, or log in with `hf auth login`"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub does not allow this for {repository}: log in with `hf auth login`, with a token that may write"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return f"the request to the hub for {repository} failed ({reason}): try again, a download continues"
