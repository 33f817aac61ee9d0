"""Facts that MLflow is told about the data that a stage reads."""

from pathlib import Path

from minillm.config import Fields, Source
from minillm.data.sources import Resolved
from minillm.stages.reading import Benchmarks
from minillm.store.file_versions import Snapshot
from tasks.tracking.contents import datasets

COMMIT = "0123456789abcdef" * 2 + "01234567"


def hub(file: str, commit: str = COMMIT) -> tuple[Source, Resolved]:
    source = Source(hub="MiniLLM/sinst", file=file)
    return source, Resolved(Path(file), f"hub:datasets/MiniLLM/sinst@{commit}/{file}", Snapshot.take(Path(file)))


def test_two_files_of_one_hub_repository_are_two_data_sets():
    stage = Benchmarks(fields={"long": Fields(), "short": Fields()}, topics={})
    found = datasets(stage, {"long": hub("11_/valid.jsonl"), "short": hub("0_5/valid.jsonl")})
    assert [facts.name for facts in found] == ["long", "short"]
    assert found[0].digest != found[1].digest


def test_the_digest_of_a_hub_data_set_knows_its_commit():
    stage = Benchmarks(fields={"sni": Fields()}, topics={})
    (before,) = datasets(stage, {"sni": hub("valid.jsonl")})
    (after,) = datasets(stage, {"sni": hub("valid.jsonl", commit=COMMIT[::-1])})
    assert before.digest != after.digest
    assert len(before.digest) <= 36, "as much as MLflow takes"


def test_the_digest_of_a_local_file_is_the_beginning_of_its_sha256():
    stage = Benchmarks(fields={"mine": Fields()}, topics={})
    (facts,) = datasets(
        stage,
        {
            "mine": (
                Source(path="x.jsonl"),
                Resolved(Path("x.jsonl"), f"sha256:{'ab' * 32}.jsonl", Snapshot.take(Path("x.jsonl"))),
            )
        },
    )
    assert facts.digest == "ab" * 18
