"""A key–value cache of slots: every row writes at its own length, and a slot can be given to another row.

Rows need no common length, so prompts are not padded on the left and a response that has ended makes room at once.
The mask and positions that go with it are passed to the model ready-made (`CachedModel.run`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from minillm.errors import StageError
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
    places: Tensor | None = None
    """Flat indices slot·columns + column written to, (rows × k)."""


class _SlotLayer(CacheLayerMixin):
    """Keys and values of a layer, (slots × columns, heads, size), allocated once."""

    is_sliding = False

    def __init__(self, cursor: _Cursor) -> None:
        super().__init__()
        self.cursor = cursor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        room = self.cursor.slots * self.cursor.columns
        self.keys, self.values = (
            states.new_zeros(room, states.shape[1], states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Store new states (rows, heads, k, size); all states of these rows (rows, heads, width, size)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, kept: Tensor | None, states: Tensor) -> Tensor:
        cursor = self.cursor
        assert kept is not None
        assert cursor.places is not None
        kept.index_copy_(0, cursor.places, states.transpose(1, 2).flatten(0, 1))
        by_slot = kept.view(cursor.slots, cursor.columns, *kept.shape[1:])
        return by_slot[cursor.first : cursor.first + cursor.rows, : cursor.width].transpose(1, 2)

    def move(self, sources: Tensor, targets: Tensor, width: int) -> None:
        """Copy the first columns of slots into others."""
        for kept in (self.keys, self.values):
            assert kept is not None
            by_slot = kept.view(self.cursor.slots, self.cursor.columns, *kept.shape[1:])
            by_slot[targets, :width] = by_slot[sources, :width]

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

        Raises:
            StageError: If the model's attention window is shorter than a row.
        """
        window = getattr(model.config.get_text_config(), "sliding_window", None)
        if window is not None and window < columns and getattr(model.config, "use_sliding_window", True):
            raise StageError(
                f"{model.config.model_type} attends to its last {window} tokens only, and rows have up to {columns}; "
                "shorten data.max_tokens, or set sliding_window to null in the model's configuration"
            )
        self.model = model
        self.head: OutputHead = output_head(model, vocabulary)
        self.seen = np.zeros(slots, dtype=np.int64)
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
        seen, until = self.seen[slots, None], lengths[slots, None]
        columns = seen + np.arange(int((until - seen).max()))
        real = columns < until
        device = tokens.device
        position = torch.from_numpy(np.minimum(columns, until - 1)).to(device)
        cursor.first, cursor.rows, cursor.width = first, rows, int(until.max())
        write = np.where(real, columns, cursor.columns - 1) + np.arange(first, first + rows)[:, None] * cursor.columns
        cursor.places = torch.from_numpy(write.ravel()).to(device)
        dtype = next(self.model.parameters()).dtype
        visible = torch.arange(cursor.width, device=device) <= position[:, :, None]
        mask = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, torch.finfo(dtype).min)
        output = self.model.base_model(
            input_ids=tokens[slots].gather(1, position),
            attention_mask=mask[:, None],
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
