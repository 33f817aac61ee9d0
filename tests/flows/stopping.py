"""A flow that is stopped in the middle, and what the same command makes of it afterwards."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.flows.test_distill import Finished
from tests.waiting import wait_for


@dataclass
class Resumed:
    """The run that went on where another was stopped."""

    finished: Finished
    store: Path

    @property
    def report(self) -> Path:
        """Folder of the report that the console names."""
        (path,) = re.findall(r"^report +(\S+)$", self.finished.output, re.MULTILINE)
        return Path(path).parent


def stop_once(name: str, config: Path, parts: Callable[[], list[Path]], **environment: str) -> list[Path]:
    """Run `python -m flows.NAME` until a stage has left parts, and stop it; return the parts."""
    log = config.parent / "log"
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", f"flows.{name}", str(config)]
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stdout=stream, stderr=stream)
    try:
        wait_for(lambda: process.poll() is not None or parts(), 300)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    found = sorted(parts())
    assert found, log.read_text(encoding="utf-8")
    return found
