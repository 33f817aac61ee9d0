"""DeepSpeed's checkpoints read as plain data: anything else that a pickle in them asks for is refused, never run.

`python -m minillm.training.unpickling FOLDER …` runs DeepSpeed's ds_to_universal in a folder under the same rule.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

import torch
from deepspeed.checkpoint import ds_to_universal
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

HOLDS = [LossScaler, ZeroStageEnum, fragment_address]
"""Classes that DeepSpeed's files hold beside tensors and plain values."""


@contextlib.contextmanager
def only_data() -> Iterator[None]:
    """Make every `torch.load` inside the block read plain data only, including DeepSpeed's own calls that ask for more.

    Raises:
        pickle.UnpicklingError: A file holds something else.
    """
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with torch.serialization.safe_globals(HOLDS):  # type: ignore[arg-type]
            yield
    finally:
        del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        if before is not None:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


if __name__ == "__main__":
    with contextlib.chdir(sys.argv.pop(1)), only_data():
        ds_to_universal.main(ds_to_universal.parse_arguments())
