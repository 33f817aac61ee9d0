"""The order of work: each flow's body reads as its diagram."""

from tasks.settings import set_defaults

set_defaults()
