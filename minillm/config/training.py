"""Configuration of one training: the trainer, and adapters."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Strict

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
"""Share of a running mean that the next step keeps."""


class Lora(Strict):
    """Low-rank adapters that are trained instead of the weights (LoRA, arXiv 2106.09685)."""

    rank: PositiveInt = 8
    """r: rows of A and columns of B."""
    alpha: PositiveFloat = 16.0
    """α: B·A is scaled by α/r."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the inputs of A that is dropped out in training."""
    modules: tuple[str, ...] | None = None
    """Endings of the names of the matrices that get an adapter, e.g. q_proj; without it, all matrices of the blocks."""


class Training(Strict):
    """One run of the trainer. Batch sizes are global, so the number of processes never changes the experiment."""

    learning_rate: PositiveFloat
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warm-up: cosine down to zero, or constant."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps of linear warm-up."""
    weight_decay: float = Field(default=1e-2, ge=0.0)
    """AdamW's decoupled weight decay (reference scripts: 1e-2 for SFT, KD, SeqKD; 1e-6 for MiniLLM)."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's moment decays (reference scripts)."""
    gradient_clip: PositiveFloat = 1.0
    """Largest global gradient norm (reference scripts)."""
    batch_size: PositiveInt
    """Sequences per optimizer step over all processes."""
    epochs: PositiveInt | None = None
    """Passes over the training examples. Give exactly one of `epochs` and `steps`."""
    steps: PositiveInt | None = None
    """Optimizer steps. Give exactly one of `epochs` and `steps`."""
    evaluate_every: PositiveInt
    """Optimizer steps between validations; the last step is always validated."""
    select_by: Literal["validation_loss", "rouge_l", "rouge_l_characters"] = "rouge_l"
    """Criterion for the validated weights to keep: lowest loss (initial student), or highest Rouge-L (final models) of
    words or, for languages not written in a–z, of characters. Ties go to the lowest loss, then to the earliest."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights and matrix products in training; log-probabilities are float32 either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora: Lora | None = None
    """Adapters to train and then merge into the model; without it, all weights are trained."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self

    def optimizer_steps(self, examples: int) -> int:
        """Return the number of optimizer steps of the whole training on so many examples."""
        return self.steps or max(1, (self.epochs or 1) * examples // self.batch_size)
