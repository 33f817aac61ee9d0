"""Stage `layers`: makes a student of its teacher's embeddings, head and some of its layers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from minillm.errors import StageError
from minillm.models.causal_lm import load_model, model_directory
from minillm.models.shared_tokenizer import named_end_tokens
from minillm.preparation.model_checks import build_skeleton, explained, require_loadable
from minillm.preparation.small_likeness import SPREADS, keep_layers, layer_lists, likeness, with_short_windows
from minillm.stages.base import Job, Summary
from minillm.stages.reading import TakeLayers
from minillm.words import short_count

NAME = "student.model (layers of the teacher)"
"""Name of the student in errors."""
TRIED = 48
"""Tokens of the row that a small model is tried with."""
WINDOW = 8
"""Attention window of a small model, so that layers with and without one differ on so short a row."""
TOLERANCE = 1e-4
"""Largest difference of logits, which are of the order of 1; float32 rounding stays far below."""


def run(job: Job[TakeLayers]) -> Summary:
    """Write the student's directory, in the precision that the teacher is stored in.

    Raises:
        StageError: The teacher has too few layers, or its layers cannot be taken one by one.
    """
    teacher = model_directory(job.inputs["teacher"])
    require_loadable("teacher.model", teacher)
    config, _ = build_skeleton("teacher.model", teacher, entries=0)
    kept = chosen_layers(job.settings.layers, config.get_text_config().num_hidden_layers)
    with explained(NAME, f"take layers of a {config.model_type} out"):
        _try(config, kept)
    student = take_layers(load_model(teacher, "auto"), kept)
    student.generation_config = GenerationConfig(eos_token_id=named_end_tokens(teacher))
    student.save_pretrained(job.output / "model")
    weights = student.num_parameters()
    print(f"layers {', '.join(map(str, kept))} of the teacher: {short_count(weights)} weights", flush=True)
    return {"parameters": float(weights), "layers": " ".join(map(str, kept))}


def chosen_layers(layers: int | Sequence[int], count: int) -> list[int]:
    """Return the numbers of the layers to keep, counted from 0.

    Args:
        layers: Number of layers, evenly spaced with the first and the last; or the numbers themselves.
        count: Layers that there are.

    Raises:
        StageError: There are not that many, or not fewer than all.
    """
    spaced = isinstance(layers, int)
    kept = [round(n * (count - 1) / (layers - 1)) for n in range(layers)] if isinstance(layers, int) else [*layers]
    if len(kept) >= count or max(kept) >= count:
        raise StageError(
            f"student.model.layers is {layers if spaced else kept}, but the teacher has {count} layers, numbered from "
            f"0 to {count - 1}; take fewer than {count}"
        )
    return kept


def take_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Cut a model down to some of its layers, in place.

    Args:
        model: Model whose layers stand in one list.
        kept: Numbers of the layers to keep, in their order.

    Raises:
        StageError: Its layers do not stand in one list.
    """
    name, stack = layer_list(model)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(stack[number] for number in kept))
    keep_layers(model.config.get_text_config(), kept)
    return model


def layer_list(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return the list of a model's layers and its name.

    Raises:
        StageError: No list, or more than one, has as many modules as the configuration has layers.
    """
    lists = layer_lists(model)  # those inside a layer, of experts for instance, are no layers
    found = [(name, stack) for name, stack in lists.items() if not any(name.startswith(f"{of}.") for of in lists)]
    if len(found) != 1:
        count = model.config.get_text_config().num_hidden_layers
        raise StageError(
            f"a {model.config.model_type} has {len(found)} lists of {count} layers, not one, so single layers cannot "
            "be taken; give student.model a `path`, `hub` or `architecture`"
        )
    return found[0]


@torch.no_grad()
def _try(config: PretrainedConfig, kept: Sequence[int]) -> None:
    """Check on small models of the same kind that a cut one computes what the whole one does without the others.

    Raises:
        StageError: It does not.
    """
    text = config.get_text_config()
    small = with_short_windows(config, WINDOW)
    row = torch.arange(1, TRIED + 1)[None]  # (1, T)
    for spread in SPREADS:
        whole = likeness(small, text.num_hidden_layers, seed=1, spread=spread)
        skipped = [layer for number, layer in enumerate(layer_list(whole)[1]) if number not in kept]
        hooks = [layer.register_forward_hook(_pass_through, with_kwargs=True) for layer in skipped]
        want = whole(input_ids=row, use_cache=False).logits  # (1, T, V)
        for hook in hooks:
            hook.remove()
        cut = take_layers(whole, kept)
        loaded = AutoModelForCausalLM.from_config(cut.config, dtype=torch.float32).eval()  # as its files will be
        loaded.set_output_embeddings(cut.get_output_embeddings())  # a likeness ties none
        loaded.load_state_dict(cut.state_dict())
        difference = float((loaded(input_ids=row, use_cache=False).logits - want).abs().max())
        if not difference <= TOLERANCE:
            raise StageError(
                f"a {config.model_type} cut to layers {', '.join(map(str, kept))} differs by {difference:.2g} in its "
                "logits from the whole one with the others passed over, tried on a small model of its kind; give "
                "student.model a `path`, `hub` or `architecture`"
            )


def _pass_through(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Replace a layer's output by its input, the hidden states."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
