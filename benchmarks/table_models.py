"""Tables of single models: perplexities, scores, distances, memory and time, and the weights of the project."""

import statistics

from benchmarks.table_rows import about, commands, commits, markdown, on, rows
from zoo.weights import PREFIX, WEIGHTS, weights_rows


def wikitext2() -> str:
    """Perplexities on WikiText-2, mean and standard deviation over seeds, with n-gram models."""
    measured = rows("llama_wikitext2.json")
    if not measured:
        return ""
    columns = ["val_ppl", "test_ppl", "val_word_ppl", "test_word_ppl"]
    lines = []
    for r in measured:
        cells = [f"{r[c]:.1f}" + (f" ± {r[c + '_sd']:.1f}" if c + "_sd" in r else "") for c in columns]
        parameters = f"{r['parameters'] / 1e6:.2f}M" if "parameters" in r else ""
        lines.append([r["model"], parameters, *cells, f"{r['seconds']:.0f}"])
    header = ["model", "parameters", "val /token", "test /token", "val /word", "test /word", "seconds"]
    facts = measured[0]
    return f"`{facts['command']}` ({facts['cpu']}, {facts['threads']} threads, {commits(measured)})\n\n" + markdown(
        header, lines
    )


def mini_rlm() -> str:
    """Mini-RLM's encoders and the baselines on the test rows."""
    measured = rows("mini_rlm.json")
    if not measured:
        return ""
    digits = {"median_error": 2, "spearman": 4, "mae": 1, "r2": 2}
    lines = []
    for r in measured:
        spread = {c: f" ± {r[c + '_sd']:.{n}f}" if c + "_sd" in r else "" for c, n in digits.items()}
        cells = ["" if r[c] is None else f"{r[c]:.{n}f}{spread[c]}" for c, n in digits.items()]
        parameters = f"{r['parameters']:,}" if "parameters" in r else ""
        lines.append([r["model"], parameters, *cells, f"{r['seconds']:.0f}"])
    header = ["model", "parameters", "median error", "Spearman", "MAE", "R2", "seconds"]
    machine = f"{measured[0]['cpu']}, {measured[0]['threads']} thread, {commits(measured)}"
    return f"`{measured[0]['command']}` ({machine})\n\n{markdown(header, lines)}"


def mini_rlm_elsewhere() -> str:
    """The same models on test rows from outside the training rows: median error and Spearman."""
    measured = [r for r in rows("mini_rlm.json") if "seed " not in r["model"] and "draw" not in r["model"]]
    if not measured:
        return ""
    places = [key for key in measured[0] if key.startswith("on_")]
    lines = []
    for r in measured:
        here = [(r[p]["median_error"], r[p]["spearman"]) for p in places]
        lines.append([r["model"], *(f"{e:.1f}" + ("" if s is None else f", {s:.3f}") for e, s in here)])
    header = ["model", *(p.removeprefix("on_") for p in places)]
    return markdown(header, lines)


def icr_sweep() -> str:
    """Distances per dimension of a sweep's members, for each length of training, and of the exact estimators."""
    measured = rows("icr_sweep.json")
    if not measured:
        return ""
    lengths = sorted({r["steps"] for r in measured})
    lines = []
    for M in dict.fromkeys(str(r["M"]) for r in measured):
        of = {r["steps"]: r for r in measured if str(r["M"]) == M}
        some = next(iter(of.values()))
        near = [[of[n].get(name) for n in lengths] for name in ("true_to_ridge", "pretrain_to_dmmse")]
        exact = some.get("dmmse", {}).get("true_to_ridge"), some["ridge"].get("pretrain_to_dmmse")
        lines.append([M, *("" if v is None else f"{v:.3f}" for v in (*near[0], exact[0], *near[1], exact[1]))])
    header = ["M"]
    for where, other in (("new tasks, from ridge", "dMMSE"), ("its pool, from dMMSE", "ridge")):
        header += [f"{where}: {n:,} steps" for n in lengths] + [other]
    facts = measured[0]
    about = f"{facts['cpu']}, {facts['threads']} thread, {commits(measured)}"
    return f"{commands(measured)} ({about})\n\n{markdown(header, lines)}"


def revdeq(line: str, forms: dict[str, str], device: str = "cpu") -> str:
    """Rows of the parts in `forms` at each N: a line per value of the field `line`, cells formatted by `forms`."""
    measured = [r for r in on(device, "revdeq.json") if r["part"] in forms]
    if not measured:
        return ""
    ours = {(r["part"], r["N"]): r["value"] for r in measured if r.get("way") == "reversible"}
    measured = [r | {"share": ours[r["part"], r["N"]] / r["value"]} if "way" in r else r for r in measured]
    cells: dict[str, dict[int, list[str]]] = {}
    for r in measured:
        cells.setdefault(r[line], {}).setdefault(r["N"], []).append(forms[r["part"]].format(**r))
    columns = sorted({r["N"] for r in measured})
    lines = [[name, *(", ".join(of.get(n, [])) for n in columns)] for name, of in cells.items()]
    return f"{commands(measured)} ({about(measured[0])})\n\n{markdown(['', *(f'N = {n}' for n in columns)], lines)}"


def revdeq_residuals() -> str:
    """Residual and perplexity of a validation batch after N steps, the mean over the seeds."""
    measured = [r for r in rows("revdeq_wikitext2.json") if "residual" in r]
    if not measured:
        return ""
    lines = []
    for name in dict.fromkeys(r["model"] for r in measured):
        seeds = [r for r in measured if r["model"] == name]
        for key, form in (("residual", ".2g"), ("batch_ppl", ".1f")):
            means = [format(statistics.mean(column), form) for column in zip(*(r[key] for r in seeds), strict=True)]
            lines.append([f"{name}: {'residual' if key == 'residual' else 'perplexity'}", *means])
    return markdown(["", *(f"N = {n}" for n in measured[0]["N"])], lines)


def weights(*models: str) -> str:
    """The trained weights of some models that come with the zoo."""
    header = ["name", "MB", "trained on", "metric", "baseline", "licence", "command"]
    listed = {row["name"]: row for row in weights_rows()}
    lines = []
    for name, entry in WEIGHTS.items():
        if entry.model in models:
            row = listed[PREFIX + name]
            cells = [row[c] for c in ("MB", "trained on", "validation metric", "baseline", "licence")]
            lines.append([f"`{PREFIX}{name}`", *cells, f"`{entry.command}`"])
    return markdown(header, lines)
