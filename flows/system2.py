"""System 2 into System 1: ask slowly, keep the answers that agree, learn to give them at once, and compare.

`minillm system2 --help` tells how to run it.
"""

from typing import Any

from prefect import State, flow
from prefect.futures import PrefectFuture

from minillm.config import System2
from minillm.config.loading import load_system2
from tasks.running.session import tracked
from tasks.system2 import (
    ask,
    check_reasoner,
    conclude,
    distil_answers,
    export_model,
    filter_instructions,
    fine_tune,
    keep_consistent,
    prepare,
    read_questions,
    report,
)


@flow(name="system2")
def system2(config_file: str = "configs/system2.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Distil a model's slow answers into its fast ones.

    Args:
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_system2(config_file, overrides)
    with tracked(config) as session:
        return conclude(session, *stages(config))


def stages(config: System2) -> tuple[PrefectFuture[Any], PrefectFuture[Any]]:
    """Start every stage; the futures of the report and of the exported model."""
    test = read_questions.submit(config, "test")
    unlabelled = read_questions.submit(config, "unlabelled", test)
    given = check_reasoner.submit(config, test, unlabelled)
    prepared = prepare.submit(config)
    lessons = filter_instructions.submit(config, prepared, test)
    model = fine_tune.submit(config, prepared, lessons, wait_for=[unlabelled, given])

    tested = {
        "system1_before": ask.submit(config, "System 1 before", "system1", "test", model, prepared, test),
        "system2": ask.submit(config, "System 2", "system2", "test", model, prepared, test),
    }
    reasoned = ask.submit(config, "System 2, unlabelled", "system2", "unlabelled", model, prepared, unlabelled)
    examples = keep_consistent.submit(config, reasoned, unlabelled, prepared)
    distilled = distil_answers.submit(config, model, prepared, examples)
    tested["system1_after"] = ask.submit(config, "System 1 after", "system1", "test", distilled, prepared, test)

    results = report.submit(config, test, tested, examples, distilled)
    exported = export_model.submit(config, distilled, examples, results)
    return results, exported


if __name__ == "__main__":
    from cli.app import main

    main("system2")
