"""Rows of results/ as Markdown tables: code that the tables of several benchmarks share."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    path = ROOT / "results" / name
    return json.loads(path.read_text()) if path.exists() else []


def markdown(header: list[str], lines: list[list[str]]) -> str:
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in body)


def figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def on(device: str, name: str) -> list[Row]:
    """Rows measured on the "cpu" or on a "gpu"."""
    return [r for r in rows(name) if ("gpu" in r) == (device == "gpu")]


def about(row: Row) -> str:
    """Hardware, torch and commit of a row."""
    hardware = row["gpu"] if "gpu" in row else f"{row['cpu']}, {row['threads']} thread"
    return f"{hardware}, torch {row['torch']}, commit {row['commit']}"


def sides(row: Row) -> list[str]:
    """The row's two values, ours and the peer's, with their unit."""
    return [f"{figure(row[side])} {row['unit']}" for side in ("ours", "peer")]


def without_empty_column(header: list[str], lines: list[list[str]]) -> str:
    """A table, without its last column where that is empty in every line."""
    width = len(header) - (not any(line[-1] for line in lines))
    return markdown(header[:width], [line[:width] for line in lines])


def speed(name: str, device: str = "cpu", prefix: tuple[str, ...] = ("",), order: str = "in turn") -> str:
    """Our speed and the peer's, a line per benchmark row whose name begins with one of `prefix`.

    `order` says in the caption how the rounds of the two candidates follow each other.
    """
    measured = [r for r in on(device, name) if r["benchmark"].startswith(prefix)]
    if not measured:
        return ""
    lines = []
    for r in measured:
        floor = f"{r['share_of_floor']:.0%} of {figure(r['floor'])}" if "floor" in r else ""
        lines.append([r["benchmark"], *sides(r), f"{r['ratio']:.2f}", floor])
    facts = measured[0]
    machines = "; ".join(dict.fromkeys(about(r) for r in measured))
    table = without_empty_column(["benchmark", "ours", "peer", "ours / peer", "of the memory floor"], lines)
    how = f"median of {facts['repeats']} rounds {order}" + "; on a CPU it is the ratios that count" * (device == "cpu")
    rates = {"/s" in r["unit"] for r in measured}
    better = {True: "higher is better", False: "lower is better"}
    of = "ours / peer: "
    of += better[rates.pop()] if len(rates) == 1 else "higher is better for tokens/s, lower for other units"
    return f"{commands(measured)} ({machines}; {how}; {of})\n\n{table}"


def faster(name: str, device: str = "cpu") -> str:
    """Our time and the peer's, a line per benchmark row, with their ratio."""
    measured = on(device, name)
    if not measured:
        return ""
    lines = []
    for r in measured:
        share = f"{r['attention_share']:.0%}" if "attention_share" in r else ""
        gain = r["ours"] / r["peer"] if "/" in r["unit"] else r["peer"] / r["ours"]  # the time that a rate implies
        rounds = f" ({r['repeats']} round)" if r["repeats"] != measured[0]["repeats"] else ""
        lines.append([r["benchmark"] + rounds, *sides(r), f"{figure(gain)}x", share])
    facts = measured[0]
    table = without_empty_column(["benchmark", "ours", "peer", "times less", "of ours in attention"], lines)
    machines = "; ".join(dict.fromkeys(about(r) for r in measured))
    return f"{commands(measured)} ({machines}; median of {facts['repeats']} rounds in turn)\n\n{table}"


def commits(measured: list[Row]) -> str:
    """ "commit X", or "commits X, Y" of rows that were measured at several."""
    distinct = list(dict.fromkeys(r["commit"] for r in measured))
    return f"commit{'s' * (len(distinct) > 1)} {', '.join(distinct)}"


def commands(measured: list[Row]) -> str:
    """The commands that produced the rows; of more than five only their script."""
    distinct = list(dict.fromkeys(r["command"] for r in measured))
    if len(distinct) > 5:
        return f"`{' '.join(distinct[0].split()[:2])}` with the arguments that each row in results/ names"
    return ", ".join(f"`{command}`" for command in distinct)
