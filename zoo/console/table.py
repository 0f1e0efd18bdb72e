"""Plain-text tables."""


def table(rows: list[dict[str, str]]) -> str:
    """Rows as aligned columns below a header of the keys; a key that a row lacks is an empty cell. "" without rows."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    widths = {c: max(len(c), *(len(row.get(c, "")) for row in rows)) for c in columns}
    lines = [columns, ["-" * widths[c] for c in columns], *([row.get(c, "") for c in columns] for row in rows)]
    cells = [[f"{value:<{widths[c]}}" for c, value in zip(columns, line, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells) if rows else ""
