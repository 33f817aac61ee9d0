"""The pseudo-terminal of the tests shows what a terminal would, however its output is cut."""

import sys
from pathlib import Path

from tests.terminal import terminal

SLOWLY = """
import sys, time
for part in sys.argv[1].encode():
    sys.stdout.buffer.write(bytes([part]))
    sys.stdout.buffer.flush()
    time.sleep(0.02)
"""


def test_what_comes_byte_by_byte_is_what_comes_at_once(tmp_path: Path):
    words = "é\x1b[1;31mred\x1b[0m\n\x1b[?25lover\x1b[A\x1b[Kfox\n\x1b[?25h"
    with terminal([sys.executable, "-c", SLOWLY, words], 40, 5, tmp_path, {}) as there:
        there.wait()
        assert there.picture.screen[:2] == ["éredfox", "over"]
    assert there.written.replace("\r\n", "\n") == words
