"""Plain-text tables."""


def table(rows: list[dict[str, str]]) -> str:
    """Rows with the same keys as aligned columns below a header of the keys."""
    columns = list(rows[0])
    widths = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = [columns, ["-" * widths[c] for c in columns], *([row[c] for c in columns] for row in rows)]
    cells = [[f"{value:<{widths[c]}}" for c, value in zip(columns, line, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)
