"""Where a plan is kept between `--plan` and the run that it was made for."""

import json
from pathlib import Path
from typing import Any

from minillm.artifacts import text_digest
from minillm.config import BaseConfig


def plan_path(store: Path, config: BaseConfig) -> Path:
    """File of the plan of exactly this configuration."""
    return store / "plans" / f"{text_digest(config.model_dump(mode='json'))[:16]}.json"


def read_plan(store: Path, config: BaseConfig) -> dict[str, Any]:
    """{"stages": {label: seconds}, "total": seconds}; empty where none was made."""
    path = plan_path(store, config)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
