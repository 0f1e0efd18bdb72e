"""Tables of studies: a line per model and setting, the mean of its seeds and their standard deviation."""

import statistics

from benchmarks.table_rows import Row, commands, commits, markdown, rows

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
    return f"{commands(measured)} ({facts['cpu']}, {facts['threads']} thread, {commits(measured)})\n\n{table}"


RANKED = (
    *("RegressLM, default weights, rules", "RegressLM, random weights, rules", "teacher"),
    *("ridge", "ridge, log of the target", "random forest", "extra trees"),
)


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
    return markdown([*header, "best baseline on the test rows", "rules / baseline"], lines) if lines else ""
