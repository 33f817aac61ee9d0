"""Why a trainer fails a case: where it is in its source, and how much it matters."""

_GKD = "`trl/experimental/gkd/gkd_trainer.py`, 1.16.0"
_DISTILLATION = "`trl/trainer/distillation_trainer.py`, 1.16.0"
_MINILLM = "`trl/experimental/minillm/minillm_trainer.py`, 1.14.2"
_POSITIONS = (
    "The models get an attention mask but no `position_ids`, and `GPT2Model` then counts the padding before a prompt. "
    "A shorter prompt so stands at other positions than alone, and than where `generate` put it."
)
_ROWS = (
    "The softmax goes over every row of the head, those that no token uses included. In a trained model they have "
    "little probability, so the error there is smaller than with the zero rows of this case."
)
_MASK = (
    "`mask` is made from `input_ids`, which hold no -100, and not from `labels`: it is all ones. Padding enters the "
    "single-step term and, at `gamma` above 0, the returns (issue 7024 of TRL)."
)
_SAMPLER = (
    "Each pass over the data is shuffled by a generator that starts from the seed in every process and knows no epoch. "
    "A run resumed in its second pass repeats the order of the first; one resumed in its first pass is exact."
)
EXPLANATIONS: dict[tuple[str, str], tuple[str, str]] = {
    ("padding_absolute", "trl_gkd_text"): (f"`GKDTrainer.compute_loss` ({_GKD})", _POSITIONS),
    ("padding_absolute", "trl_gkd_sampled"): (f"`GKDTrainer.compute_loss` ({_GKD})", _POSITIONS),
    ("padding_absolute", "trl_distillation"): (
        f"`DistillationTrainer._get_last_hidden_state` ({_DISTILLATION})",
        _POSITIONS,
    ),
    ("padding_absolute", "trl_minillm"): (f"`MiniLLMTrainer.compute_loss` ({_MINILLM})", _POSITIONS),
    ("padded_vocabulary", "trl_gkd_text"): (f"`GKDTrainer.generalized_jsd_loss` ({_GKD})", _ROWS),
    ("padded_vocabulary", "trl_gkd_sampled"): (f"`GKDTrainer.generalized_jsd_loss` ({_GKD})", _ROWS),
    ("padded_vocabulary", "trl_distillation"): (f"`_chunked_divergence_loss` ({_DISTILLATION})", _ROWS),
    ("padded_vocabulary", "trl_minillm"): (f"`MiniLLMTrainer.compute_loss` ({_MINILLM})", _ROWS),
    ("exact", "trl_gkd_sampled"): (
        f"`GKDTrainer.training_step` ({_GKD})",
        "The loss on samples is divided by the number of tokens of the data's responses, which `Trainer` counts before "
        "they are replaced. It is one factor for the whole step: Adam hardly notices it, clipping does.",
    ),
    ("micro_batches", "trl_minillm"): (
        f"`MiniLLMTrainer.compute_loss` ({_MINILLM})",
        "The single-step term is a mean over its micro-batch, and nothing divides it by their number, as "
        "`GRPOTrainer.__init__` switches that off. It counts `gradient_accumulation_steps` times.",
    ),
    ("padding_rotary", "trl_minillm"): (f"`MiniLLMTrainer.compute_loss` ({_MINILLM})", _MASK),
    ("padding_is_the_end", "trl_minillm"): (f"`MiniLLMTrainer.compute_loss` ({_MINILLM})", _MASK),
    ("equal_models", "trl_minillm"): (
        f"`MiniLLMTrainer.compute_loss` ({_MINILLM})",
        "The reverse-KL advantage is not detached from the student, so the policy loss also differentiates the reward. "
        "Over many samples the mean of what this adds is zero: noise, and no bias.",
    ),
    ("exact", "trl_minillm"): (
        f"`MiniLLMTrainer._compute_advantage` ({_MINILLM})",
        "A token's own reward is in the advantage and again in the single-step term, and at `gamma` 0 no later reward "
        "is credited. TRL's documentation writes the loss as this sum; it is not the gradient of KL[q ‖ p].",
    ),
    ("exact", "ours_minillm"): (
        "`importance_weight` and `credited_return` (`minillm/objectives/policy.py`)",
        "The paper weights each token by its own w_t instead of a product, and divides returns by their length. Both "
        "lower the variance and cost this bias (docs/method.md, section 2).",
    ),
    ("resume", "trl_distillation"): ("`RepeatSampler.__iter__` (`trl/trainer/utils.py`, 1.16.0)", _SAMPLER),
    ("resume", "trl_minillm"): ("`RepeatSampler.__iter__` (`trl/trainer/utils.py`, 1.14.2)", _SAMPLER),
}
"""Place in the source and reason of each failure, by case and trainer."""
