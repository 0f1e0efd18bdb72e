"""Tables of several processes, precisions, large texts and faults."""

from benchmarks.table_rows import commands, commits, figure, markdown, rows

DIFFERENCES = ("loss", "weights")  # columns of results/processes.json


def packing() -> str:
    """Seconds per megabyte of text, a line per tokenizer."""
    measured = rows("packing.json")
    if not measured:
        return ""
    lines = []
    for r in measured:
        lines.append([r["tokenizer"], f"{r['vocab_size']:,}", figure(r["seconds_per_MB"]), figure(r["warm_seconds"])])
    header = ["tokenizer", "vocabulary", "s/MB", "next start, s"]
    return f"{commands(measured)} ({measured[0]['cpu']}, {commits(measured)})\n\n{markdown(header, lines)}"


def streaming() -> str:
    """Packing and training on a large text, a line per measurement."""
    measured = rows("streaming.json")
    if not measured:
        return ""
    names = {
        "tokens": "tokens in the training split",
        "seconds": "time to pack, killed once, s",
        "MB_per_cpu_second": "MB per second of CPU time",
        "shards": "shards",
        "shards_before_kill": "shards complete before the kill",
        "shards_packed_again": "shards packed again",
        "open_seconds": "time to open the packed text, s",
        "first_step_seconds": "time to the first step, with imports, s",
        "resumed_step_seconds": "the same, resumed in the middle of an epoch, s",
        "peak_MB": "peak memory of a process, MB",
        "resume_is_bitwise": "weights equal those without a stop",
        "same_tokens": "shards equal those of the files on the disk",
    }
    lines = []
    for r in measured:
        for name in names.keys() & r.keys():
            value = {True: "yes", False: "no"}[r[name]] if isinstance(r[name], bool) else figure(r[name])
            value = f"{r[name]:,}" if type(r[name]) is int else value
            lines.append([r["benchmark"], names[name], value])
    order = list(names.values())
    lines.sort(key=lambda line: ([r["benchmark"] for r in measured].index(line[0]), order.index(line[1])))
    about = f"{measured[0]['cpu']}, busy with other work; {commits(measured)}"
    return f"{commands(measured)} ({about})\n\n" + markdown(["benchmark", "measure", "value"], lines)


def precisions() -> str:
    """Differences of losses in each precision, and errors of 16-bit gradients, a line per model."""
    measured = {r["benchmark"]: r for r in rows("precisions.json")}
    if not measured:
        return ""
    names = ["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true"]
    lines = []
    for benchmark, r in measured.items():
        kind, _, model = benchmark.partition(", ")
        if kind == "training":
            gradients = measured.get(f"chunks, {model}", {})
            cells = [f"{r[name]:.1g}" for name in names]
            lines.append([model, *cells, *(f"{gradients[f'{dtype} gradient']:.1g}" for dtype in ("bf16", "fp16"))])
        elif "output layer" in model:
            lines.append([r["model"], *[""] * len(names), *(f"{r[f'{d} gradient']:.1g}" for d in ("bf16", "fp16"))])
    table = markdown(["model", *(f"`{name}`" for name in names), "bf16 gradient", "fp16 gradient"], lines)
    facts = next(iter(measured.values()))
    about = f"{facts['cpu']}, torch {facts['torch']}, {commits(list(measured.values()))}"
    return f"{commands(list(measured.values()))} ({about})\n\n{table}"


def busy() -> str:
    """Milliseconds of a training step on a quiet machine and next to busy processes, a line per config and setting."""
    measured = rows("busy.json")
    if not measured:
        return ""
    default = {r["config"]: r["quiet"]["step_s"] for r in measured if r["setting"] == "default"}
    lines = []
    for r in measured:
        quiet = r["quiet"]["step_s"]
        loaded = [
            f"{1e3 * r[load]['step_s']:.0f} ({r[load]['step_s'] / quiet:.1f})" for load in ("one busy", "all busy")
        ]
        cells = [f"{r['flops'] / 1e9:.2g}", r["setting"], f"{1e3 * quiet:.1f}", f"{quiet / default[r['config']]:.2f}"]
        lines.append([f"`{r['config']}`", *cells, *loaded])
    facts = measured[0]
    about = f"{facts['cpu']}, {max(r['threads'] for r in measured)} cores, torch {facts['torch']}, {commits(measured)}"
    how = f"median of {facts['repeats']} rounds in turn"
    header = ["config", "GFLOP a step", "threads", "quiet, ms", "of the default", "one busy process, ms (of quiet)"]
    table = markdown([*header, "one for each core, ms (of quiet)"], lines)
    return f"{commands(measured)} ({about}; {how})\n\n{table}"


def processes() -> str:
    """Differences of runs on two processes from the same runs on one."""
    measured = rows("processes.json")
    lines = [
        [
            r["model"],
            r["way"],
            f"{r['last_loss']:.4f}",
            *(f"{r[name]:.0e}" if name in r else "" for name in DIFFERENCES),
        ]
        for r in measured
    ]
    header = ["model", "run", "loss of the last step", "difference of a loss", "difference of a weight"]
    return f"{commands(measured)} ({commits(measured)})\n\n{markdown(header, lines)}" if measured else ""


def ranks() -> str:
    """What happens to a run when one of its two ranks fails."""
    measured = rows("ranks.json")
    if not measured:
        return ""
    lines = []
    for r in measured:
        codes, said = " ".join(map(str, r["codes"])), "; ".join(r["messages"]) or "none"
        same = "yes" if r["resumed"] and r["same_bits"] else "no"
        lines.append([r["benchmark"], f"{r['seconds']:.1f} s", codes, said, same])
    table = markdown(["failure", "all ended after", "exit codes", "messages", "resumed to the same bits"], lines)
    return f"{commands(measured)} ({measured[0]['cpu']}, {commits(measured)})\n\n{table}"


def faults() -> str:
    """Kinds of faults: cases tried, what became of them, and failures."""
    measured = rows("faults.json")
    if not measured:
        return ""
    lines = []
    for r in measured:
        ends = ", ".join(f"{count:,} {what}" for what, count in r["wanted"].items())
        if "largest_error" in r:
            ends += f"; largest error {r['largest_error']:.1g}"
        lines.append([r["benchmark"], r["about"], f"{r['cases']:,}", ends, f"{r['otherwise']:,}"])
    facts = measured[0]
    minutes = sum(r["seconds"] for r in measured) / 60
    about = f"{facts['cpu']}, {minutes:.0f} minutes, seed {facts['seed']}, {commits(measured)}"
    table = markdown(["kind", "tried, and what must follow", "cases", "as wanted", "otherwise"], lines)
    return f"{commands(measured)} ({about})\n\n{table}"
