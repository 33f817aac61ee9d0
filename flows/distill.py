"""The main flow: filter, fine-tune the teacher and the student, distil by every method, evaluate, report.

`minillm distill --help` tells how to run it.
"""

from typing import Any

from prefect import State, flow
from prefect.futures import PrefectFuture

from minillm.config import Config
from minillm.config.loading import load_config
from tasks.data import filter_examples, pack_plain_text, prepare, take_layers
from tasks.evaluation import evaluate
from tasks.evaluation_sets import read_evaluation_sets
from tasks.promoting import propose
from tasks.reporting import conclude, export_model, open_repository, report, upload_model
from tasks.running.session import tracked
from tasks.served import check_served_teacher
from tasks.training import (
    distil,
    fine_tune_initial_student,
    fine_tune_teacher,
    needs,
    store_knowledge,
    student_responses,
    teacher_responses,
)


@flow(name="distill")
def distill(config_file: str = "configs/quickstart.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Distil a teacher into a student by each method of a configuration, and compare them.

    Args:
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_config(config_file, overrides)
    with tracked(config) as session:
        open_repository(config)
        ended = conclude(session, config, *stages(config))
    return propose(session, config, ended)


def stages(config: Config) -> tuple[PrefectFuture[Any], dict[str, PrefectFuture[Any]], dict[str, PrefectFuture[Any]]]:
    """Start every stage; the futures of the report, of the exported students and of the one uploaded to the hub."""
    student = take_layers.submit(config)
    prepared = prepare.submit(config, student)
    given = check_served_teacher.submit(config, prepared)
    sets = read_evaluation_sets(config, dict.fromkeys(config.rows, prepared))
    # Nothing is trained before all that will be measured on has been read, and a teacher elsewhere has answered.
    examples = filter_examples.submit(config, prepared, sets.benchmarks, wait_for=[*sets.all, given])
    plain_text = pack_plain_text.submit(config, prepared)

    teacher = fine_tune_teacher.submit(config, given, prepared, examples)
    initial = fine_tune_initial_student.submit(config, student, prepared, examples)
    responses = teacher_responses.submit(config, prepared, examples, teacher)
    rejected = student_responses.submit(config, prepared, examples, student, initial)
    texts = {"dataset": examples, "teacher": responses}
    knowledge = {
        (form, text): store_knowledge.submit(config, form, text, prepared, texts[text], teacher)
        for form, text in config.stored_knowledge
    }
    generated: dict[str, Any] = {"responses": responses, "rejected": rejected, "knowledge": knowledge}
    available = {"teacher": teacher, "initial": initial, **generated, "plain_text": plain_text}
    students = {
        name: distil.submit(config, name, student, prepared, examples, **needs(method, **available))
        for name, method in config.methods.items()
    }

    models = {"teacher": teacher, **students}
    measured = evaluate(config, models, sets)
    results = report.submit(config, sets.benchmarks, sets.prompts, {**models, "initial": initial}, measured, examples)
    exports = {name: export_model.submit(config, name, model, examples, results) for name, model in students.items()}
    uploads = {name: upload_model.submit(config, name, exports[name]) for name in exports if name == config.uploaded}
    return results, exports, uploads


if __name__ == "__main__":
    from cli.app import main

    main("distill")
