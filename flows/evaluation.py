"""Evaluation alone: the report of a distillation for any models, from the hub or from directories.

`minillm evaluate --help` tells how to run it.
"""

from prefect import State, flow

from minillm.config.loading import load_evaluation
from tasks.data import prepare_model
from tasks.evaluation import evaluate
from tasks.evaluation_sets import read_evaluation_sets
from tasks.reporting import conclude, report
from tasks.running.session import tracked

EMBEDDED = "configs/evaluation-embedded.yaml"


@flow(name="evaluate")
def evaluate_models(
    models: tuple[str, ...] = (), config_file: str = EMBEDDED, overrides: tuple[str, ...] = ()
) -> State:
    """Measure models side by side, each with its own tokenizer.

    Args:
        models: MODEL or NAME=MODEL each, MODEL being a hub name (gpt2) or a directory; without any, those of the file.
            The others are measured against the first.
        config_file: YAML file; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the file.
    """
    config = load_evaluation(config_file, models, overrides)
    with tracked(config) as session:
        tokenizers = {name: prepare_model.submit(config, name) for name in config.models}
        sets = read_evaluation_sets(config, tokenizers)
        measured = evaluate(config, config.models, sets)
        results = report.submit(config, sets.benchmarks, sets.prompts, config.models, measured)
        return conclude(session, config, results, {}, {})


if __name__ == "__main__":
    from cli.app import main

    main("evaluate")
