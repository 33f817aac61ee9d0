"""Stage report: the result table, the plots and one page that shows what was measured and on what.

The tables come from `comparison`, the figures from `plots`, the wording from templates/.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import pandas as pd
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from minillm.artifacts import MANIFEST, METRICS, write_atomically
from minillm.data.tables import read_records
from minillm.evaluation.scoring import prompt_values
from minillm.progress import read_metrics
from minillm.reporting import plots
from minillm.reporting.comparison import MEAN, WORDS, Comparison, formatted, human, percent, verdict
from minillm.reporting.downstream_section import downstream_section
from minillm.reporting.sections import Section
from minillm.stages import Job, Report

TEMPLATES = Path(__file__).parent / "templates"
SELECTED_BY = {"rouge_l": "Rouge-L", "validation_loss": "validation loss"}
SHOWN_CHARACTERS = 1200
"""Longer texts are cut in the page; the stored responses are whole."""

MakeSection = Callable[[Mapping[str, Path], Sequence[str], plots.Look], Section | None]
"""From the stage's inputs, the rows of the table and how they look; None where nothing was measured."""
SECTIONS: tuple[MakeSection, ...] = (downstream_section,)
"""In the order of the page."""


def run(job: Job) -> dict[str, float | str]:
    """Write results.csv, results.json, plots, report.md and report.html, and return the table's numbers."""
    settings = job.settings
    assert isinstance(settings, Report)
    tables = {role: _read_json(job.inputs[f"score/{role}"] / "table.json") for role in settings.roles}
    scores = {role: pd.read_parquet(job.inputs[f"score/{role}"] / "scores.parquet") for role in settings.roles}
    comparison = Comparison(tables, settings.benchmarks, {role: prompt_values(of) for role, of in scores.items()})
    trained = {name.removeprefix("train/"): path for name, path in job.inputs.items() if name.startswith("train/")}
    parameters = sizes(job.inputs, settings.roles, trained)
    sentences = verdict(comparison, parameters)

    comparison.frame().to_csv(job.output / "results.csv", index=False)
    results = {
        "name": settings.name,
        "verdict": sentences,
        "best_student": comparison.best_student,
        "compared": comparison.compared,
        "measure": comparison.measure,
        "benchmarks": list(settings.benchmarks),
        "tables": tables,
        "differences": [asdict(difference) for difference in comparison.differences],
        "ranks": comparison.ranks,
        "parameters": parameters,
    }
    write_atomically(job.output / "results.json", json.dumps(results, indent=2))
    look = plots.looks([*comparison.roles, *(role for role in trained if role not in comparison.roles)])
    sections = [section for make in SECTIONS if (section := make(job.inputs, settings.roles, look))]
    figures = draw(comparison, trained, look)
    drawn = save(figures | {name: of for section in sections for name, of in section.figures.items()}, job.output)
    page = {
        "name": settings.name,
        "measure": comparison.measure,
        "measures": {name: WORDS[comparison.metric(name)] for name in comparison.benchmarks},
        "sentences": sentences,
        "tiles": _tiles(comparison, parameters),
        "best": comparison.best_student,
        "compared": comparison.compared,
        "seeds": tables[settings.roles[0]]["seeds"],
        "result": result_table(comparison),
        "intervals": interval_table(comparison),
        "differences": difference_table(comparison),
        "behaviour": behaviour_table(
            comparison,
            {role: _read_json(job.inputs[f"diversity/{role}"] / "diversity.json") for role in settings.roles},
        ),
        "models": model_table(trained, parameters, comparison),
        "figures": [name for name in figures if name != "benchmarks"],
        "sections": sections,
        "drawn": drawn,
        **_inputs_of_page(job.inputs, comparison),
    }
    render(page, job.output)
    return _summary(comparison, sentences)


def render(page: Mapping[str, Any], output: Path) -> None:
    """Fill both templates; everything that goes into the HTML is escaped unless a template says otherwise."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shorten": shorten, "markdown": markdown}
    for name in ("report.md", "report.html"):
        write_atomically(output / name, environment.get_template(f"{name}.jinja").render(page))


def markdown(frame: pd.DataFrame) -> str:
    """A table whose figures keep the digits they were written with."""
    alignment = ("left", *["right"] * len(frame.columns))
    return frame.to_markdown(disable_numparse=True, colalign=alignment)


def shorten(text: str) -> str:
    """The beginning of a long text; control characters, which models do write, are replaced."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "\N{REPLACEMENT CHARACTER}", text)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS].rstrip() + " …"


def result_table(comparison: Comparison) -> pd.DataFrame:
    """Method × benchmark and their mean, 'mean ± spread' of the score, and the ranks a method may have."""
    table = _by_cell(comparison, formatted)
    table["rank"] = [f"{best}" if best == worst else f"{best}–{worst}" for best, worst in comparison.ranks.values()]
    return table


def interval_table(comparison: Comparison) -> pd.DataFrame:
    """Method × benchmark and their mean, the 95 % interval of the score over prompts."""
    return _by_cell(
        comparison, lambda cell: "–" if None in cell["interval"] else "{:.1f} to {:.1f}".format(*cell["interval"])
    )


def _by_cell(comparison: Comparison, words: Callable[[Mapping[str, Any]], str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            comparison.label(name): [words(comparison.score(role, name)) for role in comparison.roles]
            for name in comparison.columns
        },
        index=comparison.roles,
    )


def difference_table(comparison: Comparison) -> pd.DataFrame:
    """The compared method minus each other one; clear differences are marked with *."""
    cells = {(d.other, d.benchmark): f"{d}{' *' if d.clear else ''}" for d in comparison.differences}
    others = [role for role in comparison.roles if role != comparison.compared]
    return pd.DataFrame(
        {comparison.label(name): [cells[role, name] for role in others] for name in comparison.columns},
        index=others,
        dtype=str,
    )


def behaviour_table(comparison: Comparison, diversities: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Exact match, response length, share of finished responses and diversity, averaged over the benchmarks."""
    rows = {}
    for role, table in comparison.tables.items():
        benchmarks = pd.DataFrame(list(table["benchmarks"].values()))
        rows[role] = {
            "exact match": formatted(table["mean"]["exact_match"]),
            "response tokens": f"{benchmarks['response_tokens'].mean():.1f}",
            "finished, %": f"{benchmarks['finished'].mean():.1f}",
            "distinct 4-grams, %": f"{diversities[role][MEAN]['distinct_4']:.1f}",
            "self-overlap": f"{diversities[role][MEAN]['self_overlap']:.1f}"
            if "self_overlap" in diversities[role][MEAN]
            else "–",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def model_table(trained: Mapping[str, Path], parameters: Mapping[str, int], comparison: Comparison) -> pd.DataFrame:
    """Size of each model trained here, and the step and value it was selected at."""
    teacher = parameters.get(comparison.roles[0])
    rows = {}
    for role, path in trained.items():
        selection = _read_json(path / "selection.json")
        rows[role] = {
            "parameters": human(parameters[role]),
            "of the teacher's": percent(parameters[role] / teacher) if teacher else "–",
            "selected by": SELECTED_BY[selection["select_by"]],
            "value": f"{selection['value']:.2f}",
            "at step": f"{selection['step']:.0f}",
            "last step": f"{selection['history'][-1]['step']:.0f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def sizes(inputs: Mapping[str, Path], roles: Sequence[str], trained: Mapping[str, Path]) -> dict[str, int]:
    """Number of weights by role: of models trained here from their files, of others as their generation tells."""
    known = {role: count_parameters(path) for role, path in trained.items()}
    for role in roles:
        told = read_manifest(inputs[f"responses/{role}"]).get("summary", {})
        if role not in known and "parameters" in told:
            known[role] = int(told["parameters"])
    return known


def count_parameters(train_artifact: Path) -> int:
    """Number of weights in a train artifact's safetensors files, tied ones once; the weights are not read."""
    metadata = huggingface_hub.get_local_safetensors_metadata(train_artifact / "model")
    return sum(metadata.parameter_count.values())


def draw(comparison: Comparison, trained: Mapping[str, Path], look: plots.Look) -> dict[str, tuple[str, Figure]]:
    """Title and figure of every plot that a run always has, by the name of its file."""
    figures: dict[str, tuple[str, Figure]] = {
        "benchmarks": (f"{comparison.measure} by benchmark", plots.benchmark_figure(comparison, look))
    }
    for name in comparison.benchmarks:
        figure = plots.length_figure(name, comparison, look)
        if figure is not None:
            figures[f"length-{name}"] = (f"{WORDS[comparison.metric(name)]} by reference length: {name}", figure)
    metrics = {role: list(read_metrics(path / METRICS)) for role, path in trained.items()}
    for metric in plots.CURVES:
        curves = {
            role: points
            for role, records in metrics.items()
            if (points := [(step, value) for step, name, value in records if name == metric])
        }
        if curves:
            figure = plots.curve_figure(metric, curves, look)
            figures[metric.replace("/", "-")] = (plots.CURVES[metric], figure)
    return figures


def save(figures: Mapping[str, tuple[str, Figure]], output: Path) -> dict[str, dict[str, str]]:
    """Save every figure as PNG in plots/; by file name, its title and its SVG."""
    folder = output / "plots"
    folder.mkdir(exist_ok=True)
    return {
        name: {"title": title, "svg": plots.save(figure, folder / f"{name}.png")}
        for name, (title, figure) in figures.items()
    }


def answers(inputs: Mapping[str, Path], benchmark: str, comparison: Comparison) -> list[dict[str, Any]]:
    """The first, middle and last prompt, with references and every method's answer of the first seed."""
    prompts = [record.value for record in read_records(inputs["benchmarks"] / f"{benchmark}.jsonl")]
    last = len(prompts) - 1
    shown = [{**prompts[place], "answers": {}} for place in sorted({0, last // 2, last})]
    for role, table in comparison.tables.items():
        seed = table["seeds"][0]
        responses = (record.value for record in read_records(inputs[f"responses/{role}"] / f"{benchmark}.jsonl"))
        texts = {row["index"]: row["response"] for row in responses if row["seed"] == seed}
        scores = pd.read_parquet(inputs[f"score/{role}"] / "scores.parquet")
        scores = scores.query("benchmark == @benchmark and seed == @seed").set_index("index")["score"].to_dict()
        for prompt in shown:
            index = prompt["index"]
            prompt["answers"][role] = {"text": texts[index], "score": f"{100 * scores[index]:.1f}"}
    return shown


def kept_rows(examples: Path) -> str:
    """Rows of each part that filtering kept, in words."""
    counts = {part: pq.read_metadata(examples / f"{part}.parquet").num_rows for part in ("train", "validation", "test")}
    return ", ".join(f"{part} {count:,}" for part, count in counts.items())


def data_tables(examples: Path) -> dict[str, pd.DataFrame]:
    """What filtering dropped, and how long the rest is, by title."""
    # a category may be called "null" or "NA"
    dropped = pd.read_csv(examples / "dropped.csv", index_col=0, keep_default_na=False).rename_axis(None).map(str)
    lengths = pd.read_csv(examples / "lengths.csv", keep_default_na=False)
    lengths.index = lengths.pop("category") + ", " + lengths.pop("text")  # type: ignore[assignment]
    lengths = lengths.map(lambda value: f"{value:.1f}" if isinstance(value, float) else str(value))
    return {"Dropped rows by reason and category": dropped, "Lengths of the kept rows in tokens": lengths}


def provenance(inputs: Mapping[str, Path]) -> pd.DataFrame:
    """Kind and key of each artifact behind the report, and the seed of those trained."""
    rows = {}
    for name, path in inputs.items():
        manifest = read_manifest(path)
        seed = manifest.get("settings", {}).get("seed")
        rows[name] = {
            "kind": manifest.get("kind", "–"),
            "key": manifest.get("key", "–")[:16],
            "seed": "" if seed is None else str(seed),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def versions(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Versions of the libraries that made the inputs; several where they differ."""
    found: dict[str, set[str]] = {}
    for path in inputs.values():
        for library, version in read_manifest(path).get("versions", {}).items():
            found.setdefault(library, set()).add(str(version))
    return {library: ", ".join(sorted(several)) for library, several in sorted(found.items())}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact; empty for a source file or directory, which has none."""
    return _read_json(path / MANIFEST) if (path / MANIFEST).is_file() else {}


def _inputs_of_page(inputs: Mapping[str, Path], comparison: Comparison) -> dict[str, Any]:
    """What the page shows of the data, the prompts, the answers and where all came from."""
    cut = _read_json(inputs[f"responses/{comparison.roles[0]}"] / "cut_prompts.json")
    seed = comparison.tables[comparison.roles[0]]["seeds"][0]
    return {
        "kept_words": kept_rows(inputs["examples"]),
        "data": data_tables(inputs["examples"]),
        "cut_words": ", ".join(f"{name} {count}" for name, count in cut.items() if count) or "none",
        "answers": {name: answers(inputs, name, comparison) for name in comparison.benchmarks},
        "answers_words": f"The first, the middle and the last prompt of each benchmark, not picked; seed {seed}. "
        f"Texts of more than {SHOWN_CHARACTERS} characters are cut here.",
        "provenance": provenance(inputs),
        "versions": versions(inputs),
    }


def _summary(comparison: Comparison, sentences: list[str]) -> dict[str, float | str]:
    summary: dict[str, float | str] = {"best_student": comparison.best_student, "verdict": " ".join(sentences)}
    for role in comparison.roles:
        for name in comparison.columns:
            cell = comparison.score(role, name)
            summary |= {f"{role}/score/{name}": cell["mean"], f"{role}/score/{name}_spread": cell["spread"]}
    return summary


def _tiles(comparison: Comparison, parameters: Mapping[str, int]) -> list[tuple[str, str]]:
    teacher, best = comparison.roles[0], comparison.best_student
    score, full = comparison.score(best, MEAN), comparison.score(teacher, MEAN)["mean"]
    tiles = [(formatted(score), f"{comparison.measure} of {best}, the best student")]
    if full > 0:
        tiles.append((percent(score["mean"] / full), f"of the teacher's {comparison.measure} ({full:.1f})"))
    if teacher in parameters and best in parameters:
        tiles.append((percent(parameters[best] / parameters[teacher]), "of the teacher's parameters"))
    return tiles


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text())
