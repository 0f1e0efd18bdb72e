"""A stand-in of the Hugging Face hub on this machine: the requests that huggingface_hub makes to pull and push."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: name -> {path: content}.
        large: paths that are in the storage of large files, with SHA-256 instead of git's digest.
        cut_after: bytes after which the next longer download is interrupted, and all further ones are refused; None:
            not.
        ranges: the `Range` headers of all downloads that had one.
        is_damaged: the content that is sent differs from the digest.
        token: the token that uploads need.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = {}
        self.large, self.ranges, self.downloads = set(), [], []
        self.cut_after, self.is_damaged, self.token = None, False, None

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            if match[1] not in hub.repositories:
                return self.answer(404, {}, X_Error_Code="RepoNotFound")
            siblings = []
            for name, content in hub.repositories[match[1]].items():
                entry = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
                if name in hub.large:
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
                siblings.append(entry)
            return self.answer(200, {"id": match[1], "sha": COMMIT, "siblings": siblings})
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = match and hub.repositories.get(match[1], {}).get(match[2])
        if content is None:
            return self.answer(404, {}, X_Error_Code="EntryNotFound")
        return self.send_file(match[2], content)

    do_HEAD = do_GET

    def send_file(self, name, content):
        hub = self.server
        etag = sha256(content) if name in hub.large else git_sha1(content)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in {"Content-Length": len(content), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            return
        hub.downloads.append(name)
        sent = bytes(len(content)) if hub.is_damaged else content
        status, start = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            hub.ranges.append((name, wanted[0]))
            start, status = int(wanted[1]), 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if hub.cut_after == 0:
            self.answer(503, {"error": "down"})
        elif hub.cut_after is not None and len(content) > hub.cut_after:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content) - start))
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(sent[start : start + hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            hub.cut_after = 0
        else:
            self.answer(status, sent[start:], **headers)

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            about = json.loads(body)
            name = f"{about['organization']}/{about['name']}"
            hub.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"{hub.address}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        match = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if match[2] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                hub.repositories[match[1]][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer(200, {"commitUrl": f"{hub.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in of the hub, to which $HF_ENDPOINT points, and an empty cache of the zoo."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()
