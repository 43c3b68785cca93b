"""Array aliases and the axis letters used across the package.

b batch   n image tokens   m text tokens   k codes   v states (k codes + [MASK])
d model width   e text width   a heads   f head features   h w token grid
H W pixels   c channels   z code width   q queries
g groups of codes   l positions of the token grid: n = g l, ordered by group, then by position
"""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int, Key

Tokens = Int[Array, "b n"]  # states in [0, v); v - 1 is [MASK]
Times = Int[Array, " b"]  # t in {0..T}; 0 is clean data
LogProbs = Float[Array, "b n v"]  # normalised, float32
Logits = Float[Array, "b n k"]  # over codes only: nothing ever predicts [MASK]
Images = Float[Array, "b H W 3"]  # in [-1, 1]
TextIds = Int[Array, "b m"]
TextStates = Float[Array, "b m e"]
TextMask = Bool[Array, "b m"]  # True where the denoiser may attend
AttentionMask = Bool[Array, "#b #q m"]
PRNGKey = Key[Array, ""]
PRNGKeys = Key[Array, " b"]  # one key for each example
DenoiseFn = Callable[[Tokens, Times], Logits]
Params = Mapping[str, Any]  # a tree of arrays
