"""The network of AR: fmlm's blocks behind a causal mask, with keys and values kept between passes.

What is read:   [BOS] x1_0 ... x1_{L-2},             to say x1_0 ... x1_{L-1};
on a task of several coordinates (Sudoku), which has no order that a clue must come first in,
    puzzle_0 ... puzzle_{L-1} [BOS] x1_0 ... x1_{L-2},      2 L symbols,
a puzzle having V + 1 of them: the words and "empty". The layout is that of 2605.11125, whose
separators and second BOS a board of known size does not need. Ours: fmlm's positions and relations
in place of rotary ones. A symbol has the position of the token that it asks for; its bias to
another symbol is by the relation of that token to the one which the other holds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fmlm import Block, attention, normalize, relations


class CausalBlock(Block):
    """fmlm's Block without times, which sees no later token; `past`: keys and values of earlier
    ones, (B, heads, n, d) each. Returns h and all keys and values."""

    def forward(self, h: Tensor, related: Tensor, unseen: Tensor, past: tuple) -> tuple:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation
        q, *new = rearrange(self.qkv(normalize(h, shift1, scale1)), "b l (n h d) -> n b h l d",
                            n=3, h=self.heads)
        k, v = (torch.cat(pair, 2) for pair in zip(past, new)) if past else new
        seen = attention(q, k, v, torch.tensordot(self.relation, related, 1) + unseen)
        h = h + gate1 * self.out(rearrange(seen, "b h l d -> b l (h d)"))
        return h + gate2 * self.down(F.relu(self.up(normalize(h, shift2, scale2))).square()), (k, v)


class Causal(nn.Module):
    """x (B, L, V) one-hot and t (B, L), 1 at context, to log p (B, L, V); s is not looked at.
    `completes`: a puzzle is read first, so clues can be anywhere."""

    def __init__(self, vocab_size: int, coords: Tensor, width: int = 64, depth: int = 3,
                 heads: int = 2) -> None:
        super().__init__()
        self.vocab_size, self.completes = vocab_size, coords.shape[1] > 1
        self.register_buffer("coords", coords)
        whole = relations(coords)  # (R, L, L): of the token asked for with the one that is held,
        related = F.pad(whole[:, :, :-1], (1, 0))  # which is the one before; [BOS] is none
        if self.completes:
            puzzle = torch.cat([whole, torch.zeros_like(whole)], 2)
            related = torch.cat([puzzle, torch.cat([whole, related], 2)], 1)
        self.register_buffer("related", related, persistent=False)
        unseen = torch.full(related.shape[1:], -torch.inf).triu(1)
        self.register_buffer("unseen", unseen, persistent=False)
        self.embed = nn.Embedding((vocab_size + 1) * (1 + self.completes), width)
        self.positions = nn.ModuleList(nn.Embedding(int(column.max()) + 1, width)
                                       for column in coords.T)
        for table in (self.embed, *self.positions):
            nn.init.normal_(table.weight, std=0.5)
        self.blocks = nn.ModuleList(CausalBlock(width, heads, len(related)) for _ in range(depth))
        self.modulation = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return self.read(self.symbols(x.argmax(-1), t), [])[:, -len(self.coords):]

    def following(self, words: Tensor, t: Tensor, i: int, cache: list) -> Tensor:
        """log p (B, V) of token i alone, from words (B, L) int64 before it; `cache`, empty at
        first, keeps what was read of them."""
        symbols = self.symbols(words, t)
        return self.read(symbols[:, :symbols.shape[1] - words.shape[1] + i + 1], cache)[:, -1]

    def symbols(self, words: Tensor, t: Tensor) -> Tensor:
        own = self.vocab_size
        read = F.pad(words[:, :-1], (1, 0), value=own)
        puzzle = torch.where(t == 1, words, own) + own + 1
        return torch.cat([puzzle, read], 1) if self.completes else read

    def read(self, symbols: Tensor, cache: list) -> Tensor:
        start, end = cache[0][0].shape[2] if cache else 0, symbols.shape[1]
        asked = self.coords[torch.arange(start, end, device=symbols.device) % len(self.coords)]
        h = self.embed(symbols[:, start:])
        h = h + sum(table(column) for table, column in zip(self.positions, asked.T))
        related, unseen = self.related[:, start:end, :end], self.unseen[start:end, :end]
        kept = []
        for block, past in zip(self.blocks, cache or [()] * len(self.blocks)):
            h, pair = block(h, related, unseen, past)
            kept.append(pair)
        cache[:] = kept
        logits = self.head(normalize(h, *self.modulation)).float()
        return F.log_softmax(30 * torch.tanh(logits / 30), -1)
