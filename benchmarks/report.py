"""What README.md and docs/benchmarks.md say of a results file: tables, and what to make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.best_peer import over_best_peer
from benchmarks.markdown import section, table

MARK = "†"
_FEWEST_ROUNDS = 5
_FEWEST_TEXTS = 256  # four batches of 32 for each of two streams
WORKLOADS = {
    "mixed": "mixed",
    "short": "short",
    "long": "long",
    "request-32": "requests of 32",
    "request-96": "requests of 96",
}

Results = Mapping[str, Any]


def summary(results: Results) -> str:
    """For the first page: the headline, or, of a run too short for one, why there is none."""
    if is_short(results):
        return f"{caution(results)} What was seen: [docs/benchmarks.md](docs/benchmarks.md)."
    return headline(results)


def headline(results: Results) -> str:
    """One table and the lines that say what it is."""
    parts = [setting(results), caution(results), headline_table(results), notes(results)]
    return "\n\n".join(part for part in parts if part)


def is_short(results: Results) -> bool:
    """Whether a run had too few rounds or batches for any of its ratios to be quoted."""
    return _fewest_rounds(results) < _FEWEST_ROUNDS or _texts(results, "mixed") < _FEWEST_TEXTS


def caution(results: Results) -> str:
    """What keeps a run, or its long texts, from being quoted; empty where nothing does."""
    mixed, long = _texts(results, "mixed"), _texts(results, "long")
    if is_short(results):
        said = (
            f"**No ratio of this run is to be quoted.** It was short: {_fewest_rounds(results)} "
            f"undisturbed rounds (at least {_FEWEST_ROUNDS} are needed), {mixed} mixed and {long} "
            f"long texts (at least {_FEWEST_TEXTS})."
        )
    elif long < _FEWEST_TEXTS:
        said = (
            f"**The ratios of long texts are not to be quoted**: there were {long} (at least "
            f"{_FEWEST_TEXTS} are needed)."
        )
    else:
        return ""
    return (
        f"{said} With so few batches of 32, engines that run one stream per core leave cores idle, "
        "which flatters those that split by tokens, minibert among them."
    )


def _fewest_rounds(results: Results) -> int:
    found = results["mixed"].get("contenders", {}).values()
    return min((entry["rounds"] for entry in found), default=0)


def _texts(results: Results, workload: str) -> int:
    return int(results["workloads"].get(workload, {}).get("texts", 0))


def full(results: Results, pictures: Sequence[str] = ()) -> str:
    """Everything: the headline and a table for each further measurement.

    Args:
        results: of a file.
        pictures: addresses of its pictures, as the page reaches them.
    """
    sections = [
        headline(results),
        "\n".join(f"![{picture.rpartition('-')[2]}]({picture})" for picture in pictures),
        section("Over the best peer", peer_table(results)),
        section("Requests", request_table(results)),
        section("Single texts", single_table(results)),
        section("Share of the ceilings", floor_table(results)),
        section("Threads and neighbours", load_table(results)),
        section("Cost of a token", texts_table(results)),
        section("Fidelity", fidelity_table(results)),
        section("Workloads", workload_table(results)),
        section("Versions", versions_table(results)),
    ]
    return "\n\n".join(part for part in sections if part)


def setting(results: Results) -> str:
    """Where, when and against what."""
    device, model = results["device"], results["model"]
    features = ", ".join(device["features"]) or "features unknown"
    commit = results["commit"] or "no commit"
    changed = ", with changes" if results["changed"] else ""
    return (
        f"{model['name']} ({model['num_hidden_layers']} layers of {model['hidden_size']}), "
        f"{results['options']['threads']} threads of {device['processor']} ({features}), "
        f"{results['date']}, commit {commit}{changed}. Ratios are to {baseline(results)} in the "
        "same round, medians of the undisturbed interleaved rounds."
    )


def baseline(results: Results) -> str:
    """The baseline's name, number format and versions."""
    entry = results["contenders"][results["baseline"]]
    versions = (entry["about"] or {}).get("versions", {})
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{entry['name']} {entry['dtype']}" + (f" ({named})" if named else "")


def headline_table(results: Results) -> str:
    """One row for each contender that was measured, the fastest on mixed texts first."""
    keys = list(results["contenders"])
    keys = [key for key in keys if measured(results, "mixed", key)]
    keys.sort(key=lambda key: -measured(results, "mixed", key)["per_s"]["median"])
    head = [
        "engine",
        "mixed, tokens/s",
        "mixed",
        "short",
        "long",
        "one text, ms",
        "peak, MB",
        "cold start, s",
        "install, MB",
        "cosine, mean",
    ]
    rows = []
    for key in keys:
        mixed = measured(results, "mixed", key)
        single, foot = measured(results, "single", key), measured(results, "footprint", key)
        row = [
            name(results, key),
            f"{mixed['per_s']['median']:,.0f}{mark(mixed)}",
            *(ratio(measured(results, workload, key)) for workload in ("mixed", "short", "long")),
            f"{single['median_ms']:.2f}{mark(single)}" if single else "-",
            megabytes(foot.get("peak_bytes")),
            f"{foot['cold_start_s']['median']:.2f}" if foot else "-",
            megabytes(foot.get("installed_bytes")),
            f"{results['correctness'][key]['cosine_mean']:.5f}",
        ]
        rows.append([f"**{cell}**" for cell in row] if is_minibert(results, key) else row)
    return table(head, rows)


def notes(results: Results) -> str:
    """Who is missing and why; what the mark means; what was skipped."""
    lines = []
    missing = [
        f"{name(results, key)}: {entry['problem']}"
        for key, entry in results["contenders"].items()
        if entry["problem"]
    ]
    if missing:
        lines.append(f"Not measured: {'; '.join(missing)}.")
    stages = ("mixed", "short", "long", "request-32", "request-96", "single", "threads")
    entries = [e for s in (*stages, "neighbour") for e in contenders(results, s).values()]
    if any(entry.get("disturbed") for entry in entries):
        lines.append(
            f"{MARK} Other processes took more than {100 * results['disturbed_above']:.0f} % of "
            "the processor in most rounds; no round was left out."
        )
    for stage in (*stages, "footprint", "texts", "neighbour"):
        if "skipped" in results[stage]:
            lines.append(f"Skipped: {stage}, because {results[stage]['skipped']}.")
    return "\n\n".join(lines)


def peer_table(results: Results) -> str:
    """Each workload against the fastest peer of the same number format in the same rounds."""
    rows = []
    for key in results["contenders"]:
        if not is_minibert(results, key):
            continue
        leads = [over_best_peer(results, key, workload) for workload in WORKLOADS]
        if any(leads):
            cells = [
                f"{lead.ratio:.2f}{MARK if lead.disturbed else ''} "
                f"({results['contenders'][lead.peer]['name']})"
                if lead
                else "-"
                for lead in leads
            ]
            rows.append([name(results, key), *cells])
    listed = table(["engine", *WORKLOADS.values()], rows)
    said = "The peer's time over minibert's in the same round, median; the peer that is nearest."
    return f"{said}\n\n{listed}" if listed else ""


def request_table(results: Results) -> str:
    """Requests of 32 and 96 texts: milliseconds of one, and ratios."""
    rows = []
    for key in results["contenders"]:
        found = [measured(results, workload, key) for workload in ("request-32", "request-96")]
        if any(found):
            cells = [
                cell
                for entry in found
                for cell in (f"{entry['call_ms']:.1f}" if entry else "-", ratio(entry))
            ]
            rows.append([name(results, key), *cells])
    return table(["engine", "32 texts, ms", "ratio", "96 texts, ms", "ratio"], rows)


def single_table(results: Results) -> str:
    """Percentiles of single texts."""
    rows = [
        [
            name(results, key),
            *(f"{entry[f'{which}_ms']:.2f}" for which in ("median", "p90", "p99")),
            f"{entry['texts']}{mark(entry)}",
        ]
        for key, entry in contenders(results, "single").items()
    ]
    return table(["engine", "median, ms", "p90, ms", "p99, ms", "texts"], rows)


def floor_table(results: Results) -> str:
    """What each contender reaches of its own number format's ceiling."""
    rows = []
    for key, entry in results["floors"].items():
        shares = [share_of_ceiling(entry, workload) for workload in WORKLOADS]
        rows.append([name(results, key), entry["ceiling"], *shares])
    found = ", ".join(
        f"{key} {rate(entry)}" for key, entry in results["ceilings"].items() if entry["per_s"]
    )
    listed = table(["engine", "ceiling", *WORKLOADS.values()], rows)
    then = any(f"{w} then" in entry for entry in results["floors"].values() for w in WORKLOADS)
    said = (
        " Shares are of these, the highest of all moments; in brackets of what the cores reached "
        "just before each sample, the median."
        if then
        else ""
    )
    if not listed:
        return ""
    return f"Measured ceilings of all threads together: {found}.{said}\n\n{listed}"


def share_of_ceiling(entry: Mapping[str, Any], workload: str) -> str:
    """The share of the highest rate, in brackets that of the rate at the time."""
    if workload not in entry:
        return "-"
    share, then = f"{100 * entry[workload]:.0f} %", entry.get(f"{workload} then")
    return share if then is None else f"{share} ({100 * then:.0f} %)"


def rate(entry: Mapping[str, Any]) -> str:
    """A ceiling in its unit."""
    if entry["dtype"] is None:
        return f"{entry['per_s'] / 1e9:.1f} GB/s"
    return f"{entry['per_s'] / 1e9:,.0f} {'GOP/s' if entry['dtype'] == 'int8' else 'GFLOP/s'}"


def load_table(results: Results) -> str:
    """Speed-up by threads, and what is left beside a busy process."""
    threads, beside = contenders(results, "threads"), contenders(results, "neighbour")
    rows = []
    for key in results["contenders"]:
        if key in threads or key in beside:
            rows.append(
                [
                    name(results, key),
                    f"{threads[key]['speedup']['median']:.2f}{mark(threads[key])}"
                    if key in threads
                    else "-",
                    f"{beside[key]['kept']['median']:.2f}{mark(beside[key])}"
                    if key in beside
                    else "-",
                ]
            )
    count = results["options"]["threads"]
    return table(
        ["engine", f"speed on {count} threads over one", "speed beside a busy process"], rows
    )


def texts_table(results: Results) -> str:
    """Microseconds a token, by the number of texts in one call."""
    found = contenders(results, "texts")
    counts = sorted({int(count) for costs in found.values() for count in costs})
    rows = [
        [
            name(results, key),
            *(f"{c[str(n)]['us_per_token']:.1f}" if str(n) in c else "-" for n in counts),
        ]
        for key, c in found.items()
    ]
    return table(["µs a token", *(f"{count:,} texts" for count in counts)], rows)


def fidelity_table(results: Results) -> str:
    """Cosine to the baseline."""
    rows = [
        [
            name(results, key),
            f"{entry['cosine_min']:.6f}" if "cosine_min" in entry else "-",
            f"{entry['cosine_mean']:.6f}" if "cosine_mean" in entry else "-",
            f"{entry['max_difference']:.1e}" if "max_difference" in entry else "-",
            "right" if entry["right"] else f"wrong: {entry['why']}",
        ]
        for key, entry in results["correctness"].items()
    ]
    head = ["engine", "lowest cosine", "mean cosine", "largest difference", "verdict"]
    return table(head, rows)


def workload_table(results: Results) -> str:
    """Sizes, and what padding would cost."""
    rows = [
        [
            key,
            f"{entry['texts']:,}",
            f"{entry['tokens']:,}",
            f"{entry['padding']:.2f}",
            f"`{entry['digest']}`",
        ]
        for key, entry in results["workloads"].items()
    ]
    return table(["workload", "texts", "tokens", "padded / real, sorted", "digest"], rows)


def versions_table(results: Results) -> str:
    """Installed versions of each contender."""
    rows = []
    for key, entry in results["contenders"].items():
        versions = (entry["about"] or {}).get("versions", {})
        if versions:
            rows.append([name(results, key), ", ".join(f"{n} {v}" for n, v in versions.items())])
    return table(["engine", "versions"], rows)


# ---- cells ------------------------------------------------------------------------------------
def contenders(results: Results, stage: str) -> Mapping[str, Any]:
    """What a stage found for each contender; nothing where it was skipped."""
    found: Mapping[str, Any] = results[stage].get("contenders", {})
    return found


def measured(results: Results, stage: str, key: str) -> Mapping[str, Any]:
    """What a stage found for one contender; empty where it did not measure it."""
    found: Mapping[str, Any] = contenders(results, stage).get(key, {})
    return found


def name(results: Results, key: str) -> str:
    """Name and number format."""
    entry = results["contenders"][key]
    return f"{entry['name']}, {entry['dtype']}"


def is_minibert(results: Results, key: str) -> bool:
    """Whether a contender is this project's."""
    return bool(results["contenders"][key]["minibert"])


def mark(entry: Mapping[str, Any]) -> str:
    """The mark of a figure that was not measured in quiet."""
    return MARK if entry.get("disturbed") else ""


def ratio(entry: Mapping[str, Any]) -> str:
    """A ratio as `1.49`, or a dash."""
    value = entry.get("ratio")
    return f"{value['median']:.2f}{mark(entry)}" if value else "-"


def megabytes(size: float | None) -> str:
    """Bytes as decimal megabytes, or a dash."""
    return f"{size / 1e6:.0f}" if size is not None else "-"
