"""A headless Chromium, driven through chromedriver by the W3C WebDriver protocol."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from urllib.error import HTTPError

# Without 3D, TensorBoard draws with SVG, which needs less time without a GPU.
OPTIONS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
    "--hide-scrollbars", "--disable-3d-apis",
]  # fmt: skip
# The text of a page with its shadow roots, and all its elements of a selector.
DEEP = """
const walk = function*(node) {
  for (const child of node.childNodes) {
    if (child.nodeName === 'STYLE' || child.nodeName === 'SCRIPT') continue;
    yield child;
    if (child.shadowRoot) yield* walk(child.shadowRoot);
    yield* walk(child);
  }
};
const nodes = () => [...walk(document.body)];
const text = () => nodes().filter(n => n.nodeType === 3).map(n => n.data.trim()).filter(Boolean).join('\\n');
const select = s => nodes().filter(n => n.nodeType === 1 && n.matches(s));
"""


def missing_browser() -> str | None:
    """Which program is not installed; None if all are."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian: chromium, chromium-driver)" if absent else None


class Browser:
    """A session of chromedriver.

    Args:
        url: of the session.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, page: str) -> None:
        _request(f"{self.url}/url", {"url": "about:blank"})  # so that a change of the fragment loads the page again
        _request(f"{self.url}/url", {"url": page})

    def run(self, script: str):
        """What JavaScript returns; `text()` and `select(selector)` see through shadow roots."""
        return _request(f"{self.url}/execute/sync", {"script": DEEP + script, "args": []})

    def wait(self, condition: str, seconds: float = 600):
        """The value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + seconds
        value = None
        while time.monotonic() < end:
            with contextlib.suppress(HTTPError):  # the page is too busy to answer
                if value := self.run(f"return {condition}"):
                    return value
            time.sleep(0.5)
        raise TimeoutError(f"{condition} is still {value!r}; the page reads:\n{self.run('return text()')[:2000]}")

    def screenshot(self, path) -> None:
        path.write_bytes(base64.b64decode(_request(f"{self.url}/screenshot")))


def _request(url: str, content=None, method: str | None = None):
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=180) as response:
        return json.load(response)["value"]


@contextlib.contextmanager
def chromium(profile, width: int = 1400, height: int = 900):
    """A `Browser` with an empty profile in the folder `profile`."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        # "ChromeDriver was started successfully on port 12345."
        port = next(line.split()[-1].rstrip(".") for line in driver.stdout if "started successfully on port" in line)
        options = {"args": [*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]}
        # `open` does not wait for the page, which may need minutes on a busy machine; `wait` does.
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "pageLoadStrategy": "none"}}}
        session = f"http://127.0.0.1:{port}/session"
        identifier = _request(session, wanted)["sessionId"]
        try:
            yield Browser(f"{session}/{identifier}")
        finally:
            _request(f"{session}/{identifier}", method="DELETE")
    finally:
        driver.terminate()
        driver.communicate()
