"""Write figures in the same way everywhere: scores, intervals, p-values, signs, shares, counts and durations."""

from collections.abc import Mapping, Sequence
from typing import Any

from humanize import precisedelta

ABSENT = "–"
"""Placeholder for a missing figure."""
MINUS = "−"
SMALLEST_P = 0.001
"""Smaller p-values are written as below this one."""


def number(value: float, digits: int = 1, *, signed: bool = False) -> str:
    """A number with a fixed number of decimals and a true minus sign: 1,234.5, −0.5, or +0.5 if signed."""
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", MINUS)


def interval(ends: Sequence[float | None], digits: int = 1, *, signed: bool = False) -> str:
    """An interval in brackets, [48.1, 52.3]; nothing if it has no ends."""
    known = [number(end, digits, signed=signed) for end in ends if end is not None]
    return f"[{', '.join(known)}]" if known and len(known) == len(ends) else ""


def with_interval(value: float, ends: Sequence[float | None], digits: int = 1, *, signed: bool = False) -> str:
    """A figure and its interval, 50.2 [48.1, 52.3]; the figure alone if the interval has no ends."""
    return f"{number(value, digits, signed=signed)} {interval(ends, digits, signed=signed)}".rstrip()


def span(low: float, high: float, digits: int = 0) -> str:
    """A range, 555–679; a single number if its ends are equal."""
    ends = dict.fromkeys((number(low, digits), number(high, digits)))
    return "–".join(ends)


def with_spread(value: float, spread: float | None, digits: int = 1) -> str:
    """A figure and its spread or standard error, 50.2 ± 1.3; the figure alone if there is none."""
    return number(value, digits) + ("" if spread is None else f" ± {number(spread, digits)}")


def score(statistic: Mapping[str, Any]) -> str:
    """An entry of a score table as 'mean ± spread'."""
    return with_spread(statistic["mean"], statistic["spread"])


def p_value(value: float | None) -> str:
    """A p-value for a table: 0.012, < 0.001, or unknown."""
    if value is None:
        return "unknown"
    return f"< {SMALLEST_P}" if value < SMALLEST_P else f"{value:.3f}"


def p_statement(value: float | None) -> str:
    """A p-value for a sentence: p = 0.012, p < 0.001, or p unknown."""
    return f"p {'= ' if value is not None and value >= SMALLEST_P else ''}{p_value(value)}"


def percent(share: float) -> str:
    """A share with at least two digits and a no-break space: 86 %, 4.1 %, 0.35 %."""
    return f"{100 * share:.0f}\u00a0%" if share >= 0.0995 else f"{100 * share:.2g}\u00a0%"


def percent_more(ratio: float) -> str:
    """A ratio as the percentage by which it is above or below one: +12 %, −8 %."""
    return f"{number(100 * (ratio - 1), 0, signed=True)}\u00a0%"


def short_count(count: int) -> str:
    """A large count with three digits, a no-break space and a unit: 34.2 K, 124 M, 1.56 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= 0.9995 * size:  # 999,900 is 1 M, not 1e+03 K
            return f"{count / size:.3g}\u00a0{unit}"
    return str(count)


def counted(count: int, noun: str) -> str:
    """A count with its noun: 1 prompt, 1,200 prompts."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def few(things: Sequence[object], shown: int = 3) -> str:
    """The first of some things and the number of the others: a, b, c and 4 more."""
    more = f" and {len(things) - shown} more" if len(things) > shown else ""
    return ", ".join(map(str, things[:shown])) + more


def duration(seconds: float) -> str:
    """A length of time to the second, 4 minutes and 22 seconds, and to the minute beyond two hours."""
    return precisedelta(round(seconds), minimum_unit="minutes" if seconds > 7200 else "seconds", format="%d")


def progress_line(step: int, total: int, unit: str, left: float | None, figures: Mapping[str, float]) -> str:
    """A bar, a count, the seconds left if they are known, and figures: [████····] 50/100 steps, 8 s left  loss 2.1."""
    filled = round(20 * step / max(total, 1))
    remaining = "" if left is None else f", {left:.0f} s left"
    values = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
    return f"[{'█' * filled}{'·' * (20 - filled)}] {step}/{total} {unit}{remaining}  {values}"
