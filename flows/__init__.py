"""The order of work: each flow's body reads as its diagram."""

from tasks.settings import set_prefect_defaults

set_prefect_defaults()
