"""Small random models of a given architecture: a few narrow layers of every kind, and all else as in the original."""

import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minillm.errors import StageError
from minillm.streams import Purpose, stream, torch_seed

ROWS = 300
"""Most embedding rows of a likeness."""
LARGEST = 100_000_000
"""Most weights of a likeness."""
HEADS = 4
"""Attention heads of a likeness; CodeGen deals them out to four groups."""
NARROW = 32
"""Greatest width of a feed-forward layer."""
SPREADS = (0.5, 1.5)
"""Standard deviations of a matrix's output for an input of standard deviation 1. With the small one attention looks at
many tokens, which reveals a wrong mask; with the large one at few, which reveals a wrong position."""
LOGITS = 4.0
"""Standard deviation of the logits: a soft cap at 30 moves them by tenths, and no token is certain."""


def likeness(config: PretrainedConfig, layers: int, seed: int, spread: float) -> PreTrainedModel:
    """Make a small model that computes in the same way, in float32 on the CPU, in evaluation mode.

    Widths of heads, patterns of layers, windows, rotary parameters, caps and multipliers stay as they are; the
    numbers of layers and heads, the widths between them and the vocabulary shrink.

    Args:
        config: Configuration of the model.
        layers: Number of first layers to keep (`layers_of_every_kind`).
        seed: Seed of the weights.
        spread: Spread of the outputs of matrices (see `SPREADS`).

    Raises:
        StageError: The model cannot be made small.
    """
    small = shrunken(config, layers)
    with torch.device("meta"):
        weights = AutoModelForCausalLM.from_config(small).num_parameters()
    if weights > LARGEST:
        raise StageError(f"it would have {weights:,} weights, of at most {LARGEST:,}")
    with torch.random.fork_rng():
        torch.manual_seed(torch_seed(stream(Purpose.TRIED_WEIGHTS, seed)))
        model = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
        _randomise(model, spread)
    return model


def shrunken(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """Return the configuration of a likeness."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for part in _parts(small):
        _narrow(part)
        if part is not text and getattr(part, "num_hidden_layers", None):
            part.num_hidden_layers = 1
    keep_layers(text, range(layers))
    return small


def with_short_windows(config: PretrainedConfig, tokens: int) -> PretrainedConfig:
    """Return a configuration whose attention windows and chunks have at most so many tokens, so that they show."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    for name, value in vars(text).items():
        if re.search(r"window|attention_chunk", name) and "layers" not in name:
            setattr(text, name, _at_most(value, tokens))
    return small


def layers_of_every_kind(skeleton: PreTrainedModel) -> int:
    """Return how many first layers include every kind. Layers of a kind have equal modules, shapes and settings.

    Args:
        skeleton: The model on the meta device.
    """
    count = skeleton.config.get_text_config().num_hidden_layers
    stacks = layer_lists(skeleton)
    if not stacks:
        return count
    kinds = [_settings(layer) for layer in next(iter(stacks.values()))]
    names = set().union(*kinds)
    numbers = {name for name in names if _counts({i: kind[name] for i, kind in enumerate(kinds) if name in kind})}
    seen: dict[Any, int] = {}
    for number, kind in enumerate(kinds):
        seen.setdefault(tuple(sorted((n, str(v)) for n, v in kind.items() if n not in numbers)), number)
    return min(count, max(2, 1 + max(seen.values())))


def layer_lists(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return the lists with as many modules as the model has layers, by name, outer ones before those inside them."""
    count = model.config.get_text_config().num_hidden_layers
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}


def _counts(values: dict[int, Any]) -> bool:
    """Return True if a setting, by layer, counts the layers, and so says nothing about their kind."""
    whole = all(type(value) is int for value in values.values())
    return whole and len(values) > 1 and len({value - layer for layer, value in values.items()}) == 1


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Classes, shapes and plain attributes of a layer's modules."""
    found: dict[str, Any] = {}
    for name, module in layer.named_modules():
        found[f"{name}:class"] = type(module).__name__
        found |= {f"{name}.{n}": tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
        plain = (bool, int, float, str, type(None))
        found |= {f"{name}.{n}": v for n, v in vars(module).items() if isinstance(v, plain)}
    return found


def _parts(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    """Yield a configuration and those nested in it."""
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _parts(value)


def _narrow(config: PretrainedConfig) -> None:
    """Reduce a configuration to few heads of the same width, narrow feed-forward layers and few embedding rows."""
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if isinstance(hidden, int) and isinstance(heads, int) and heads > HEADS:
        wide = getattr(config, "head_dim", None)
        bound = wide is None or wide * heads == hidden  # the heads' widths add up to the model's
        width = hidden // heads * HEADS if bound else 2 * NARROW
        shared = getattr(config, "num_key_value_heads", None)
        # Key-value heads: as many as heads stay as many as heads; any smaller number becomes one.
        counts = {shared: 1, heads: HEADS}
        for name, value in list(vars(config).items()):
            if type(value) is not int:
                continue
            if value in counts and re.fullmatch(r"\w*heads?(_kv)?", name):
                setattr(config, name, counts[value])
            elif value == hidden and re.search(r"hidden|emb|width|model|dim", name):
                setattr(config, name, width)
    for name, value in list(vars(config).items()):
        if re.search(r"intermediate|ffn_dim|ffn_hidden|n_inner|d_ff$", name):
            setattr(config, name, _at_most(value, NARROW))
        elif "vocab_size" in name:
            setattr(config, name, _at_most(value, ROWS))
        elif name.endswith("_token_id"):
            setattr(config, name, _at_most(value, ROWS - 1))


def _at_most(value: Any, limit: int) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_at_most(v, limit) for v in value)
    return min(value, limit) if type(value) is int else value


def keep_layers(text: PretrainedConfig, kept: Sequence[int]) -> None:
    """Keep some layers of a configuration, in place, also in lists that have an entry for each layer."""
    count = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == count:
            setattr(text, name, type(value)(value[number] for number in kept))
    text.num_hidden_layers = len(kept)


@torch.no_grad()
def _randomise(model: PreTrainedModel, spread: float) -> None:
    """Draw weights that make every part of the computation visible in the logits."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        else:
            parameter.normal_(std=spread / max(parameter.shape[-2:]) ** 0.5)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=module.weight.shape[1] ** -0.5)  # small beside the layers' contributions
    head = model.get_output_embeddings()
    if head is not None:
        # Untie the head: with the embedding's weights, logits would mostly show the token itself, not its context.
        head.weight = nn.Parameter(torch.randn_like(head.weight) * LOGITS / head.weight.shape[1] ** 0.5)
