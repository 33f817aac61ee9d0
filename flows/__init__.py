"""The order of work: each flow's body reads as its diagram."""

from tasks.environment.settings import load_prefect

load_prefect()
