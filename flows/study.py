"""A study: variants of one configuration, each distilled with several seeds, and how they differ.

`minillm study --help` tells how to run it.
"""

from prefect import State, flow

from flows.distill import distill
from minillm.config.loading import load_study
from tasks.running.session import tracked
from tasks.studying import compare_variants, conclude_study, finished, start_runs


@flow(name="study")
def study(study_file: str = "configs/ablation.yaml", overrides: tuple[str, ...] = ()) -> State:
    """Distil every variant of a configuration with every seed, each in a run of its own, and compare them.

    Args:
        study_file: YAML file of the study; paths in it are relative to the working directory.
        overrides: `key.sub=value` each, applied over the study's own fields.
    """
    plan = load_study(study_file, overrides)
    with tracked(plan, plan.parallel_runs) as session:
        runs = start_runs(distill, plan)
        results = compare_variants.submit(plan, finished(runs))
        return conclude_study(session, plan, results)


if __name__ == "__main__":
    from cli.app import main

    main("study")
