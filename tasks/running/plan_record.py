"""Where a plan is kept between `--plan` and the run that it was made for."""

import logging
from pathlib import Path

from pydantic import BaseModel, ValidationError

from minillm.config import BaseConfig
from minillm.errors import first_line
from minillm.store.manifest import text_digest

LOGGER = logging.getLogger("prefect.plan")


class PlanRecord(BaseModel):
    """Seconds of each stage, by its label, and of the whole run."""

    stages: dict[str, float]
    total: float


def plan_path(store: Path, config: BaseConfig) -> Path:
    """File of the plan of exactly this configuration."""
    return store / "plans" / f"{text_digest(config.model_dump(mode='json'))[:16]}.json"


def read_plan(store: Path, config: BaseConfig) -> PlanRecord | None:
    """None where none was made, or where it is damaged: a run goes on without, and says so."""
    path = plan_path(store, config)
    if not path.exists():
        return None
    try:
        return PlanRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        LOGGER.warning(
            "%s is unreadable (%s): nothing is compared with the plan; --plan makes it anew", path, first_line(error)
        )
        return None
