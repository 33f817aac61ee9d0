"""Growth of a step's time and memory with batch, length, vocabulary and model, as numbers and a plot."""

import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.comparisons import STEP, TINY
from benchmarks.protocol import Contender

AXES: dict[str, tuple[str, list[Any]]] = {
    "batch_size": ("rows", [4, 8, 16, 32, 64]),
    "new_tokens": ("new tokens", [32, 64, 128, 256]),
    "vocabulary": ("vocabulary", [8192, 32000, 50257, 151936]),
    "student": ("width of the student (4 layers)", [[64, 4], [128, 4], [256, 4], [512, 4]]),
}


def measure(tiny: bool) -> dict[str, list[dict[str, float]]]:
    """Measure median seconds per new token and peak memory along each axis; the rest is as in the comparisons."""
    found: dict[str, list[dict[str, float]]] = {}
    for field, (_, values) in list(AXES.items())[: 1 if tiny else None]:
        found[field] = []
        for value in values[:1] if tiny else values:
            settings = {**STEP, **(TINY if tiny else {}), field: value}
            with Contender("minillm_step", settings) as contender:
                contender.step()
                steps = [contender.step() for _ in range(1 if tiny else 3)]
            seconds = statistics.median(step["seconds"] for step in steps)
            per_token = seconds / (settings["batch_size"] * settings["new_tokens"])
            at = value[0] if isinstance(value, list) else value
            found[field].append({"at": at, "seconds_per_token": per_token, "peak_gib": steps[-1]["peak_gib"]})
            print(f"growth, {field} {at}: {1e3 * per_token:.3f} ms/token, {steps[-1]['peak_gib']:.2f} GiB", flush=True)
    return found


def memory(tiny: bool) -> dict[str, float]:
    """Measure the memory that a large step takes beyond the unavoidable, in GiB.

    The step has 64 responses of 512 tokens over 151,936 entries, in micro-batches of 8. Libraries, weights, gradients,
    optimizer and caches are not counted.
    """
    large = {"batch_size": 64, "micro_batch_size": 8, "new_tokens": 512, "vocabulary": 151936}
    with Contender("minillm_step", {**STEP, **(TINY if tiny else large)}) as contender:
        step = contender.step()
    beside = step["peak_gib"] - step["idle_gib"] - step["state_gib"]
    print(f"memory of 64 × 512 tokens × 151,936 entries beside the state: {beside:.2f} GiB", flush=True)
    return {"seconds": step["seconds"], "peak_gib": step["peak_gib"], "beside_gib": beside}


def plot(found: dict[str, list[dict[str, float]]], target: Path) -> None:
    """Plot milliseconds per token above and memory below, with one column for each axis."""
    figure, axes = plt.subplots(2, len(found), figsize=(3 * len(found), 5), sharey="row", squeeze=False)
    for column, (field, points) in enumerate(found.items()):
        at = [point["at"] for point in points]
        axes[0][column].plot(at, [1e3 * point["seconds_per_token"] for point in points], marker="o")
        axes[1][column].plot(at, [point["peak_gib"] for point in points], marker="o")
        axes[1][column].set_xlabel(AXES[field][0])
    axes[0][0].set(ylabel="ms per new token", ylim=(0, None))
    axes[1][0].set(ylabel="peak memory, GiB", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)
