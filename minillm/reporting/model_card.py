"""Stage model: export a trained student as an ordinary Hugging Face directory with a model card.

The wording is in templates/model_card.md.jinja; `huggingface_hub` writes the metadata.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from minillm.config import DIVERGENCES, Method, Template
from minillm.data.chat import ChatTemplate
from minillm.data.exported_template import save_with_defaults
from minillm.data.prompts import template_of
from minillm.data.rows import user_message
from minillm.data.text_template import TextTemplate
from minillm.files import read_json
from minillm.metrics.by_name import METRICS_BY_NAME
from minillm.models.shared_tokenizer import load_shared_tokenizer
from minillm.redaction import without_known_secrets
from minillm.reporting.comparison import MEAN, METRIC_NAMES, SEVERAL, measure_of
from minillm.reporting.data_words import kept_rows
from minillm.reporting.markdown import TEMPLATES, code, escaped, table
from minillm.reporting.model_words import count_parameters
from minillm.reporting.provenance import provenance, versions
from minillm.stages.base import Job, Summary
from minillm.stages.pages import Card
from minillm.words import score, short_count

TEXT = {
    "dataset": "the responses of the data",
    "teacher": "responses that the teacher generated once to the prompts of the data",
    "rollouts": "responses to the prompts of the data, sampled in training from the student, mixed with the teacher",
    "pairs": "pairs of responses that the teacher and the student generated once to the prompts of the data",
}
STORED = {
    "live": " to the teacher over the vocabulary",
    "hidden": " to the teacher over the vocabulary, from its stored hidden states",
    "top": " to the teacher's likeliest entries, stored before training, and all others as one",
    "sampled": " to the teacher, estimated from entries that were drawn from it before training",
}
START = {"pretrained": "the student as given", "initial": "the student fine-tuned on the data"}


def run(job: Job[Card]) -> Summary:
    """Copy the model's files, and add README.md, the generation settings of the evaluation, and the run's prompts."""
    settings = job.settings
    shutil.copytree(job.inputs["model"] / "model", job.output, dirs_exist_ok=True)
    shared = load_shared_tokenizer(job.output)
    shared.generation_config(**decoding(settings.config)).save_pretrained(job.output)
    template = template_of(shared.tokenizer, Template(**settings.config["data"]["template"]))
    save_with_defaults(template, job.output)
    results = read_json(job.inputs["report"] / "results.json")
    parameters = count_parameters(job.inputs["model"])
    card = ModelCard.from_template(
        card_metadata(settings, results),
        template_path=str(TEMPLATES / "model_card.md.jinja"),
        title=escaped(f"{settings.config['name']}: {settings.role}"),
        parameters=short_count(parameters),
        **training_words(settings),
        **_result_words(settings, results),
        config=settings.config,
        snippet=usage(settings.config, template, settings.hub or "."),
        texts=None if isinstance(template, ChatTemplate) else [template.template.text(of) for of in ("", "a")],
        end_tokens=" or ".join(f"`{shared.tokenizer.convert_ids_to_tokens(end)}`" for end in shared.ends),
        kept_words=escaped(kept_rows(job.inputs["examples"])),
        provenance=table(provenance(job.inputs)),
        versions=", ".join(f"{library} {version}" for library, version in versions(job.inputs).items()),
    )
    ModelCard(without_known_secrets(str(card))).save(job.output / "README.md")
    return {
        "parameters": float(parameters),
        "score/mean": results["tables"][settings.role]["mean"]["score"]["mean"],
    }


def card_metadata(settings: Card, results: Mapping[str, Any]) -> ModelCardData:
    """Return the metadata that the hub reads: base model and data by their hub names, and the results."""
    config = settings.config
    data, benchmarks = config["data"]["instructions"], config["evaluation"]["benchmarks"]
    table = results["tables"][settings.role]["benchmarks"]
    return ModelCardData(
        model_name=f"{config['name']}-{settings.role}",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["knowledge-distillation", "instruction-following", "arxiv:2306.08543"],
        base_model=config["teacher" if config["student"]["model"]["layers_of"] else "student"]["model"]["hub"],
        datasets=[data["hub"]] if data["hub"] else None,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=benchmarks[name]["source"]["hub"] or name,
                dataset_name=name,
                metric_type=METRICS_BY_NAME[table[name]["metric"]].hub,
                metric_name=METRIC_NAMES[table[name]["metric"]],
                metric_value=round(table[name]["score"]["mean"], 2),
            )
            for name in results["benchmarks"]
        ],
    )


def origin(source: Mapping[str, Any]) -> str:
    """Describe a configured model or data source."""
    if source.get("architecture"):
        return f"a randomly initialised {escaped(source['architecture']['model_type'])} model"
    if source.get("layers_of"):
        return f"{layers_words(source['layers'])} of the teacher as given"
    if source.get("endpoint"):
        return f"{code(source['endpoint']['model'])} behind an endpoint"
    if source["hub"]:
        return f"{code(source['hub'])} (revision {escaped(source['revision'])})"
    return code(Path(source["path"]).name)


def layers_words(layers: int | Sequence[int]) -> str:
    """Describe the layers that a student was made of."""
    spaced = isinstance(layers, int)
    return f"{layers} evenly spaced layers" if spaced else f"layers {', '.join(map(str, layers))} (counted from 0)"


def hyper_parameters(method: Mapping[str, Any]) -> pd.DataFrame:
    """Tabulate the method's settings, including those of training and of the policy gradient."""
    own = {name: value for name, value in method.items() if name not in ("training", "policy")}
    flat = {**own, **method["training"], **(method["policy"] or {})}
    rows = {name: str(value) for name, value in flat.items() if value is not None}
    return pd.DataFrame({"value": rows}).rename_axis("setting")


def decoding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoding of the evaluation as generation settings of transformers.

    A length limit is left out: servers would cut every answer to it, whatever a request asks for.
    """
    evaluation = config["evaluation"]
    found: dict[str, Any] = {"do_sample": evaluation["strategy"] == "sample"}
    if found["do_sample"]:
        sampling = {"top_k": evaluation["top_k"] or 0, "top_p": evaluation["top_p"] or 1.0}
        found |= {"temperature": evaluation["temperature"], **sampling}
    if evaluation["no_repeat_ngram"] is not None:
        found["no_repeat_ngram_size"] = evaluation["no_repeat_ngram"]
    return found


def usage(
    config: Mapping[str, Any],
    template: TextTemplate | ChatTemplate,
    place: str = ".",
    question: str = "Name three colours.",
) -> str:
    """Write Python code that loads the model and answers one instruction, decoded as in the evaluation.

    `generate` reads decoding settings and end tokens from generation_config.json.
    """
    room = config["data"]["max_tokens"] - config["data"]["max_prompt_tokens"]
    limit = config["evaluation"].get("max_response_tokens") or room
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    load = (
        f"tokenizer, model = AutoTokenizer.from_pretrained({place!r}), AutoModelForCausalLM.from_pretrained({place!r})"
    )
    if isinstance(template, ChatTemplate):
        lines += [
            f"messages = {list(user_message(question, ''))!r}",
            load,
            'settings = dict(add_generation_prompt=True, return_dict=True, return_tensors="pt")',
            "inputs = tokenizer.apply_chat_template(messages, **settings)",
            f"answer = model.generate(**inputs, max_new_tokens={limit})",
        ]
    else:
        ((prompt, wanted),) = template.prompts([(question, "")])
        # A template that writes BOS itself would get a second one from the tokenizer.
        added = "" if template.tokenizer(prompt)["input_ids"] == wanted else "add_special_tokens=False, "
        lines += [
            f"prompt = {prompt!r}",
            load,
            f'answer = model.generate(**tokenizer(prompt, {added}return_tensors="pt"), max_new_tokens={limit})',
        ]
    return "\n".join([*lines, "print(tokenizer.decode(answer[0], skip_special_tokens=True))"])


def divergence_words(method: Method) -> str:
    """Return the loss per token in words, with the parameters that it reads."""
    words = DIVERGENCES[method.divergence]
    if method.divergence == "cross_entropy":
        return words
    if method.parameter is not None:
        words += f" ({method.parameter} {getattr(method, method.parameter):g})"
    if method.divergence == "preference":
        return words
    words += STORED[method.teacher]
    share = method.divergence_weight
    if method.weighting == "confidence":
        even = f"{1 - share:g} and {share:g} where both models are equally sure of the token"
        return f"cross-entropy and {words}, weighed {even}, the second more where the teacher is surer"
    return words if share == 1 else f"{1 - share:g} · cross-entropy + {share:g} · {words}"


def training_words(settings: Card) -> dict[str, Any]:
    """Describe the training of the model, for the template."""
    config = settings.config
    method = config["methods"][settings.role]
    plain_text = method["policy"] and method["policy"]["plain_text_coefficient"] > 0 and config["data"]["plain_text"]
    return {
        "student": origin(config["student"]["model"]),
        "teacher": origin(config["teacher"]["model"]),
        "trained_words": f"trained by the method {code(settings.role)} of the configuration {code(config['name'])}",
        "text_words": TEXT[method["text"]],
        "divergence_words": divergence_words(Method.model_validate(method)),
        "start_words": START[method["start"]],
        "data_words": origin(config["data"]["instructions"]),
        "plain_text_words": origin(config["data"]["plain_text"]) if plain_text else "none",
        "hyper_parameters": table(hyper_parameters(method)),
        "configuration": code(config["name"]),
    }


def _result_words(settings: Card, results: Mapping[str, Any]) -> dict[str, Any]:
    teacher = next(iter(results["tables"]))
    tables = {"this model": results["tables"][settings.role], "teacher": results["tables"][teacher]}
    own = {name: row["metric"] for name, row in tables["this model"]["benchmarks"].items()}
    several = measure_of(own.values()) == SEVERAL
    labels = [f"{name}, {METRIC_NAMES[own[name]]}" if several else name for name in results["benchmarks"]]
    rows = [*results["benchmarks"], MEAN]
    shown = ({"score": SEVERAL} if several else {}) | METRIC_NAMES
    columns = {
        f"{label}, {words}": [score({**table["benchmarks"], MEAN: table["mean"]}[row][metric]) for row in rows]
        for metric, words in shown.items()
        if metric in tables["this model"]["mean"]
        for label, table in tables.items()
    }
    measured = {*tables["this model"]["mean"], *own.values()}
    metrics = [metric for name, metric in METRICS_BY_NAME.items() if name in measured]
    return {
        "results": table(pd.DataFrame(columns, index=pd.Index([*labels, MEAN]))),
        "metrics": [f"{metric.title} ({metric.definition})" for metric in metrics],
        "seeds": ", ".join(str(seed) for seed in tables["this model"]["seeds"]),
        "decoding": ", ".join(f"{name} {value}" for name, value in decoding(settings.config).items()),
        "verdict": escaped(" ".join(results["verdict"])),
    }
