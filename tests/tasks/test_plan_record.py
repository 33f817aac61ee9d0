"""A run reads a plan exactly as it was written, or not at all."""

from pathlib import Path

import pytest

from minillm.durable import make_folder, write_atomically
from tasks.running.plan_record import PlanRecord, plan_path, read_plan
from tests.small import small_config


def test_a_plan_is_read_by_the_run_that_it_was_made_for_alone(tmp_path: Path):
    config = small_config(tmp_path)
    path = plan_path(tmp_path, config)
    make_folder(path.parent)
    assert read_plan(tmp_path, config) is None
    write_atomically(path, '{"stages": {"train sft": 2.5}, "total": 12.5, "machine": "more than is read"}')
    assert read_plan(tmp_path, config) == PlanRecord(stages={"train sft": 2.5}, total=12.5)
    assert read_plan(tmp_path, config.model_copy(update={"seed": 99})) is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"stages": {"train sft": "long"}, "total": 1}', b'{"total": 1}']
)
def test_a_damaged_plan_fails_no_run_and_is_told(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = small_config(tmp_path)
    make_folder(plan_path(tmp_path, config).parent)
    plan_path(tmp_path, config).write_bytes(content)
    assert read_plan(tmp_path, config) is None
    assert f"{plan_path(tmp_path, config)} is unreadable" in caplog.text
    assert "--plan makes a new one" in caplog.text
