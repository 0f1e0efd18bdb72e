"""The test of the connection to the hub: which address it tries."""

import socket
import urllib.request
from io import BytesIO

import pytest

from zoo.hub.connection import online


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("http://mirror.example", ("mirror.example", 80)),
        ("https://mirror.example/hub", ("mirror.example", 443)),
        ("http://localhost:8080", ("localhost", 8080)),
        ("", ("huggingface.co", 443)),
    ],
)
def test_the_port_is_that_of_the_endpoint(endpoint, address, monkeypatch):
    tried = []
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", lambda to, timeout: (tried.append(to), BytesIO())[1])
    assert online()
    assert tried == [address]
