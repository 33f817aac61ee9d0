"""The order of work: each flow's body reads as its diagram."""

from tasks.settings import load_prefect

load_prefect()
