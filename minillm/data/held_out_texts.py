"""Stage `held_out_texts`: packs each plain text to measure the loss on, as the plain text of training is packed."""

from transformers import AutoTokenizer

from minillm.data.packing import megabytes, pack
from minillm.stages.base import Job, Summary
from minillm.stages.reading import HeldOutTexts
from minillm.worker.progress import Progress


def run(job: Job[HeldOutTexts]) -> Summary:
    """Write a folder NAME for each text (see `pack`); the summary has its number of blocks.

    Raises:
        StageError: A text cannot be read or is shorter than one block.
    """
    settings = job.settings
    tokenizer = AutoTokenizer.from_pretrained(job.inputs["tokenizer"])
    summary: Summary = {}
    for name in settings.texts:
        text = job.inputs[f"held_out/{name}"]
        folder = job.output / name
        folder.mkdir(exist_ok=True)
        progress = Progress(job.output, megabytes(text), f"MB of {name}")
        summary[name] = pack(text, tokenizer, settings.block_tokens, job.work / "tokens.bin", folder, progress)[
            "blocks"
        ]
    return summary
