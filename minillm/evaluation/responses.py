"""Read what the stages of an evaluation leave behind: prompts of a benchmark, and a model's responses to them."""

from pathlib import Path
from typing import Any

from minillm.files import read_json_lines


def read_rows(folder: Path, benchmark: str) -> list[dict[str, Any]]:
    """Return the rows of a benchmark's or another set's file, prompts or responses, in their order."""
    return read_json_lines(folder / f"{benchmark}.jsonl")


def read_responses(folder: Path, benchmark: str) -> dict[tuple[int, int], str]:
    """Return the text of every response of one model to a benchmark, by prompt and seed of generation."""
    return {(row["index"], row["seed"]): row["response"] for row in read_rows(folder, benchmark)}
