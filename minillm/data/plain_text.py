"""The packed plain-text corpus D_PT, read block by block from a memory-mapped array."""

from pathlib import Path

import numpy as np


class PlainText:
    """Blocks of equal length in an artifact of `pack`. Only the blocks asked for are read from disk."""

    def __init__(self, path: Path, block_tokens: int) -> None:
        self._tokens = np.load(path / "tokens.npy", mmap_mode="r")
        self._block_tokens = block_tokens

    def __len__(self) -> int:
        return len(self._tokens) // self._block_tokens

    def block(self, index: int) -> np.ndarray:
        """Return the token ids (block_tokens,) of block `index`, 0 ≤ index < len(self)."""
        if not 0 <= index < len(self):
            raise IndexError(f"block {index} of {len(self)}")
        return np.asarray(self._tokens[index * self._block_tokens : (index + 1) * self._block_tokens])
