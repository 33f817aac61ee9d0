"""Stage `system2_model`: exports the distilled model as an ordinary Hugging Face directory with a model card."""

import shutil

from huggingface_hub import ModelCard, ModelCardData

from minillm.config import System2, Template
from minillm.data.exported_template import save_with_defaults
from minillm.data.prompts import template_of
from minillm.files import read_json
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.placeholders import fill
from minillm.redaction import without_known_secrets
from minillm.reporting.data_words import kept_rows
from minillm.reporting.markdown import TEMPLATES, code, escaped, quoted, table
from minillm.reporting.model_card import decoding, hyper_parameters, origin, usage
from minillm.reporting.model_words import count_parameters
from minillm.reporting.provenance import provenance, versions
from minillm.stages.base import Job, Summary
from minillm.stages.system2 import System2Card
from minillm.stages.training import training_only
from minillm.words import short_count

EXAMPLE = "Is a coin that is flipped twice as it was before?"


def run(job: Job[System2Card]) -> Summary:
    """Copy the model's files, and add README.md and the generation settings of the measurement."""
    shutil.copytree(job.inputs["model"] / "model", job.output, dirs_exist_ok=True)
    given = job.settings.config
    config = System2.model_validate(given)
    asked = {**given, "evaluation": given["asking"]}  # as `usage` and `decoding` read a distillation's
    shared = load_shared_tokenizer(job.output)
    shared.generation_config(**decoding(asked)).save_pretrained(job.output)
    template = template_of(shared.tokenizer, Template(**given["data"]["template"]))
    save_with_defaults(template, job.output)
    (prompt,) = config.system1.steps.values()
    parameters = count_parameters(job.inputs["model"])
    metadata = ModelCardData(
        model_name=config.name,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["system-2-distillation", "arxiv:2407.06023"],
        base_model=config.model.hub,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATES / "system2_card.md.jinja"),
        title=escaped(f"{config.name}: System 1"),
        parameters=short_count(parameters),
        model=origin(given["model"]),
        reasoner=origin({"endpoint": given["reasoner"]}) if config.reasoner else None,
        chain=code(config.system2.name),
        prompt=quoted(prompt),
        snippet=usage(asked, template, question=fill(prompt, {"question": EXAMPLE})),
        samples=config.self_consistency.samples,
        kept_words=escaped(kept_rows(job.inputs["examples"])),
        hyper_parameters=table(hyper_parameters(training_only(config.distillation).model_dump(mode="json"))),
        verdict=escaped(" ".join(read_json(job.inputs["report"] / "results.json")["verdict"])),
        provenance=table(provenance(job.inputs)),
        configuration=code(config.name),
        versions=", ".join(f"{library} {version}" for library, version in versions(job.inputs).items()),
    )
    ModelCard(without_known_secrets(str(card))).save(job.output / "README.md")
    return {"parameters": float(parameters)}
