"""Write the embedded corpus: a Dolly-shaped instruction set about a small world.

    python data/embedded/generate.py [--out DIR]

Every answer is drawn from a grammar that has many right answers to one prompt, so
a small student cannot copy the whole answer distribution and has to choose. The
output is the same, byte for byte, on every run (see README.md for the schema).
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grammar as g

SEED = 20230614
N_TRAIN, N_DEV = 5200, 400
PLAIN_TEXT_LINES, HELD_OUT_LINES = 1500, 200
SHARES = {"test": 0.25, "dev": 0.10, "train": 0.65}  # of the prompts, not the rows
CHOICE = re.compile(r"\[([^\[\]]*)\]")  # innermost alternatives
PHRASE = re.compile(r"<(\w+)>")

TRAIN_STYLES = {"plain": 3, "question": 4, "user": 3, "task": 3, "new": 3, "more": 3}


class Benchmark(NamedTuple):
    """Recipe for the prompts of one benchmark."""

    size: int
    styles: dict[str, int]  # style -> weight
    context: float  # chance that a prompt comes with an input text
    references: int = 1


BENCHMARKS = {
    "dolly_eval": Benchmark(120, TRAIN_STYLES, 0.25),
    "self_inst": Benchmark(100, {"user": 1}, 0.25),
    "vicuna": Benchmark(80, {"more": 1}, 0.0),
    "sni": Benchmark(120, {"task": 1}, 0.4, references=4),
    "unni": Benchmark(120, {"new": 3, "plain": 1}, 0.25),
}


class Row(NamedTuple):
    """One prompt with the recipe of its answers."""

    category: str
    instruction: str
    context: str
    answers: str  # template, already bound to `slots`
    slots: dict[str, str]


def choose(rng: random.Random, options: list[str]) -> str:
    """Draw one alternative; alternative number r has weight 1/r."""
    weights = [1.0 / rank for rank in range(1, len(options) + 1)]
    return rng.choices(options, weights)[0]


def expand(rng: random.Random, template: str, slots: dict[str, str]) -> str:
    """Return one random expansion of a template (`grammar` describes the template language)."""
    while PHRASE.search(template):
        template = PHRASE.sub(lambda match: g.PHRASES[match[1]], template)
    while match := CHOICE.search(template):
        drawn = choose(rng, match[1].split("|"))
        template = template[: match.start()] + drawn + template[match.end() :]
    text = template.format_map(slots)
    return text[0].upper() + text[1:]


def animal_slots(name: str) -> dict[str, str]:
    """Return the fixed facts of one animal."""
    animal = g.ANIMALS[name]
    home = g.HOMES[animal.home]
    return {
        "a": name,
        "col": animal.colour,
        "size": animal.size,
        "f1": home.foods[0],
        "f2": home.foods[1],
        "p1": g.PLACES[home.places[0]],
        "p2": g.PLACES[home.places[1]],
        "act": home.act,
        "acts": g.ACTS[home.act][0],
        "w": home.weather,
        "t": g.TIMES[home.time],
        "T": g.TIMES[home.time].capitalize(),
    }


def scene_slots(rng: random.Random, task: g.Task) -> dict[str, str]:
    """Draw what is new in every prompt: season, weather, place, people, food, activity."""
    first, second = rng.sample(sorted(g.PEOPLE), 2)
    place = rng.choice(sorted(g.PLACES))
    weather = rng.choice(g.WEATHER)
    slots = {
        "s": rng.choice(g.SEASONS),
        "v": weather,
        "place": place,
        "x": g.PLACES[place],
        "P": first,
        "Q": second,
        "p": g.PEOPLE[first],
        "p_": g.PEOPLE[first].capitalize(),
        "food": rng.choice(("bread", "apples", "fish", "nuts")),
        "doing": g.ACTS[rng.choice(sorted(g.ACTS))][1],
    }
    if task.context:  # a text tells its own facts, not those of the animal
        slots["w"] = weather
        slots["t"] = g.TIMES[rng.choice(sorted(g.TIMES))]
        slots["T"] = slots["t"].capitalize()
    return slots


def choice_slots(rng: random.Random, task: g.Task, slots: dict[str, str]) -> dict[str, str]:
    """Draw the two options of a classification prompt: {o} is right, {no} is wrong."""
    right, wrong = "", ""
    if "which" in task.ask:
        right, wrong = f"the {slots['a']}", f"the {slots['place']}"
    elif rng.random() < 0.5:
        right = slots["col"]
        wrong = rng.choice([colour for colour in g.COLOURS if colour != right])
    else:
        right = slots["size"]
        wrong = rng.choice([size for size in g.SIZES if size != right])
    first, second = rng.sample([right, wrong], 2)
    return {"o": right, "no": wrong, "o1": first, "o2": second}


def draw_slots(rng: random.Random, task: g.Task) -> dict[str, str]:
    """Draw all slots of one prompt."""
    scene = scene_slots(rng, task)
    names = sorted(g.ANIMALS)
    if task.category == "brainstorming":  # only animals that live at the place
        names = [name for name in names if scene["place"] in g.HOMES[g.ANIMALS[name].home].places]
    first, second = rng.sample(names, 2)
    slots = animal_slots(first) | scene
    slots["b"], slots["colb"] = second, g.ANIMALS[second].colour
    slots["Yes"] = "Yes" if slots["v"] == slots["w"] else "No"
    return slots | choice_slots(rng, task, slots)


def draw_row(rng: random.Random, style: str, with_context: bool | None = None) -> Row:
    """Draw one prompt in the given style; `None` leaves the context to chance."""
    if style == "more":  # nobody asks for two sentences about a text
        with_context = False
    tasks = [
        task
        for task in g.TASKS
        if (with_context is None or bool(task.context) == with_context) and (task.question or style != "question")
    ]
    category = rng.choice(sorted({task.category for task in tasks}))
    task = rng.choice([task for task in tasks if task.category == category])
    slots = draw_slots(rng, task)
    context = expand(rng, task.context, slots) if task.context else ""
    if style == "question":
        instruction = expand(rng, task.question, slots)
    else:
        ask = task.ask.format_map(slots)
        frame = rng.choice(g.FRAMES[style])
        instruction = frame.format(Ask=ask[0].upper() + ask[1:], ask=ask)
    answers = "[" + "|".join(task.answers) + "]" + "<more>" * (style == "more")
    return Row(task.category, instruction, context, answers, slots)


def prompts(rng: random.Random, styles: dict[str, int], context: float | None = None) -> Iterator[Row]:
    """Yield prompts in a mix of styles, without end."""
    while True:
        style = rng.choices(list(styles), list(styles.values()))[0]
        wanted = None if context is None else rng.random() < context
        yield draw_row(rng, style, wanted)


def split_of(row: Row) -> str:
    """Return the split of a prompt, which depends on its text alone."""
    text = f"{row.instruction}\n{row.context}"
    return random.Random(f"{SEED}:{text}").choices(list(SHARES), list(SHARES.values()))[0]


def draw_references(rng: random.Random, row: Row, count: int) -> list[str]:
    """Draw up to `count` different right answers."""
    drawn = [expand(rng, row.answers, row.slots) for _ in range(4 * count)]
    return list(dict.fromkeys(drawn))[:count]


def benchmark_rows(rng: random.Random, spec: Benchmark) -> list[dict[str, object]]:
    """Draw the rows of one benchmark file: held-out prompts, each once."""
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for row in prompts(rng, spec.styles, spec.context):
        key = (row.instruction, row.context)
        if len(rows) == spec.size:
            break
        if split_of(row) == "test" and key not in rows:
            references = draw_references(rng, row, spec.references)
            rows[key] = {
                "topic": row.category,
                "instruction": row.instruction,
                "input": row.context,
                "output": references if spec.references > 1 else references[0],
            }
    return list(rows.values())


def dolly_rows(rng: random.Random, split: str, count: int) -> list[dict[str, object]]:
    """Draw distinct rows in the Dolly schema, all with prompts of one split."""
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for row in prompts(rng, TRAIN_STYLES):
        if len(rows) == count:
            break
        response = expand(rng, row.answers, row.slots)
        if split_of(row) == split:
            rows[row.instruction, row.context, response] = dolly_row(row, response)
    return list(rows.values())


def dolly_row(row: Row, response: str) -> dict[str, object]:
    """Return one row in the schema of databricks-dolly-15k."""
    return {
        "instruction": row.instruction,
        "context": row.context,
        "response": response,
        "category": row.category,
    }


def plain_text(rng: random.Random, count: int) -> list[str]:
    """Draw documents of two to five sentences in the same language, without prompts."""
    lines = []
    tasks = [task for task in g.TASKS if task.category != "classification"]
    for _ in range(count):
        slots = draw_slots(rng, task := rng.choice(tasks))
        template = "[" + "|".join(task.answers) + "]<more>"
        text = expand(rng, task.context, slots) + " " if task.context else ""
        lines.append(text + expand(rng, template, slots))
    return lines


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    """Write one JSON object per line, in UTF-8, with keys in the order given."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_corpus(out: Path) -> None:
    """Write all files of the corpus into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    benchmarks = {name: benchmark_rows(random.Random(f"{SEED}:{name}"), spec) for name, spec in BENCHMARKS.items()}
    rows = dolly_rows(random.Random(f"{SEED}:train"), "train", N_TRAIN)
    rows += dolly_rows(random.Random(f"{SEED}:dev"), "dev", N_DEV)
    splits = ["train"] * N_TRAIN + ["dev"] * N_DEV
    for test in benchmarks["dolly_eval"]:  # the test rows of the Dolly file
        rows.append(
            {
                "instruction": test["instruction"],
                "context": test["input"],
                "response": test["output"],
                "category": test["topic"],
            }
        )
        splits.append("test")
    write_jsonl(out / "dolly.jsonl", rows)
    split = [{"row": index, "split": name} for index, name in enumerate(splits)]
    write_jsonl(out / "dolly_split.jsonl", split)
    for name, benchmark in benchmarks.items():
        write_jsonl(out / f"{name}.jsonl", benchmark)
    lines = plain_text(random.Random(f"{SEED}:plain"), PLAIN_TEXT_LINES)
    held_out = plain_text(random.Random(f"{SEED}:held out"), HELD_OUT_LINES)
    for name, text in (("plain_text", lines), ("held_out", [line for line in held_out if line not in lines])):
        (out / f"{name}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and write the corpus."""
    parser = argparse.ArgumentParser(description="Write the embedded corpus.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    write_corpus(parser.parse_args().out)


if __name__ == "__main__":
    main()
