"""Whether the Hugging Face hub can be reached: without it, its library tries again for half a minute."""

import os
import socket
import urllib.parse
import urllib.request


def online() -> bool:
    if urllib.request.getproxies():
        return True
    host = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname, host.port or 443), timeout=5).close()
    except OSError:
        return False
    return True
