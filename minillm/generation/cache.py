"""A key–value cache made of slots: each row writes at its own length, and a freed slot can take another row.

Rows need no common length, so prompts are not padded on the left and a finished response makes room at once. The model
gets positions ready-made (`CachedModel.run`) and makes a mask for each kind of its layers (full, sliding, chunked), as
ever once a pass, but from the place of each query in its own row (`_by_row`). Keys outside a window stay in the cache.
`minillm.preparation.architecture_check` refuses architectures that mask in other ways or keep more than these.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import eager_mask, sdpa_mask

from minillm.models.output_head import OutputHead, last_hidden, output_head


@dataclass
class _Cursor:
    """Place in the cache that the current forward pass writes to and reads from, the same in every layer."""

    slots: int
    columns: int
    """Tokens of a slot."""
    first: int = 0
    rows: int = 0
    """Slots [first, first + rows) are read and written."""
    width: int = 0
    """Columns [0, width) are read."""
    written: Tensor | None = None
    """Columns written, (rows, k)."""
    position: Tensor | None = None
    """Columns of the queries, (rows, k)."""
    _places: dict[int, Tensor] = field(default_factory=dict)

    def aim(self, first: int, rows: int, width: int, written: Tensor, position: Tensor) -> None:
        """Point at the rows and columns of a forward pass."""
        self.first, self.rows, self.width, self.written, self.position = first, rows, width, written, position
        self._places.clear()

    def places(self, heads: int) -> Tensor:
        """Return flat indices into (slots, heads, columns) to write at, (rows · heads · k,); layers share them."""
        if heads not in self._places:
            assert self.written is not None
            device = self.written.device
            slot = torch.arange(self.first, self.first + self.rows, device=device)[:, None, None]  # (rows, 1, 1)
            head = torch.arange(heads, device=device)[:, None]  # (heads, 1)
            # (rows, heads, k), flattened: one index for each vector that `_store` writes
            self._places[heads] = ((slot * heads + head) * self.columns + self.written[:, None]).flatten()
        return self._places[heads]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, columns, size), allocated once.

    The columns of a head are adjacent in memory: attention reads them faster than with heads in between.
    """

    is_sliding = False

    def __init__(self, cursor: _Cursor) -> None:
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        slots, columns = self.cursor.slots, self.cursor.columns
        self.keys, self.values = (
            states.new_zeros(slots, states.shape[1], columns, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states (rows, heads, k, size); return all states of these rows, (rows, heads, width, size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, kept: Tensor, states: Tensor) -> Tensor:
        cursor = self.cursor
        # One row of memory for each slot, head and column, (slots · heads · columns, size), so one copy writes all.
        kept.view(-1, kept.shape[-1]).index_copy_(0, cursor.places(kept.shape[1]), states.flatten(0, 2))
        return kept[cursor.first : cursor.first + cursor.rows, :, : cursor.width]  # (rows, heads, width, size)

    def move(self, sources: Tensor, targets: Tensor, width: int) -> None:
        """Copy the first `width` columns of source slots into target slots."""
        for kept in (self.keys, self.values):
            assert kept is not None
            kept[targets, :, :width] = kept[sources, :, :width]  # no slot is both (see Slots.release)

    def get_seq_length(self) -> int:
        """Return 0: rows differ in length, and positions are passed ready-made."""
        return 0

    def get_max_length(self) -> int:
        """Return the columns of a slot."""
        return self.cursor.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns that are read, and the first of them."""
        return self.cursor.width, 0


class _SlotCache(Cache):
    """The layers of a slot cache, which say where the queries stand in their rows."""

    def __init__(self, cursor: _Cursor, layers: list[_SlotLayer]) -> None:
        super().__init__(layers=list(layers))
        self.cursor = cursor

    def get_query_offset(self, layer_idx: int = 0) -> Tensor:  # type: ignore[override]
        """Return the columns of the queries, (rows, k), in the place of one offset for all rows (see `_by_row`)."""
        assert self.cursor.position is not None
        return self.cursor.position


def _by_row(make: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """Extend a mask function of transformers to queries that stand at other columns in each row.

    A model asks for a mask once a pass and kind of layer; the kind is the rule `mask_function`.
    """

    @wraps(make)
    def mask(*args: Any, **kwargs: Any) -> Tensor | None:
        position = kwargs.get("q_offset")
        if not isinstance(position, Tensor) or position.dim() != 2:
            return make(*args, **kwargs)
        row = torch.arange(len(position), device=position.device)[:, None, None, None]  # (rows, 1, 1, 1)
        column = torch.arange(kwargs["kv_length"], device=position.device)  # (width,)
        # What a slot held before lies behind its row's columns, which a causal rule does not reach.
        visible = kwargs["mask_function"](row, row.new_zeros(1), position[:, None, :, None], column)
        dtype = kwargs["dtype"]
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)  # (rows, 1, k, width)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    return mask


for _name, _make in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionMaskInterface.register(_name, _by_row(_make))


class CachedModel:
    """A model with a slot cache; it counts the tokens of each row that the model has seen."""

    def __init__(self, model: PreTrainedModel, vocabulary: int, slots: int, columns: int) -> None:
        """Allocate nothing yet: each layer allocates its part at its first keys and values.

        Args:
            model: Model in evaluation mode.
            vocabulary: Entries of the tokenizer.
            slots: Most rows at once.
            columns: Tokens of the longest row.
        """
        self.model = model
        self.head: OutputHead = output_head(model, vocabulary)
        self.seen = np.zeros(slots, dtype=np.int64)  # (slots,)
        # A spare last column takes what is written for padding; no mask lets it be read.
        self._cursor = _Cursor(slots, columns + 1)
        self._layers = [_SlotLayer(self._cursor) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self._cache = _SlotCache(self._cursor, self._layers)

    def run(self, tokens: Tensor, lengths: np.ndarray, first: int, rows: int) -> tuple[Tensor, np.ndarray]:
        """Run the model on the tokens of some rows that it has not seen yet.

        Args:
            tokens: (slots, columns) token ids.
            lengths: (slots,) number of tokens of each row, all seen afterwards.
            first: First slot to run.
            rows: Number of slots to run.

        Returns:
            Last hidden states (rows, k, H) and their columns (rows, k), k being the most unseen tokens of any row. The
            column is −1 where a row had fewer.
        """
        cursor, slots = self._cursor, slice(first, first + rows)
        seen, until = self.seen[slots, None], lengths[slots, None]  # (rows, 1) each
        columns = seen + np.arange(int((until - seen).max()))  # (rows, k), k the most that any row lacks
        real = columns < until  # (rows, k)
        device = tokens.device
        # Where a row lacks fewer than k, its last token is repeated at its own position, but written out of the way.
        position = torch.from_numpy(np.minimum(columns, until - 1)).to(device)  # (rows, k)
        written = torch.from_numpy(np.where(real, columns, cursor.columns - 1)).to(device)
        cursor.aim(first, rows, int(until.max()), written, position)
        hidden = last_hidden(
            self.model,
            input_ids=tokens[slots].gather(1, position),  # (rows, k)
            attention_mask=position.new_ones(rows, cursor.width),  # no column is padding; biases by distance count them
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.seen[slots] = lengths[slots]
        return hidden, np.where(real, columns, -1)

    def forget(self, first: int, rows: int) -> None:
        """Mark slots as holding new rows, of which nothing has been seen."""
        self.seen[first : first + rows] = 0

    def move(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Move rows from slots `sources` to slots `targets`, (m,) each."""
        if not len(sources):
            return
        width = int(self.seen[sources].max())
        device = next(self.model.parameters()).device
        places = torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device)
        if width:
            for layer in self._layers:
                layer.move(*places, width)
        self.seen[targets] = self.seen[sources]
