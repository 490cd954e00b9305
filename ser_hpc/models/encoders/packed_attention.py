"""Attend within each clip of a packed row (block-diagonal), under transformers' own attention modules.

Wav2Vec2, HuBERT and Whisper call `PACKED` through transformers' attention interface, with `packing=` passed through their
layers. WavLM computes its own with T x T tensors, for which `GatedAttention` is the same module with another forward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from ser_hpc.models.packed import Packing

PACKED = "ser_hpc_packed"

# torch's first choice on H100 and newer. It plans anew for every shape, and no two of ours are alike (0.4 s and more were
# measured elsewhere), and NaN has been reported of its backward pass in bf16.
torch.backends.cuda.enable_cudnn_sdp(False)


def packed_attention(
    packing: Packing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    dropout: float = 0.0,
    biases: list[Tensor] | None = None,
) -> Tensor:
    """Attend, (T, heads, width) each -> (T, heads, width). `biases`: of each of the packing's groups, for the products.

    On a GPU, in half precision, without biases (which the kernel does not know) one variable-length call serves all clips; else
    one call each group.
    """
    if biases is None and has_kernel(query.device, query.dtype, query.shape[-1]):
        ends, longest = packing.ends, max(packing.lengths)
        # What torch.nn.attention.varlen calls, but that it leaves no choice of dropout. (Not causal, no mask to look at.)
        outputs = torch.ops.aten._flash_attention_forward(
            query, key, value, ends, ends, longest, longest, dropout, False, False, scale=scale
        )
        out: Tensor = outputs[0]
        return out
    masks: list[Tensor | None] = [group.mask for group in packing.groups] if biases is None else [*biases]
    outs = []
    for (q, k, v), mask in zip(packing.grouped(query, key, value), masks, strict=True):
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        outs.append(F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale).transpose(1, 2))
    return packing.ungrouped(outs)


def gated_biases(packing: Packing, gate: Tensor, bias: Tensor) -> list[Tensor]:
    """Make each group's biases (clips, heads, frames, frames): `gate` (T, heads, 1) times `bias` (heads, longest, longest)."""
    biases = []
    for (part,), group in zip(packing.grouped(gate), packing.groups, strict=True):
        product = part.transpose(1, 2) * bias[:, : group.frames, : group.frames]
        biases.append(product if group.mask is None else product.masked_fill(~group.mask, -torch.inf))
    return biases


@cache
def has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Tell whether heads of this width have FlashAttention-2 (Dao 2023, arXiv 2307.08691) there."""
    if device.type != "cuda" or torch.version.cuda is None or dtype not in (torch.bfloat16, torch.float16):
        return False
    if width % 8 or width > 256:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in transformers' shapes: (1, heads, T, width) each -> (1, T, heads, width)."""
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))  # x[0] costs a copy backwards
    return packed_attention(packing, query, key, value, scaling, dropout)[None], None


AttentionInterface.register(PACKED, _interface)


class GatedAttention(WavLMAttention):
    """WavLM's attention, packed: each head's relative position bias, times a gate of each frame, on the scaled products."""

    def forward(  # type: ignore[override]  # called by WavLM's layers alone, as `Wav2Vec2Frontend` calls these
        self,
        hidden_states: Tensor,
        attention_mask: None = None,
        position_bias: Tensor | None = None,
        index: int = 0,
        *,
        packing: Packing,
    ) -> tuple[Tensor, None, Tensor]:
        """Attend, (1, T, D) -> (1, T, D). `position_bias` (heads, longest, longest) of the first layer serves all."""
        if position_bias is None:
            position_bias = self._position_bias(max(packing.lengths))
        rows = self._per_head(hidden_states.squeeze(0))
        a, b = self.gru_rel_pos_linear(rows).view(*rows.shape[:2], 2, 4).sum(-1).sigmoid().split(1, dim=-1)
        gate = a * (b * self.gru_rel_pos_const[0, :, 0] - 1) + 2  # (T, heads, 1)
        query, key, value = (self._per_head(part(hidden_states.squeeze(0))) for part in (self.q_proj, self.k_proj, self.v_proj))
        biases = gated_biases(packing, gate.to(query.dtype), position_bias.to(query.dtype))
        dropout = self.dropout if self.training else 0.0
        attended = packed_attention(packing, query, key, value, self.scaling, dropout, biases)
        return self.out_proj(attended.flatten(1))[None], None, position_bias

    def _per_head(self, rows: Tensor) -> Tensor:
        """Split (T, D) -> (T, heads, width)."""
        return rows.view(len(rows), self.num_heads, self.head_dim)

    def _position_bias(self, frames: int) -> Tensor:
        """Look up (heads, frames, frames): it depends on the distance alone, so each is looked up once, not once a pair."""
        device = self.gru_rel_pos_const.device
        distances = torch.arange(1 - frames, frames, device=device)
        values: Tensor = self.rel_attn_embed(self._relative_positions_bucket(distances))  # (2 * frames - 1, heads)
        # Row r of the unfolded is values[r : r + frames]; query i wants its distances from -i on, row frames - 1 - i.
        return values.T.contiguous().unfold(1, frames, 1).flip(1)
