"""A web server on this machine that sends parts of files, in the place of an object store."""

import http.server
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, and the bytes of a `Range` request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Requests are not printed."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            super().do_GET()
            return
        path = Path(self.translate_path(self.path))
        first, last = int(wanted[1]), min(int(wanted[2]), path.stat().st_size - 1)
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        with path.open("rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder until the end of the block; yields its URL."""

    def handler(*arguments: Any) -> RangeHandler:
        return RangeHandler(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
