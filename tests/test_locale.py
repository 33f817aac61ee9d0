"""Text is UTF-8 in any locale, and a console that cannot show a character shows its escape sequence."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.small import write_short_experiment

ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
CODE = r"""
import sys
from pathlib import Path
import tasks
from minillm.config import Fields
from minillm.data.benchmarks import load_benchmarks
from minillm.config.loading import load_config
from minillm.stages.reading import Benchmarks
from tests.minillm.direct import run_stage
folder = Path(sys.argv[1])
name = load_config(folder / "small.yaml").name
stage = Benchmarks(fields={"a": Fields()}, topics={})
output, _ = run_stage(stage, {"benchmark/a": folder / "a.jsonl"}, folder / "run")
found = load_benchmarks(output)["a"][0]["instruction"]
assert (name, found) == ("\u5e38\u8bc6", "na\u00efve"), (ascii(name), ascii(found))
print("\u00b1 1")
"""


def test_text_is_read_and_written_and_printed_under_a_locale_that_knows_ascii_alone(tmp_path: Path):
    path = write_short_experiment(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("name: small", "name: 常识"), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"instruction": "naïve", "output": "café"}\n', encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], cwd=ROOT, env=os.environ | ASCII, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout.decode("ascii").splitlines()[-1] == "\\xb1 1"
