"""Configuration of a method: its text, its divergence, and how credit flows back."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from minillm.config.base import Strict, Temperature
from minillm.config.knowledge import SPARSE_DIVERGENCE, Form
from minillm.config.training import Training

Divergence = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "jensen_shannon",
    "total_variation",
    "adaptive_kl",
    "preference",
]
"""Losses per token. All but the first and the last are functions of `minillm.objectives.divergences`."""
DIVERGENCES: dict[Divergence, str] = {
    **{name: name.replace("_", " ").replace("kl", "KL divergence") for name in get_args(Divergence)},
    "cross_entropy": "cross-entropy",
    "jensen_shannon": "Jensen–Shannon divergence",
    "total_variation": "total variation",
    "adaptive_kl": "adaptive KL divergence",
    "preference": "preference loss",
}
"""The words for each on pages; only those that its name does not give are written here."""


class Collapse(Strict):
    """Collapse of a training on rollouts: any threshold is passed in each of `patience` rounds in a row.

    method.md §3 defines the figures. A threshold of null is not watched. The defaults are ours, far from what a student
    that still writes text reaches.
    """

    on_collapse: Literal["flag", "stop"] = "flag"
    """Go on and say so (flag), or end the training and keep the best weights validated before it collapsed (stop). The
    default is a flag, because a sound run may pass a threshold: answers of one token have next to no entropy, and
    rollouts may be cut on purpose. It costs no more than time, as the best validated weights are kept either way."""
    patience: PositiveInt = 3
    """Rounds in a row."""
    least_student_entropy: float | None = Field(default=0.01, gt=0.0)
    """Least mean entropy of the student's next token, nats."""
    least_finished: float | None = Field(default=0.02, gt=0.0, le=1.0)
    """Least share of responses that end before the length limit."""
    least_length_ratio: float | None = Field(default=0.02, gt=0.0)
    """Least length of the responses, as a multiple of the references' length."""
    most_repeated_4_grams: float | None = Field(default=0.9, ge=0.0, lt=1.0)
    """Largest share of 4-grams that have occurred before in the same response."""
    most_sampling_log_ratio: float | None = Field(default=5.0, gt=0.0)
    """Largest difference between a token's log-probability in sampling and in scoring, nats."""

    @property
    def thresholds(self) -> dict[str, float]:
        """Thresholds that are watched, by the names of their fields."""
        return self.model_dump(exclude={"on_collapse", "patience"}, exclude_none=True)


READ_WITH = {
    "weight_single_step": "teacher_mix",  # without mixing, every w is 1
    "clip_importance": "teacher_mix",
    "plain_text_kd": "plain_text_coefficient",
    "replay": "student_share",
}
"""Fields of a policy that are read only where another one, a share or weight, is above 0."""


class Policy(Strict):
    """The policy gradient of MiniLLM (method.md §2–4); the defaults are the paper's."""

    teacher_mix: float = Field(default=0.2, ge=0.0, lt=1.0)
    """α: share of the teacher in the distribution that responses are sampled from (paper: 0.2)."""
    rollouts: PositiveInt = 256
    """Responses sampled before each round of inner epochs (reference scripts: 256); null for one batch."""
    student_share: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["adaptive"] = 1.0
    """Probability that a round's responses are the student's, and not the data's own (GKD's λ, arXiv 2306.13649;
    MiniLLM: 1). `adaptive` begins with 0 and rises as the validation loss does (DistiLLM, arXiv 2402.03898)."""
    replay: PositiveInt | None = None
    """Rollouts that are kept, newest last. Of the student's rounds, a share that grows from 0 to 1 over the training
    takes kept ones instead of sampling, once there are so many (DistiLLM: 1000); without it, all are sampled."""
    inner_epochs: PositiveInt = 4
    """Passes over each round of rollouts (reference scripts: 4)."""
    temperature: Temperature = 1.0
    """Sampling temperature of both models in rollouts (reference scripts: 1)."""
    clip_range: PositiveFloat = 0.2
    """ε of the PPO clip (reference scripts: 0.2)."""
    single_step: bool = True
    """Add the exact single-step term; false is the ablation of the paper's Table 4."""
    credit: Literal["future", "inclusive", "token", "none"] = "future"
    """Rewards credited to token t: later ones (future, paper), later ones and its own (inclusive, reference code), its
    own only (token, sampled-token on-policy distillation), or none (single-step term only: GKD with reverse KL)."""
    length_normalization: bool = True
    """Divide the return by the number of tokens it sums over; false is the ablation of the paper's Table 4."""
    discount: float = Field(default=1.0, gt=0.0, le=1.0)
    """γ of the return (paper: none; reference code: 0.95)."""
    weight_single_step: bool = True
    """Weight the single-step term by w_t (paper) or not (reference code)."""
    clip_importance: bool = False
    """Clip ρ·w instead of ρ (reference code)."""
    whiten_advantages: bool = False
    """Normalise advantages over the tokens of a round of rollouts (reference code)."""
    reward_scale: PositiveFloat = 1.0
    """Divisor of rewards (reference code: 0.5)."""
    reward_clip: PositiveFloat | None = None
    """Limit c of scaled rewards, which are clipped to ±c (reference code: 100)."""
    plain_text_coefficient: float = Field(default=1.0, ge=0.0)
    """Weight of L_PT (paper: 1)."""
    plain_text_batch_size: PositiveInt | None = None
    """Plain-text blocks per optimizer step over all processes; without it, `batch_size` (reference scripts)."""
    plain_text_kd: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of word-level KD inside L_PT (paper: 0; reference code: 0.5)."""
    collapse: Collapse = Collapse()
    """Thresholds from which on training counts as collapsed, and what is done then."""

    @property
    def most_sampled(self) -> float:
        """Largest share of the rounds that is sampled."""
        return 1.0 if self.student_share == "adaptive" else self.student_share

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.credit == "none" and not self.single_step:
            raise ValueError("credit: none with single_step: false leaves no distillation loss; enable one")
        return self

    @model_validator(mode="after")
    def _every_field_is_read(self) -> Self:
        """Refuse settings that the others switch off, and text that no longer has the law of p̃ where that matters."""
        if self.credit == "none" and (
            unread := self._changed(
                "clip_range", "clip_importance", "length_normalization", "discount", "whiten_advantages",
                "reward_scale", "reward_clip",
            )
        ):  # fmt: skip
            raise ValueError(f"credit: none has no rewards and does not use {' and '.join(unread)}; leave it out")
        if self.credit == "token" and (unread := self._changed("length_normalization", "discount")):
            raise ValueError(f"credit: token sums nothing and does not use {' and '.join(unread)}; leave it out")
        if not self.single_step and not self.weight_single_step:
            raise ValueError("single_step: false has no term to weight; leave weight_single_step out")
        for name, share in READ_WITH.items():
            if not getattr(self, share) and self._changed(name):
                raise ValueError(f"{share}: 0 does not use {name}; leave it out")
        others = [name for name in ("student_share", "replay") if self._changed(name)]
        if others and (self.credit != "none" or self.teacher_mix):
            raise ValueError(
                f"{' and '.join(others)} takes responses that the student of the round has not sampled, for which "
                "credit and importance weights are not derived; set credit: none and teacher_mix: 0"
            )
        if self.replay is not None and self.replay < self.rollouts:
            raise ValueError(f"replay {self.replay} cannot hold the rollouts of one round ({self.rollouts}); raise it")
        return self


class Method(Strict):
    """One row of the table of methods: the source of the text, the divergence, and how credit flows back."""

    text: Literal["dataset", "teacher", "rollouts", "pairs"]
    """Responses to train on: the data set's, the teacher's (generated once), rollouts sampled during training, or pairs
    of one of the teacher's and one of the student's (each generated once)."""
    divergence: Divergence
    """Per-token loss over the vocabulary; all but cross_entropy compare with the teacher. `preference` is the logistic
    loss of pairs (DPKD, arXiv 2406.19774)."""
    divergence_weight: float = Field(default=1.0, gt=0.0, le=1.0)
    """k of (1−k)·cross-entropy + k·divergence on fixed text (paper's KD: 0.5)."""
    weighting: Literal["constant", "confidence"] = "constant"
    """k is the same at every token, or grows where the teacher is surer of the token than the student (SLIM, method.md
    §5), and is `divergence_weight` where both are equally sure."""
    skew: float = Field(default=0.1, gt=0.0, lt=1.0)
    """λ of the skewed divergences (DistiLLM, arXiv 2402.03898: 0.1)."""
    beta: float = Field(default=0.5, gt=0.0, lt=1.0)
    """β of jensen_shannon (GKD, arXiv 2306.13649), or scale of the log-ratios of preference (DPKD)."""
    head: float = Field(default=0.5, gt=0.0, lt=1.0)
    """μ of adaptive_kl: probability of the teacher's likeliest tokens that are its head (arXiv 2404.02657: 0.5)."""
    teacher: Literal["live", "top", "sampled", "hidden"] = "live"
    """The teacher runs in training (live), or ran once before it and left this form of its knowledge."""
    start: Literal["pretrained", "initial"] = "pretrained"
    """Weights that training starts from: the student as given, or fine-tuned on D (method.md §3, step 2)."""
    policy: Policy | None = None
    """Settings of rollouts and their credit; only for `text: rollouts`."""
    training: Training

    @property
    def sequences(self) -> int:
        """Sequences that the student is trained on in an optimizer step."""
        return self.training.batch_size * (2 if self.text == "pairs" else 1)

    @property
    def parameter(self) -> Literal["skew", "beta", "head"] | None:
        """Field that the divergence reads; None if it reads none."""
        if self.divergence.startswith("skewed"):
            return "skew"
        return {"jensen_shannon": "beta", "preference": "beta", "adaptive_kl": "head"}.get(self.divergence)  # type: ignore[return-value]

    @property
    def parameters(self) -> dict[str, float]:
        """Value of that field, by its name."""
        return {} if self.parameter is None else {self.parameter: getattr(self, self.parameter)}

    @property
    def stored(self) -> Form | None:
        """Form of the teacher's stored knowledge that training reads; None if it reads none."""
        return None if self.teacher == "live" else self.teacher

    @property
    def needs_log_probs(self) -> bool:
        """True if training reads what the teacher thinks of tokens, and not only its text."""
        return self.divergence != "cross_entropy"

    @property
    def runs_teacher(self) -> bool:
        """True if the teacher itself runs in training."""
        return self.needs_log_probs and self.stored is None

    @model_validator(mode="after")
    def _can_be_had_from_a_store(self) -> Self:
        if self.stored is not None and self.text not in ("dataset", "teacher"):
            raise ValueError(
                f"teacher: {self.stored} is what the teacher said of one text before training, which text: {self.text} "
                "does not train on; set teacher: live, or text: dataset or teacher"
            )
        if self.stored in ("top", "sampled") and self.divergence not in ("cross_entropy", SPARSE_DIVERGENCE):
            raise ValueError(
                f"divergence {self.divergence} needs the teacher's whole distribution, and teacher: {self.stored} has "
                f"some of its entries; set teacher: hidden or live, or divergence: {SPARSE_DIVERGENCE}"
            )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        mixed = self.divergence not in ("cross_entropy", "preference")
        readers = {
            "divergence_weight": mixed,
            "weighting": mixed,
            "teacher": self.divergence != "cross_entropy",
            **{name: self.parameter == name for name in ("skew", "beta", "head")},
        }
        if unread := self._changed(*(name for name, read in readers.items() if not read)):
            raise ValueError(f"divergence {self.divergence} does not use {' and '.join(unread)}; leave it out")
        if self.weighting == "confidence" and (self.policy is not None or self.divergence_weight == 1.0):
            raise ValueError(
                "weighting: confidence moves weight between cross-entropy and divergence, token by token; it is for "
                "text: dataset or teacher with divergence_weight < 1, e.g. 0.5"
            )
        if (self.text == "rollouts") != (self.policy is not None):
            raise ValueError("`policy` goes with `text: rollouts`, and `text: rollouts` needs `policy`")
        if (self.text == "pairs") != (self.divergence == "preference"):
            raise ValueError("`text: pairs` and `divergence: preference` go with each other alone; set both or none")
        if self.policy is not None:
            if self.divergence == "cross_entropy":
                raise ValueError("rollouts have no reference text: use a divergence")
            if self.training.lora is not None and self.training.lora.dropout:
                raise ValueError(
                    f"training.lora.dropout is {self.training.lora.dropout}, but on rollouts the policy ratio must be "
                    "one before the first update, so nothing is dropped out; set it to 0"
                )
            if self.divergence_weight != 1.0:
                raise ValueError("divergence_weight mixes in cross-entropy, which rollouts have no text for")
            if self.policy.credit != "none" and self.divergence != "reverse_kl":
                raise ValueError("credit for what follows is derived for reverse_kl; set policy.credit: none")
            if self.policy.rollouts % self.training.batch_size:
                raise ValueError(
                    f"rollouts {self.policy.rollouts} must be a multiple of batch_size {self.training.batch_size}"
                )
            if self.training.epochs is not None:
                raise ValueError("a method with rollouts is measured in `steps`, not `epochs`")
        return self
