"""Test of the connection to the Hugging Face hub, whose library would retry for half a minute without one."""

import os
import socket
import urllib.parse
import urllib.request


def online() -> bool:
    """Whether the hub (or $HF_ENDPOINT) can be reached; behind a proxy always true, because only the proxy knows."""
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
