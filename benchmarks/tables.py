"""Generate the tables of README.md and of the model cards from the rows in results/, between their markers.

Usage:

    python benchmarks/tables.py            # rewrite the tables
    python benchmarks/tables.py --check    # fail where a table differs from its rows
"""

import argparse
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.table_rows import Row, about, commands, faster, markdown, on, rows, speed  # noqa: E402
from benchmarks.table_scale import busy, faults, packing, precisions, processes, ranks, streaming  # noqa: E402
from zoo.weights import PREFIX, WEIGHTS, weights_rows  # noqa: E402


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
    return f"`{facts['command']}` ({facts['cpu']}, {facts['threads']} threads)\n\n" + markdown(header, lines)


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
    return f"`{measured[0]['command']}` ({measured[0]['cpu']}, {measured[0]['threads']} threads)\n\n" + markdown(
        header, lines
    )


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
    about = f"{facts['cpu']}, {facts['threads']} thread, commit {facts['commit']}"
    return f"{commands(measured)} ({about})\n\n{markdown(header, lines)}"


def study(name: str, keys: dict[str, str], columns: dict[str, tuple[str, str]]) -> str:
    """A line per model and value of `keys`, the mean of its seeds and their standard deviation.

    Lines with the same value of the first key follow one another.
    `keys` and `columns` are header -> field of the row, for columns with the format of their numbers.
    """
    measured = rows(f"{name}.json")
    if not measured:
        return ""
    groups: dict[tuple, list[Row]] = {}
    for r in measured:
        groups.setdefault(tuple(str(r.get(field, "")) for field in keys.values()), []).append(r)
    first = list(dict.fromkeys(values[0] for values in groups))
    lines = []
    for values, group in sorted(groups.items(), key=lambda item: first.index(item[0][0])):
        cells = []
        for field, form in columns.values():
            numbers = [r[field] for r in group if field in r]
            has_spread = len({*numbers}) > 1 and not field.startswith("error_")  # no standard error of standard errors
            spread = f" ± {statistics.stdev(numbers):{form}}" if has_spread else ""
            cells.append(f"{statistics.mean(numbers):{form}}{spread}" if numbers else "")
        lines.append([*values, str(len(group)) if "seed" in group[0] else "", *cells])
    facts = measured[0]
    table = markdown([*keys, "seeds", *columns], lines)
    return f"{commands(measured)} ({facts['cpu']}, {facts['threads']} thread, commit {facts['commit']})\n\n{table}"


RANKED = ("RegressLM, default weights, rules", "RegressLM, random weights, rules", "ridge", "random forest")


def small_tables_ranks() -> str:
    """Mean ranks of `RANKED` over the small tables on which all of them were measured.

    Ranks are by the mean MAE and the mean Spearman correlation of the seeds that all models have.
    """
    values: dict[str, dict[str, list[Row]]] = {}
    for r in rows("regress_lm_small_tables.json"):
        if r["model"] in RANKED:
            values.setdefault(r["table"], {}).setdefault(r["model"], []).append(r)
    complete = {table: of for table, of in values.items() if len(of) == len(RANKED)}
    ranks: dict[str, dict[str, list[int]]] = {}
    for of in complete.values():
        seeds = set.intersection(*({r["seed"] for r in group} for group in of.values()))
        for score, sign in (("mae", 1), ("spearman", -1)):
            mean = {m: sign * statistics.mean(r[score] for r in group if r["seed"] in seeds) for m, group in of.items()}
            for rank, model in enumerate(sorted(mean, key=lambda m: mean[m]), start=1):
                ranks.setdefault(model, {}).setdefault(score, []).append(rank)
    lines = [
        [model, *(f"{statistics.mean(of[score]):.2f}" for score in ("mae", "spearman"))] for model, of in ranks.items()
    ]
    header = [f"mean rank over {len(complete)} tables", "by MAE", "by Spearman"]
    return markdown(header, sorted(lines, key=lambda line: float(line[1])))


def defaults_ratios() -> str:
    """For each table the MAE of the settings from the rules, divided by those of the search and of the best baseline.

    Mean over the seeds that the rules and the search have both been measured with.
    """
    groups: dict[str, dict[str, list[Row]]] = {}
    for r in rows("regress_lm_defaults.json"):
        groups.setdefault(r["table"], {}).setdefault(r["model"], []).append(r)
    lines = []
    for name, of in groups.items():
        rules, search = of.pop("RegressLM, rules", []), of.pop("RegressLM, search", [])
        seeds = {r["seed"] for r in rules} & {r["seed"] for r in search}
        if not seeds:
            continue
        mae, searched = (statistics.mean(r["mae"] for r in part if r["seed"] in seeds) for part in (rules, search))
        baseline, best = min(((model, r["mae"]) for model, part in of.items() for r in part), key=lambda pair: pair[1])
        counts = [f"{rules[0]['rows']:,}", f"{rules[0]['test_rows']:,}", str(len(seeds))]
        ratios = [f"{mae / other:.2f}" for other in (searched, best)]
        lines.append([name, *counts, f"{mae:.4g}", f"{searched:.4g}", ratios[0], f"{baseline}: {best:.4g}", ratios[1]])
    header = ["table", "training rows", "test rows", "seeds", "MAE, rules", "MAE, search", "rules / search"]
    return markdown([*header, "best baseline", "rules / baseline"], lines) if lines else ""


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


SCORES = {"Spearman": ("spearman", ".3f"), "MAE": ("mae", ".3f")}
STEPS = {"steps": ("steps", ".0f")}
STARTUP_PARTS = {
    "imports": "imports_s", "config and parser": "parser_s", "data and model": "model_s",
    "first validation": "validation_s", "first step": "step_s", "all": "total_s",
}  # fmt: skip
STUDIES = {
    "regress_lm_integers": (
        {"task": "task", "model": "model"},
        {"exact": ("exact", ".2%"), "MAE": ("mae", ".3g"), "nats": ("nll", ".4f")}
        | {"nats, x ignored": ("marginal_nll", ".2f"), "epochs": ("epochs", ".0f"), "seconds": ("seconds", ".0f")},
    ),
    "regress_lm_scan_bench": (
        {"training rows": "rows", "model": "model"},
        SCORES | {"Pearson": ("pearson", ".3f")} | STEPS,
    ),
    "regress_lm_small_tables": (
        {"table": "table", "model": "model"},
        SCORES
        | {"RMSE": ("rmse", ".3f"), "within the 90% interval": ("coverage_90", ".0%")}
        | {"CPU seconds": ("cpu_seconds", ".0f")},
    ),
    "regress_lm_vader": (
        {"trained on": "trained_on", "tested on": "tested_on", "model": "model"},
        {"Pearson": ("pearson", ".3f"), "MAE": ("mae", ".3f")} | STEPS,
    ),
    "regress_lm_encoders": (
        {"trained on": "trained_on", "tested on": "tested_on", "model": "model"},
        {"Pearson of the median": ("pearson", ".3f"), "Pearson of the mean": ("mean_pearson", ".3f")}
        | {"MAE": ("mae", ".3f"), "CRPS": ("crps", ".3f"), "CPU seconds of training": ("cpu_seconds", ".0f")},
    ),
    "regress_lm_calibration": (
        {"table": "table", "tested on": "tested_on", "calibration": "calibration"},
        {"within 50%": ("coverage_50", ".1%"), "standard error of 50%": ("error_50", ".1%")}
        | {"within 90%": ("coverage_90", ".1%"), "of 90%": ("error_90", ".1%")}
        | {"median width of 90%": ("width_90", ".3g"), "MAE": ("mae", ".3g"), "CRPS": ("crps", ".3g")},
    ),
    "regress_lm_small_intervals": (
        {"table": "table", "rows": "rows", "calibrated on": "calibrated_on"},
        {"within 50%": ("coverage_50", ".1%"), "standard error of 50%": ("error_50", ".1%")}
        | {"within 90%": ("coverage_90", ".1%"), "of 90%": ("error_90", ".1%")}
        | {"MAE": ("mae", ".3g"), "CRPS": ("crps", ".3g")},
    ),
    "regress_lm_timm": (
        {"model": "model"},
        {"Spearman": ("spearman", ".3f"), "MAE of log10": ("log10_mae", ".3f")}
        | {"Pearson of log10": ("log10_pearson", ".3f")}
        | STEPS,
    ),
    "regress_lm_densities": (
        {"model": "model", "steps": "steps"},
        {"energy distance": ("energy_distance", ".4f"), "of the worst text": ("largest", ".4f")}
        | {"CPU s, training": ("train_cpu_s", ".0f"), "CPU s, 8 x 1,000 samples": ("sample_cpu_s", ".1f")},
    ),
    "regress_lm_defaults": (
        {"table": "table", "model": "model"},
        {"MAE": ("mae", ".4g"), "Spearman": ("spearman", ".3f")}
        | {"within 50%": ("coverage_50", ".0%"), "within 90%": ("coverage_90", ".0%"), "steps": ("steps", ".0f")}
        | {"CPU seconds": ("cpu_seconds", ".0f"), "of the search": ("search_cpu_seconds", ".0f")},
    ),
    "revdeq_wikitext2": (
        {"model": "model"},
        {"million parameters": ("million_parameters", ".2f"), "blocks a token passes": ("evaluations", ".0f")}
        | {"val /token": ("val_ppl", ".1f"), "test /token": ("test_ppl", ".1f")}
        | {"val /word": ("val_word_ppl", ".1f"), "test /word": ("test_word_ppl", ".1f")}
        | {"seconds a step, in turn": ("step_seconds", ".2f"), "peak MB of the process": ("peak_MB", ".0f")},
    ),
    "revdeq_tiny": (
        {"block": "block", "model": "model"},
        {"nats per byte": ("nats", ".3f")},
    ),
    "reviews": (
        {"task": "task", "model": "model"},
        {"dev": ("dev_accuracy", ".3f"), "test": ("test_accuracy", ".3f"), "elsewhere": ("elsewhere_accuracy", ".3f")}
        | {"dev, macro F1": ("dev_macro_f1", ".3f"), "test, macro F1": ("test_macro_f1", ".3f")}
        | {"elsewhere, macro F1": ("elsewhere_macro_f1", ".3f"), "seconds": ("seconds", ".0f")},
    ),
    "classifier_defaults": (
        {"set": "set", "training rows": "rows", "classes": "classes", "model": "model"},
        {"accuracy": ("accuracy", ".4f"), "macro F1": ("macro_f1", ".4f"), "CPU seconds": ("cpu_seconds", ".0f")},
    ),
    "startup_parts": (
        {"config": "config", "state": "state"},
        {title: (field, ".2f") for title, field in STARTUP_PARTS.items()},
    ),
    "icr_contrast": (
        {"M": "M", "answers of": "model"},
        {name: (name, ".3f") for name in ("new tasks, from ridge", "its pool, from dMMSE")},
    ),
}


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


TABLES = {
    "weights-icr": lambda: weights("ICRTransformer"),
    "weights-llama": lambda: weights("LlamaLM", "LlamaClassifier"),
    "weights-mini_rlm": lambda: weights("MiniRLM"),
    "weights-regress_lm": lambda: weights("RegressLM"),
    "weights-revdeq": lambda: weights("RevDEQLM"),
    **{name.replace("_", "-", 2): (lambda name=name: study(name, *STUDIES[name])) for name in STUDIES},
    "regress-lm-small_tables-ranks": small_tables_ranks,
    "regress-lm-defaults-ratios": defaults_ratios,
    "regress-lm-speed": lambda: faster("regress_lm.json"),
    "regress-lm-gpu": lambda: faster("regress_lm.json", "gpu"),
    "busy": busy,
    "faults": faults,
    "icr-speed": lambda: faster("icr_speed.json"),
    "icr-gpu": lambda: faster("icr_speed.json", "gpu"),
    "icr-sweep": icr_sweep,
    "llama-speed": lambda: speed("llama.json"),
    "llama-gpu": lambda: speed("llama.json", "gpu", order="of each alone"),
    "llama-wikitext2": wikitext2,
    "mini-rlm": mini_rlm,
    "mini-rlm-elsewhere": mini_rlm_elsewhere,
    "packing": packing,
    "precisions": precisions,
    "processes": processes,
    "ranks": ranks,
    "revdeq-memory": lambda: revdeq("way", {"memory": "{value:.0f} MB ({share:.2f})"}),
    "revdeq-time": lambda: revdeq("way", {"time": "{value:.2f} s ({share:.2f})"}),
    "revdeq-gradients": lambda: revdeq("of", {"gradients": "{error:.1g}"}),
    "revdeq-residuals": revdeq_residuals,
    "revdeq-gpu": lambda: revdeq(
        "of", {"gpu": "{tokens_per_s:,.0f} tokens/s, {MB:,.0f} MB", "gradients": "error {error:.1g}"}, "gpu"
    ),
    "startup": lambda: speed("startup.json"),
    "streaming": streaming,
    "llama-step": lambda: speed("training_step.json", prefix=("Llama", "the matrix products of Llama")),
    "revdeq-step": lambda: speed("training_step.json", prefix=("RevDEQ",)),
}


def filled(text: str) -> str:
    """`text` with the tables between `<!-- table: NAME -->` and `<!-- end -->` generated again."""
    pattern = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    pages = (*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "zoo").glob("*/README.md")))
    for path in (ROOT / "README.md", ROOT / "results" / "README.md", *pages):
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if stale:
        print(("stale: " if check else "rewrote ") + ", ".join(stale), file=sys.stderr)
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
