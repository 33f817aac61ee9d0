"""Page of the results: a row per comparison, then the update phase, where the time goes, and growth."""

from typing import Any

import pandas as pd

from benchmarks.comparisons import TRL_ENVIRONMENTS

LIBRARIES = ("torch", "transformers", "deepspeed", "numpy", "rouge-score", "rapidfuzz")


def line(result: dict[str, Any]) -> str:
    """Return one row of the table."""
    ours, other = result["medians"]
    spreads = [f"{min(side):.2f}–{max(side):.2f}" for side in result["seconds"]]
    memory, wanted_memory = "", ""
    if result.get("peak_gib"):
        memory = f"{result['peak_gib'][0]:.2f} / {result['peak_gib'][1]:.2f}"
        wanted_memory = f"1/{result['smaller']:.1f}" + (
            f" (≤ 1/{result['smaller_wanted']})" if result["smaller_wanted"] else ""
        )
    return (
        f"| {result['name']} | {ours:.2f} ({spreads[0]}) | {other:.2f} ({spreads[1]}) | **{result['faster']:.1f}×** "
        f"(≥ {result['faster_wanted']}×) | {memory} | {wanted_memory} |"
    )


def update_line(dtype: str, medians: dict[str, float]) -> str:
    """Return one row of the table of the update phase."""
    rates = f"{medians['update_rate'] / 1e9:.0f} | {medians['machine_rate'] / 1e9:.0f}"
    return f"| {dtype} | {rates} | {100 * medians['share']:.0f} % (≥ 50 %) |"


def profile_table(profiles: dict[str, dict[str, float]], kind: str, rows: int) -> str:
    """Return the longest parts or operations of a step and their shares of it, with a column for each precision."""
    seconds = pd.DataFrame(profiles).fillna(0.0)  # an operation may be missing in one precision
    shares = seconds / seconds.loc["step"]
    named = shares[shares.index.str.startswith(f"{kind}/")].max(axis=1)
    longest = list(named.sort_values(ascending=False).index[:rows])
    columns = {
        f"{dtype}, s": [f"{seconds.at[n, dtype]:.2f} ({shares.at[n, dtype]:.0%})" for n in longest]
        for dtype in profiles
    }
    return pd.DataFrame(columns, index=[n.removeprefix(f"{kind}/") for n in longest]).to_markdown()


def table(record: dict[str, Any], left_out: list[str]) -> str:
    """Return the results as a page."""
    host = record["machine"]
    versions = ", ".join(f"{name} {host[name]}" for name in LIBRARIES)
    minillm, others = (TRL_ENVIRONMENTS[name].removeprefix("trl-") for name in ("trl_minillm", "trl_gkd"))
    compared = ""
    if record["results"]:
        rows = "\n".join(line(result) for result in record["results"])
        compared = (
            "\n| against | ours, s | theirs, s | ours is faster (wanted) | GiB, ours / theirs | ours takes (wanted) |\n"
            f"|---|---|---|---|---|---|\n{rows}\n"
        )
    missing = "".join(f"\nLeft out, for want of their environment: {', '.join(left_out)}.\n" if left_out else "")
    update = grown = ""
    if record["update"]:
        lines = "\n".join(update_line(medians["dtype"], medians) for medians in record["update"])
        update = (
            "\n## The update phase against the machine\n\n"
            "| precision | useful operations, GF/s | product of 2048 × 2048 matrices, GF/s | share (wanted) |\n"
            f"|---|---|---|---|\n{lines}\n"
        )
    if record["profile"]:
        wholes = ", ".join(f"{of['step']:.2f} s in {dtype}" for dtype, of in record["profile"].items())
        update += (
            f"\n## Where the time goes\n\nOne step without mixing at 50,257 entries ({wholes}): its parts, with timers "
            "around them, and its longest operations, under PyTorch's profiler, which makes small ones longer.\n\n"
            f"{profile_table(record['profile'], 'part', 12)}\n\n{profile_table(record['profile'], 'operation', 12)}\n"
        )
    if record["growth"]:
        grown = "\n## Growth\n\nOne step, float32, two threads; all but one size as above.\n\n![Growth](growth.svg)\n"
    if record["data"]:
        units = {"filter": "rows filtered", "pack": "MB packed", "line": "MB on one line packed"}
        lines = "\n".join(
            f"| {of['size']:,} {units[of['kind']]} | {of['peak_gib']:.2f} | {of['seconds']:.0f} |"
            for of in record["data"]
        )
        grown += f"\n## Stages that read data\n\n| what | GiB, with the libraries | s |\n|---|---|---|\n{lines}\n"
    if record["memory"]:
        beside = record["memory"]["beside_gib"]
        grown += (
            f"\n64 responses of 512 tokens at 151,936 entries, in micro-batches of 8, take {beside:.2f} GiB beside "
            "libraries, weights, gradients, optimizer and caches (≤ 1 GiB wanted).\n"
        )
    return (
        "# Benchmarks\n\n"
        f"`{record['command']}` on {host['cores']} cores of {host['processor']}; Python {host['python']}, {versions}.\n"
        "Seconds are medians of alternating steps in one run (least–most); memory is the peak of the whole process.\n"
        f"TRL's MiniLLM trainer is that of TRL {minillm}, the others those of {others}.\n"
        f"{compared}{missing}{update}{grown}"
    )
