"""The figures of method.md, computed by the code that trains: `python -m docs.figures`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import optimize, stats
from torch import Tensor

from minillm.config import Policy
from minillm.objectives.divergences import reverse_kl
from minillm.objectives.experience import Experience
from minillm.objectives.terms import Teacher, TokenTerms
from minillm.objectives.vocabulary import head_loss
from minillm.training.rounds import policy_experience, policy_loss
from tests.minillm.tiny import PrefixModel, every_response

FOLDER = Path(__file__).parent / "figures"
LIMITS = (1, 2, 3, 4, 5, 6)
ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def two_modes() -> None:
    """One Gaussian fitted to two modes by either KL: forward covers, reverse chooses."""
    x = np.linspace(-7, 9, 321)
    teacher = 0.6 * stats.norm.pdf(x, -2, 0.8) + 0.4 * stats.norm.pdf(x, 3, 1.0)

    def kl(left: np.ndarray, right: np.ndarray) -> float:
        return float(np.trapezoid(left * (np.log(left + 1e-300) - np.log(right + 1e-300)), x))

    def fitted(forward: bool) -> np.ndarray:
        def loss(parameters: np.ndarray) -> float:
            student = stats.norm.pdf(x, parameters[0], np.exp(parameters[1]))
            return kl(teacher, student) if forward else kl(student, teacher)

        best = min(
            (optimize.minimize(loss, (mean, 0.0), method="Nelder-Mead") for mean in (-2.0, 3.0)), key=lambda r: r.fun
        )
        return stats.norm.pdf(x, best.x[0], np.exp(best.x[1]))

    figure, axes = plt.subplots(figsize=(6, 3))
    axes.fill_between(x, teacher, color="0.85", label="teacher p")
    axes.plot(x, fitted(True), label="forward KL[p ‖ q]: covers both, likes what neither says")
    axes.plot(x, fitted(False), label="reverse KL[q ‖ p]: chooses one")
    axes.set(xlabel="x", ylabel="density", ylim=(0, 0.72))
    axes.legend(frameon=False, fontsize=8)
    save(figure, "two-modes")


class Enumeration:
    """All responses up to a length, with what the estimator makes of each."""

    def __init__(self, limit: int, policy: Policy) -> None:
        self.policy = policy
        self.student, self.teacher = PrefixModel(1), PrefixModel(2)
        self.tokens, self.mask = every_response(limit)
        of_student, of_teacher = (self.log_probs(model) for model in (self.student, self.teacher))
        responses = [row[: int(n)].tolist() for row, n in zip(self.tokens, self.mask.sum(dim=1), strict=True)]
        self.experience = policy_experience(of_student.detach(), of_teacher.detach(), responses, policy)
        alpha = policy.teacher_mix
        mixed = alpha * of_teacher.exp() + (1 - alpha) * of_student.exp()
        self.probability = torch.where(self.mask, mixed, torch.ones_like(mixed)).prod(dim=1).detach()

    def log_probs(self, model: PrefixModel) -> Tensor:
        """log-probability of each token (N, T), zero at padding."""
        logits = torch.log_softmax(model.logits(self.tokens), dim=-1)
        return logits.gather(-1, self.tokens[..., None]).squeeze(-1) * self.mask

    def exact_gradient(self) -> Tensor:
        """∇KL[q ‖ p] over whole responses, by autograd."""
        student, teacher = (self.log_probs(model).sum(dim=1) for model in (self.student, self.teacher))
        kl = (student.exp() * (student - teacher.detach())).sum()
        return flat(torch.autograd.grad(kl, list(self.student.parameters())))

    def gradient(self, row: int) -> Tensor:
        """The estimator's gradient from one response."""
        mask, tokens = self.mask[row : row + 1], self.tokens[row : row + 1]
        experience: Experience = self.experience.of([row], torch.device("cpu"))

        def per_token(terms: TokenTerms, part: slice) -> Tensor:
            loss = policy_loss(terms, experience.part(part), self.policy)
            return loss.single_step + loss.long_term

        teacher = Teacher(self.teacher.hidden(tokens)[mask].detach(), self.teacher.output_head())
        hidden, head = self.student.hidden(tokens)[mask], self.student.output_head()
        loss, _ = head_loss(hidden, head, tokens[mask], per_token, reverse_kl, teacher)
        return flat(torch.autograd.grad(loss, list(self.student.parameters()), materialize_grads=True))

    def mean_and_variance(self) -> tuple[Tensor, float]:
        """Of the gradient of one response drawn from p̃, exactly."""
        gradients = torch.stack([self.gradient(row) for row in range(len(self.tokens))])
        mean = (self.probability[:, None] * gradients).sum(dim=0)
        return mean, float((self.probability * (gradients - mean).square().sum(dim=1)).sum())


def variance() -> None:
    """Variance of the gradient of one response, with and without the single-step decomposition; no mixing."""
    plain = {"teacher_mix": 0.0, "clip_range": 1e9, "length_normalization": False}
    figure, axes = plt.subplots(figsize=(6, 3))
    for label, switches in (
        ("with the single-step term (paper §2.2)", {}),
        ("without: reward to go of the sampled tokens", {"single_step": False, "credit": "inclusive"}),
    ):
        values = [Enumeration(n, Policy.model_validate(plain | switches)).mean_and_variance()[1] for n in LIMITS]
        print(label, [round(value, 3) for value in values])
        axes.plot(LIMITS, values, marker="o", label=label)
    axes.set(xlabel="length limit, tokens", ylabel="variance of the gradient")
    axes.legend(frameon=False, fontsize=8)
    save(figure, "variance")


def bias() -> None:
    """Bias of the gradient with one weight per token instead of their product, against the share of the teacher."""
    values = []
    for alpha in ALPHAS:
        policy = Policy(teacher_mix=alpha, clip_range=1e9, length_normalization=False)
        enumeration = Enumeration(3, policy)
        exact = enumeration.exact_gradient()
        values.append(float((enumeration.mean_and_variance()[0] - exact).norm() / exact.norm()))
    print("bias", dict(zip(ALPHAS, [round(value, 3) for value in values], strict=True)))
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(ALPHAS, values, marker="o")
    axes.axvline(0.2, color="0.8", zorder=0)
    axes.set(xlabel="α, share of the teacher in sampling", ylabel="relative bias of the gradient")
    save(figure, "bias")


def flat(gradients: tuple[Tensor, ...]) -> Tensor:
    """One vector."""
    return torch.cat([g.flatten() for g in gradients])


def save(figure: Figure, name: str) -> None:
    """Write an SVG whose bytes depend on the numbers alone."""
    FOLDER.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "minillm"
    two_modes()
    variance()
    bias()
