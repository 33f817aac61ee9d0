"""A key–value cache of slots: every row writes at its own length, and a slot can be given to another row.

Rows need no common length, so prompts are not padded on the left and a response that has ended makes room at once.
The mask and positions that go with it are passed to the model ready-made (`CachedModel.run`). An architecture that
would have other masks, or keeps more than keys and values, is found by `minillm.preparation.architecture_check`.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from minillm.models.output_head import OutputHead, output_head


@dataclass
class _Cursor:
    """Where the forward pass at hand writes and reads, the same in every layer."""

    slots: int
    columns: int
    rows: int = 0
    """Slots [first, first + rows) are read."""
    first: int = 0
    width: int = 0
    """Columns read."""
    written: Tensor | None = None
    """Columns written to, (rows, k)."""
    _places: dict[int, Tensor] = field(default_factory=dict)

    def aim(self, first: int, rows: int, width: int, written: Tensor) -> None:
        """Set all of it for a forward pass."""
        self.first, self.rows, self.width, self.written = first, rows, width, written
        self._places.clear()

    def places(self, heads: int) -> Tensor:
        """Flat indices into (slots, heads, columns) of what is written (rows × heads × k,); computed by one layer."""
        if heads not in self._places:
            assert self.written is not None
            device = self.written.device
            slot = torch.arange(self.first, self.first + self.rows, device=device)[:, None, None]  # (rows, 1, 1)
            head = torch.arange(heads, device=device)[:, None]  # (heads, 1)
            # (rows, heads, k), flattened: one index for each vector that `_store` writes
            self._places[heads] = ((slot * heads + head) * self.columns + self.written[:, None]).flatten()
        return self._places[heads]


class _SlotLayer(CacheLayerMixin):
    """Keys and values of a layer, (slots, heads, columns, size), allocated once.

    Columns stand next to each other in memory: attention reads them faster than with heads in between.
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
        """Store new states (rows, heads, k, size); all states of these rows (rows, heads, width, size)."""
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
        """Copy the first columns of slots into others."""
        for kept in (self.keys, self.values):
            assert kept is not None
            kept[targets, :, :width] = kept[sources, :, :width]  # no slot is both (see Slots.release)

    def get_seq_length(self) -> int:
        """Nothing that a model could use: rows differ in length."""
        return 0

    def get_max_length(self) -> int:
        """Columns of a slot."""
        return self.cursor.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Never asked for: the mask is passed ready-made."""
        return self.cursor.width, 0


class CachedModel:
    """A model with a slot cache, which knows how many tokens of each row it has seen."""

    def __init__(self, model: PreTrainedModel, vocabulary: int, slots: int, columns: int) -> None:
        """Make room for keys and values.

        Args:
            model: In evaluation mode.
            vocabulary: Entries of the tokenizer.
            slots: Rows at once.
            columns: Tokens of the longest row.
        """
        self.model = model
        self.head: OutputHead = output_head(model, vocabulary)
        self.seen = np.zeros(slots, dtype=np.int64)  # (slots,)
        # The last column takes what is written for padding; no mask ever lets it be read.
        self._cursor = _Cursor(slots, columns + 1)
        self._layers = [_SlotLayer(self._cursor) for _ in range(model.config.get_text_config().num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))

    def run(self, tokens: Tensor, lengths: np.ndarray, first: int, rows: int) -> tuple[Tensor, np.ndarray]:
        """Catch up with rows of which the model has not seen all tokens.

        Args:
            tokens: (slots, columns) token ids.
            lengths: (slots,) tokens to have been seen afterwards.
            first: First slot of those to run.
            rows: Number of slots to run.

        Returns:
            Last hidden states (rows, k, H) of the k tokens at most that a row lacked, and each one's column (rows, k),
            −1 where a row lacked fewer.
        """
        cursor, slots = self._cursor, slice(first, first + rows)
        seen, until = self.seen[slots, None], lengths[slots, None]  # (rows, 1) each
        columns = seen + np.arange(int((until - seen).max()))  # (rows, k), k the most that any row lacks
        real = columns < until  # (rows, k)
        device = tokens.device
        # Where a row lacks fewer than k, its last token is repeated at its own position, but written out of the way.
        position = torch.from_numpy(np.minimum(columns, until - 1)).to(device)  # (rows, k)
        written = torch.from_numpy(np.where(real, columns, cursor.columns - 1)).to(device)
        cursor.aim(first, rows, int(until.max()), written)
        dtype = next(self.model.parameters()).dtype
        # A token sees its row's columns up to its own; what a slot held before lies behind them.
        visible = torch.arange(cursor.width, device=device) <= position[:, :, None]  # (rows, k, width)
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        output = self.model.base_model(
            input_ids=tokens[slots].gather(1, position),  # (rows, k)
            attention_mask=mask[:, None],  # (rows, 1, k, width), the same for every head
            position_ids=position,
            past_key_values=self._cache,
            use_cache=True,
        )
        self.seen[slots] = lengths[slots]
        return output.last_hidden_state, np.where(real, columns, -1)

    def forget(self, first: int, rows: int) -> None:
        """Slots hold other rows from now on."""
        self.seen[first : first + rows] = 0

    def move(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Give the rows of `sources` the slots `targets`."""
        if not len(sources):
            return
        width = int(self.seen[sources].max())
        device = next(self.model.parameters()).device
        places = torch.from_numpy(sources).to(device), torch.from_numpy(targets).to(device)
        if width:
            for layer in self._layers:
                layer.move(*places, width)
        self.seen[targets] = self.seen[sources]
