"""The testbed's text encoder: a tokenizer of whole words and one small transformer layer.

Host-free; runs in diffusers pipelines and inside ComfyUI alike.
"""

import difflib

import torch
from torch import nn
from torch.nn import functional as F

from .concepts import vocabulary

WIDTH = 128
LENGTH = 14
HEADS = 2


class UnknownWordError(ValueError):
    """A prompt has a word that the testbed never learned."""


class WordTokenizer:
    """Whole words to ids; id 0 pads. Commas, full stops and upper case are ignored."""

    def __init__(self):
        self.ids = {word: i + 1 for i, word in enumerate(vocabulary())}

    def __len__(self):
        return len(self.ids) + 1

    def __call__(self, prompt):
        """List of LENGTH ids.

        Raises:
            UnknownWordError: names each unknown word and the nearest known ones.
        """
        words = prompt.lower().replace(",", " ").replace(".", " ").split()
        unknown = [w for w in words if w not in self.ids]
        if unknown:
            hints = []
            for word in dict.fromkeys(unknown):
                near = difflib.get_close_matches(word, self.ids, n=3)
                hints.append(f"{word!r}" + (f" (did you mean {', '.join(near)}?)" if near else ""))
            raise UnknownWordError(
                f"UniForget Demo Model knows {len(self.ids)} words, and these are not among them: {'; '.join(hints)}. "
                "Try a prompt such as 'soft lion and apple on purple dots'; the node's help page lists all words."
            )
        if len(words) > LENGTH:
            raise UnknownWordError(
                f"UniForget Demo Model reads at most {LENGTH} words and this prompt has {len(words)}: {prompt!r}. Shorten it."
            )
        return [self.ids[w] for w in words] + [0] * (LENGTH - len(words))


class TextEncoder(nn.Module):
    """Token ids (n, LENGTH) -> hidden states (n, LENGTH, WIDTH) and their pooled mean (n, WIDTH), float32."""

    def __init__(self, words):
        super().__init__()
        self.tokens = nn.Embedding(words, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 4 * WIDTH)
        self.fc2 = nn.Linear(4 * WIDTH, WIDTH)
        self.final = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = self.final(x + self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return x, x.mean(1)
