"""Configuration of a study: variants or methods of one configuration, with several training seeds, compared."""

import itertools
import json
import re
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from minillm.config.base import Entries, LocalPath, Seed, Seeds, Strict, check_name, tell_apart
from minillm.config.experiment import Tracked
from minillm.nearest import suggestion

UNNAMEABLE = re.compile(r"[^\w.-]")

Value = bool | int | float | str | None


class StudyRun(Strict):
    """One distillation of a study."""

    variants: tuple[str, ...]
    """Variants that this run computes: one, or all if they are methods."""
    seed: Seed
    overrides: tuple[str, ...]
    """All overrides of the base; `minillm distill` with them is the same run."""

    @property
    def name(self) -> str:
        """Name of the run in Prefect and MLflow."""
        return f"{self.variants[0] if len(self.variants) == 1 else 'all methods'}, seed {self.seed}"


class Study(Tracked):
    """Variants of one configuration, or its methods, distilled with every training seed; `runtime` is for all runs."""

    base: LocalPath
    """Configuration of a distillation, relative to the working directory."""
    overrides: tuple[str, ...] = ()
    """Overrides `key.sub=value` of the base in every run; null leaves out an entry, such as a benchmark."""
    methods: tuple[str, ...] | None = Field(default=None, min_length=2)
    """Rows of the result table that are compared with each other: each is a variant, and one run trains them all. Give
    exactly one of `methods`, `variants` and `grid`."""
    method: str = "minillm"
    """Row of the result table that is compared where variants or a grid are; no other method is trained."""
    variants: Entries[tuple[str, ...]] | None = Field(default=None, min_length=1)
    """Overrides of each variant, by its name. Give exactly one of `methods`, `variants` and `grid`."""
    grid: dict[str, tuple[Value, ...]] | None = Field(default=None, min_length=1)
    """Values of each dotted field; every combination is a variant, named after the last parts of the fields and its
    values. Give exactly one of `methods`, `variants` and `grid`."""
    baseline: str
    """Variant that the others are compared with."""
    seeds: Seeds = (1,)
    """Training seeds of every variant: they set model initialisation, data order and rollouts."""
    parallel_runs: PositiveInt = 1
    """Runs that may be under way at once, each with its own `runtime.parallel_stages`."""

    @property
    def changes(self) -> dict[str, tuple[str, ...]]:
        """Overrides of each variant, by its name."""
        return dict(self._expanded())

    @property
    def parameter(self) -> str | None:
        """Field of a grid over one number; None for other studies."""
        if self.grid is None or len(self.grid) > 1:
            return None
        ((field, values),) = self.grid.items()
        return field if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) else None

    @property
    def runs(self) -> tuple[StudyRun, ...]:
        """All runs, those of the first seed first, so that every variant has a result early."""
        together = [(self.methods, ())] if self.methods else [((name,), of) for name, of in self.changes.items()]
        return tuple(
            StudyRun(
                variants=names, seed=seed, overrides=(*self.overrides, *changes, f"name={self.name}", f"seed={seed}")
            )
            for seed in self.seeds
            for names, changes in together
        )

    def row(self, variant: str) -> str:
        """Return the row of its run's result table that a variant is measured by."""
        return variant if self.methods else self.method

    @property
    def rows(self) -> tuple[str, ...]:
        """Methods that runs train."""
        return self.methods or (self.method,)

    def _expanded(self) -> list[tuple[str, tuple[str, ...]]]:
        if self.methods is not None:
            return [(name, ()) for name in self.methods]
        if self.variants is not None:
            return list(self.variants.items())
        fields, values = zip(*(self.grid or {}).items(), strict=True)
        return [(_name(fields, point), _overrides(fields, point)) for point in itertools.product(*values)]

    @model_validator(mode="after")
    def _variants_have_names(self) -> Self:
        if sum(given is not None for given in (self.methods, self.variants, self.grid)) != 1:
            raise ValueError(
                "give exactly one of `variants` (name → overrides), `grid` (field → values) and `methods` (names)"
            )
        if self.methods is not None and self._changed("method"):
            raise ValueError("`method` is the one row that variants are measured by; leave it out beside `methods`")
        if empty := [field for field, values in (self.grid or {}).items() if not values]:
            raise ValueError(f"grid.{empty[0]} has no values; give some, or leave the field out")
        names = [name for name, _ in self._expanded()]
        for name in names:
            check_name(name)
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise ValueError(f"two variants are named {twice[0]!r}; leave one out")
        tell_apart(self.changes)
        if self.baseline not in names:
            raise ValueError(f"baseline: there is no variant {self.baseline!r}; {suggestion(self.baseline, names)}")
        return self

    @model_validator(mode="after")
    def _seeds_are_the_studys(self) -> Self:
        given = {"overrides": self.overrides} | {f"variant {name!r}": changes for name, changes in self._expanded()}
        for where, overrides in given.items():
            for key in (text.partition("=")[0] for text in overrides):
                if key in ("seed", "name") or re.split(r"[.[]", key)[0] == "runtime":
                    own = {"seed": "seeds", "name": "name"}.get(key, key)
                    raise ValueError(f"{where} sets {key}, which is the same for all runs; set the study's own `{own}`")
        return self


def _name(fields: tuple[str, ...], point: tuple[Value, ...]) -> str:
    words = [value if isinstance(value, str) else json.dumps(value) for value in point]
    return " ".join(
        f"{field.rpartition('.')[2]} {UNNAMEABLE.sub('-', word)}" for field, word in zip(fields, words, strict=True)
    )


def _overrides(fields: tuple[str, ...], point: tuple[Value, ...]) -> tuple[str, ...]:
    return tuple(f"{field}={json.dumps(value)}" for field, value in zip(fields, point, strict=True))
