"""Pre-training on a teacher's corpus: the teacher writes, students learn growing shares of it, and are compared.

`minillm pretrain --help` tells how to run it.
"""

from typing import Any

from prefect import State, flow
from prefect.futures import PrefectFuture

from minillm.config import Form, Pretrain
from minillm.config.loading import load_pretrain
from tasks.evaluation_sets import pack_held_out_texts
from tasks.pretraining import (
    conclude,
    cut_plain_text,
    measure_perplexity,
    prepare,
    report,
    sample_corpus,
    train_student,
    train_teacher,
)
from tasks.running.session import tracked
from tasks.training import store_knowledge


@flow(name="pretrain")
def pretrain(config_file: str = "configs/pretrain.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Pre-train students from random weights on growing shares of a corpus that a teacher writes.

    Args:
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_pretrain(config_file, overrides)
    with tracked(config) as session:
        return conclude(session, stages(config))


def stages(config: Pretrain) -> PrefectFuture[Any]:
    """Start every stage; the future of the report."""
    prepared = prepare.submit(config)
    texts = pack_held_out_texts.submit(config, prepared)
    rows = cut_plain_text.submit(config, prepared)
    teacher = train_teacher.submit(config, prepared, rows, wait_for=[texts])

    corpus = sample_corpus.submit(config, prepared, teacher, wait_for=[texts])
    knowledge: dict[Form | None, Any] = {None: None}  # of methods that need none
    for form in config.forms:
        knowledge[form] = store_knowledge.submit(config, form, "teacher", prepared, corpus, teacher)
    students = {
        student.name: train_student.submit(
            config, student, prepared, corpus, teacher, knowledge[config.methods[student.method].stored]
        )
        for student in config.students
    }
    measured = {
        name: measure_perplexity.submit(config, name, model, prepared, texts)
        for name, model in {"teacher": teacher, **students}.items()
    }
    return report.submit(config, corpus, students, measured)


if __name__ == "__main__":
    from cli.app import main

    main("pretrain")
