"""Numbers as text, in one form everywhere: scores with their spread, counts, shares."""

from collections.abc import Mapping
from typing import Any


def formatted(statistic: Mapping[str, Any]) -> str:
    """Format a table's entry as 'mean ± spread'."""
    return f"{statistic['mean']:.1f} ± {statistic['spread']:.1f}"


def human(count: int) -> str:
    """Format a count with three digits, a no-break space and a unit: 34.2 K, 124 M, 1.56 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= 0.9995 * size:  # 999,900 is 1 M, not 1e+03 K
            return f"{count / size:.3g}\u00a0{unit}"
    return str(count)


def percent(share: float) -> str:
    """Format a share with at least two digits and a no-break space: 86 %, 4.1 %, 0.35 %."""
    return f"{100 * share:.0f}\u00a0%" if share >= 0.0995 else f"{100 * share:.2g}\u00a0%"
