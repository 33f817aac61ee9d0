"""Describe the models for the page: origin, size, cost, and the step they were selected at."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd

from minillm.config import Model, TeacherModel
from minillm.files import read_json
from minillm.reporting.comparison import METRIC_NAMES, Comparison
from minillm.reporting.provenance import manifest_of
from minillm.words import ABSENT, number, percent, short_count, span

SELECTED_BY = {**METRIC_NAMES, "validation_loss": "validation loss"}
Cost = Mapping[str, Any]
"""Measured cost of generation (see `minillm.generation.cost`)."""
SHOWN_DIGITS = 12
"""Digits shown of a commit or a digest."""


def model_table(
    inputs: Mapping[str, Path],
    ready_made: Mapping[str, Model],
    trained: Mapping[str, Path],
    parameters: Mapping[str, int],
    comparison: Comparison,
    cost: Cost,
) -> pd.DataFrame:
    """Tabulate size and cost of each model, origin of the ready-made ones, selection of those trained here.

    Args:
        inputs: Inputs of the stage.
        ready_made: Rows of the result table that were not trained here.
        trained: Train artifacts by role, including the initial student.
        parameters: Number of weights by role.
        comparison: Its first row is the one that sizes are compared with.
        cost: Cost of generation of each row of the result table.
    """
    first = parameters.get(comparison.roles[0])
    share = f"of {comparison.yardstick}'s"
    rows = {}
    for role in [*ready_made, *trained]:
        rows[role] = {
            "parameters": short_count(parameters[role]) if role in parameters else ABSENT,
            share: percent(parameters[role] / first) if first else ABSENT,
            **(_cost_cells(cost["models"][role]) if role in cost["models"] else {}),
            **(_origin(ready_made[role], inputs[f"responses/{role}"]) if role in ready_made else {}),
            **(_selection(trained[role]) if role in trained else {}),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").fillna(ABSENT)
    return table if len(rows) > 1 else table.drop(columns=share)


def cost_words(comparison: Comparison, cost: Cost) -> list[str]:
    """Compare the cost of generation of the best with that of the first row, in a sentence, if both were measured."""
    first, best = comparison.roles[0], comparison.best
    if best == first or not {best, first} <= cost["models"].keys():
        return []
    ours, theirs = cost["models"][best], cost["models"][first]
    ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
    return [
        f"{best} generates {number(ours['tokens_per_second'], 0)} tokens per second, {number(ratio)} times as many as "
        f"{comparison.yardstick} ({number(theirs['tokens_per_second'], 0)}), at a peak memory of "
        f"{number(ours['peak_memory_gib'], 2)} against {number(theirs['peak_memory_gib'], 2)} GiB: medians of "
        f"{cost['rounds']} rounds over {ours['responses']} prompts of {cost['benchmark']}, at most "
        f"{cost['at_once']} at once, in one process, with no other stage of this run beside it."
    ]


def _cost_cells(cost: Mapping[str, float]) -> dict[str, str]:
    speed = f"{number(cost['tokens_per_second'], 0)} ({span(cost['slowest'], cost['fastest'])})"
    return {"tokens/s": speed, "peak GiB": number(cost["peak_memory_gib"], 2)}


def _origin(model: Model, responses: Path) -> dict[str, str]:
    """Return where a model is from, and the beginning of the commit or digest that its generation recorded."""
    if isinstance(model, TeacherModel) and model.endpoint is not None:
        return {"from": f"{model.endpoint.model} at {model.endpoint.base_url}"}
    manifest = manifest_of(responses)
    fingerprint = ABSENT if manifest is None else manifest.sources.get("model", ABSENT)
    place = str(model.path) if model.hub is None else f"{model.hub}, revision {model.revision}"
    return {"from": place, "content": fingerprint.replace(":", "@").split("@")[-1][:SHOWN_DIGITS]}


def _selection(train_artifact: Path) -> dict[str, str]:
    """Return by which measure, and at which step, weights were selected."""
    selection = read_json(train_artifact / "selection.json")
    return {
        "selected by": SELECTED_BY[selection["select_by"]] + (", then loss" if selection["equal"] else ""),
        "value": number(selection["value"], 2),
        "at step": number(selection["step"], 0),
        "last step": number(selection["history"][-1]["step"], 0),
    }


def collapses(trained: Mapping[str, Path]) -> list[str]:
    """Say which trainings collapsed, when, and what was done, a sentence each.

    Args:
        trained: Train artifacts by role.
    """
    told = {role: read_json(path / "selection.json").get("collapse") for role, path in trained.items()}
    return [f"{role}: {words}." for role, words in told.items() if words]


def sizes(inputs: Mapping[str, Path], roles: Sequence[str], trained: Mapping[str, Path]) -> dict[str, int]:
    """Return the number of weights by role: from the files of models trained here, or as recorded by generation."""
    known = {role: count_parameters(path) for role, path in trained.items()}
    for role in roles:
        told = manifest_of(inputs[f"responses/{role}"])
        if role not in known and told is not None and "parameters" in told.summary:
            known[role] = int(told.summary["parameters"])
    return known


def trained_on(trained: Mapping[str, Path]) -> dict[str, str]:
    """Return the `text` of each method's configuration, by role.

    Args:
        trained: Train artifacts by role.
    """
    manifests = {role: manifest_of(path) for role, path in trained.items()}
    methods = {role: manifest.settings.get("method", {}) for role, manifest in manifests.items() if manifest}
    return {role: method["text"] for role, method in methods.items() if "text" in method}


def count_parameters(train_artifact: Path) -> int:
    """Count the weights in a train artifact's safetensors files, tied ones once, from the headers alone."""
    metadata = huggingface_hub.get_local_safetensors_metadata(train_artifact / "model")
    return sum(metadata.parameter_count.values())
