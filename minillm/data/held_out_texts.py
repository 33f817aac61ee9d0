"""Stage `held_out_texts`: plain texts to measure the loss on, each packed as the plain text of training is."""

from transformers import AutoTokenizer

from minillm.data.packing import megabytes, pack
from minillm.stages import HeldOutTexts, Job, Summary
from minillm.worker.progress import Progress


def run(job: Job[HeldOutTexts]) -> Summary:
    """Write a folder of the text's name for each (see `pack`); the summary has the number of its blocks.

    Raises:
        StageError: If a text cannot be read or is shorter than one block.
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
