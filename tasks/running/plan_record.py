"""Record of a plan, kept between `--plan` and the run that it was made for."""

import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

from minillm.config import BaseConfig
from minillm.errors import first_line
from minillm.store.manifest import text_digest

LOGGER = logging.getLogger("prefect.plan")


class PlanRecord(BaseModel):
    """Planned seconds of each stage, by its label, and of the whole run."""

    stages: dict[str, float]
    total: float


def plan_path(store: Path, config: BaseConfig) -> Path:
    """Return the file of the plan of exactly this configuration."""
    return store / "plans" / f"{text_digest(config.model_dump(mode='json'))[:16]}.json"


def read_plan(store: Path, config: BaseConfig) -> PlanRecord | None:
    """Return the plan of a configuration; None if there is none, or with a warning if it is damaged."""
    path = plan_path(store, config)
    if not path.exists():
        return None
    try:
        return PlanRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        LOGGER.warning(
            "%s is unreadable (%s): the run is not compared with its plan; --plan makes a new one",
            path,
            first_line(error),
        )
        return None
