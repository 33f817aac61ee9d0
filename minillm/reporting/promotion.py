"""Decide whether a student replaces the champion: both answered the same prompts, and the gain is significant."""

from dataclasses import dataclass

from minillm.config import Promotion, Sampling
from minillm.evaluation.differences import Difference
from minillm.evaluation.uncertainty import paired_estimate
from minillm.reporting.comparing.runs import MethodOfRun, differences_by_prompt
from minillm.reporting.comparison import MEAN, METRIC_NAMES
from minillm.words import ABSENT, counted, p_statement

SAMPLING = tuple(Sampling.model_fields)
"""Fields of `evaluation` that change the distribution of answers; other seeds only draw again."""
THIS, OTHER = "this run", "the champion's run"
OWN_METRIC = "metric"
"""Field of a benchmark that only says what its table shows; here the rule's metric is compared."""


@dataclass(frozen=True)
class Decision:
    """The outcome and its reason."""

    promoted: bool
    reason: str


def decide(candidate: MethodOfRun, champion: MethodOfRun, rule: Promotion, called: str = "the champion") -> Decision:
    """Compare a candidate with the present champion by a sign-flip test over prompts.

    Args:
        candidate: With scores in the rule's metric.
        champion: With scores in the same metric.
        rule: Conditions of a promotion.
        called: Name of the champion in the reason.
    """
    if reasons := other_versions(candidate, champion):
        return Decision(
            False,
            f"it was not measured in the same way as {called}: {'; '.join(reasons)}; measure it "
            "alike, or begin anew by removing the alias `champion` in MLflow",
        )
    groups = [differences_by_prompt(candidate, champion, name).to_numpy(dtype=float) for name in champion.scores]
    found = paired_estimate(groups)
    gain = Difference(candidate.name, champion.name, MEAN, found.value, found.low, found.high, found.p_value)
    prompts = f"{counted(sum(map(len, groups)), 'prompt')} of {counted(len(groups), 'benchmark')}"
    assert found.p_value is not None, "one training seed each"
    words = f"{METRIC_NAMES[rule.metric]} {gain} against {called}, {p_statement(found.p_value)}, {prompts}"
    if found.value > 0 and found.p_value < rule.significance:
        return Decision(True, words)
    return Decision(False, f"{words}; it takes a gain with p < {rule.significance:g}")


def other_versions(candidate: MethodOfRun, champion: MethodOfRun) -> list[str]:
    """List how the two were measured differently: by benchmark, and in the sampling of answers."""
    unscored = [whose for row, whose in ((candidate, THIS), (champion, OTHER)) if not row.scores]
    if unscored:
        return [f"MLflow has no scores per prompt of {whose}" for whose in unscored]
    names = dict.fromkeys([*champion.scores, *candidate.scores])
    found = {name: _other_version(candidate, champion, name) for name in names}
    sampling = [
        f"evaluation.{field} is {ours} instead of {theirs}"
        for field in SAMPLING
        for ours, theirs in [[row.run.params.get(f"evaluation.{field}", ABSENT) for row in (candidate, champion)]]
        if ours != theirs
    ]
    return [*(f"{name}: {reason}" for name, reason in found.items() if reason), *sampling]


def _other_version(candidate: MethodOfRun, champion: MethodOfRun, benchmark: str) -> str | None:
    for row, whose in ((candidate, THIS), (champion, OTHER)):
        if benchmark not in row.scores:
            return f"not measured in {whose}"
    (ours, how), (theirs, how_then) = (row.run.benchmark_version(benchmark) for row in (candidate, champion))
    if ours is None or ours != theirs:
        return f"its data differ (digest {(ours or ABSENT)[:12]} instead of {(theirs or ABSENT)[:12]})"
    for field in sorted({*how, *how_then} - {OWN_METRIC}):
        if how.get(field) != how_then.get(field):
            return f"{field} is {how.get(field, ABSENT)} instead of {how_then.get(field, ABSENT)}"
    counted = [row.scores[benchmark].index for row in (candidate, champion)]
    if not counted[0].equals(counted[1]):
        return f"different prompts count ({len(counted[0])} instead of {len(counted[1])}; see min_reference_tokens)"
    return None
