"""The messages that docs/messages.md explains are those of the source."""

import ast
import re

from tests.commands import ROOT

ANY = "…"  # stands for a value


def template(node: ast.expr) -> str:
    """The text that an expression builds, with ANY for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return ANY


def has_in_order(text: str, parts: list[str]) -> bool:
    """Whether a text contains all parts, one after the other."""
    start = 0
    for part in parts:
        start = text.find(part, start) + len(part)
        if start < len(part):
            return False
    return True


def test_explained_messages_exist():
    text = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    explained = [
        message.replace("``", "`")
        for message in re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)
        if " " in message and message != "out of memory"
    ]
    assert len(explained) > 20
    files = [path for name in ("zoo", "datamodules", "callbacks") for path in (ROOT / name).rglob("*.py")]
    templates = {
        template(node)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    }

    def is_in_source(message: str) -> bool:
        return any(has_in_order(built, message.split(ANY)) for built in templates)

    assert not [message for message in explained if not is_in_source(message)]
