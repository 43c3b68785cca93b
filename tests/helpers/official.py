"""The released models in plain PyTorch, written from their formulas, with the parameter names of
their checkpoints; small, with random weights.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


def randomise(module, seed=0, scale=0.3):
    """Weights in which no bias is 0 and no gain 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(
                scale
                * torch.randn(p.shape, generator=generator)
                / max(p[0].numel(), 1) ** 0.5
                * (3 if p.ndim > 1 else 1)
            )
    return module.eval()


class Ada(nn.Module):
    def __init__(self, rows, d):
        super().__init__()
        self.emb, self.linear = nn.Embedding(rows, d), nn.Linear(d, 2 * d)

    def forward(self, h, i):
        e = self.emb.weight[i] if i < self.emb.num_embeddings else self.emb.weight.mean(0)
        scale, shift = self.linear(F.silu(e)).chunk(2)
        return F.layer_norm(h, h.shape[-1:], eps=1e-5) * (1 + scale) + shift


class Attention(nn.Module):
    def __init__(self, d, heads, into, mask):
        super().__init__()
        self.heads = heads
        self.query, self.proj = nn.Linear(d, d), nn.Linear(d, d)
        self.key, self.value = nn.Linear(into, d), nn.Linear(into, d)
        if mask:
            self.register_buffer("mask", torch.tril(torch.ones(1, 1, mask, mask)))

    def forward(self, x, y):
        split = lambda z: z.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k, v = split(self.query(x)), split(self.key(y)), split(self.value(y))
        w = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((w @ v).transpose(1, 2).flatten(2))


class ConvMLP(nn.Module):
    def __init__(self, d, ratio):
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(d, ratio * d, 3, padding=1),
            nn.Conv2d(ratio * d, d, 3, padding=1),
        )

    def forward(self, x):
        side = math.isqrt(x.shape[1])
        x = x.transpose(1, 2).unflatten(2, (side, side))
        x = self.conv1(x)
        return self.conv2(x * torch.sigmoid(1.702 * x)).flatten(2).transpose(1, 2)


class GELU2(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, d, heads, ratio, mlp, condition, T, text_width, class_rows, n):
        super().__init__()
        self.condition = condition
        self.ln1 = Ada(T, d)
        if condition == "text":
            self.attn1, self.attn2 = Attention(d, heads, d, 0), Attention(d, heads, text_width, n)
            self.ln1_1 = Ada(T, d)
        else:
            self.attn = Attention(d, heads, d, 0)
        self.ln2 = Ada(class_rows, d) if condition == "class" else nn.LayerNorm(d)
        self.mlp = (
            ConvMLP(d, ratio)
            if mlp == "conv"
            else nn.Sequential(nn.Linear(d, ratio * d), GELU2(), nn.Linear(ratio * d, d))
        )

    def forward(self, h, t, c):
        x = self.ln1(h, t)
        h = h + (self.attn1 if self.condition == "text" else self.attn)(x, x)
        if self.condition == "text":
            h = h + self.attn2(self.ln1_1(h, t), c)
        return h + self.mlp(self.ln2(h, c) if self.condition == "class" else self.ln2(h))


class Content(nn.Module):
    def __init__(self, codes, positions, d):
        super().__init__()
        self.emb = nn.Embedding(codes + 1, d)
        self.height_emb, self.width_emb = (
            nn.Embedding(positions[0], d),
            nn.Embedding(positions[1], d),
        )

    def forward(self, z):
        place, width = torch.arange(z.shape[1]), self.width_emb.num_embeddings
        return self.emb(z) + self.height_emb(place // width) + self.width_emb(place % width)


class Transformer(nn.Module):
    """Logits (n, codes) of x_0 for one image; t counts from 0, as in the released code."""

    def __init__(
        self,
        *,
        codes,
        side,
        positions,
        d,
        heads,
        layers,
        ratio,
        mlp,
        condition,
        T,
        text_width=8,
        class_rows=0,
    ):
        super().__init__()
        self.content_emb = Content(codes, positions, d)
        self.blocks = nn.ModuleList(
            Block(d, heads, ratio, mlp, condition, T, text_width, class_rows, side * side)
            for _ in range(layers)
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, codes))

    def forward(self, z, t, c):
        h = self.content_emb(z[None])
        for block in self.blocks:
            h = block(h, t, c)
        return self.to_logits(h)[0]


class ResBlock(nn.Module):
    def __init__(self, into, out):
        super().__init__()
        self.norm1, self.conv1 = (
            nn.GroupNorm(32, into, eps=1e-6),
            nn.Conv2d(into, out, 3, padding=1),
        )
        self.norm2, self.conv2 = nn.GroupNorm(32, out, eps=1e-6), nn.Conv2d(out, out, 3, padding=1)
        if into != out:
            self.nin_shortcut = nn.Conv2d(into, out, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class SpatialAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = nn.GroupNorm(32, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))
        w = (q.transpose(1, 2) @ k * x.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out((v @ w.transpose(1, 2)).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, c, up):
        super().__init__()
        self.up, self.conv = (
            up,
            nn.Conv2d(c, c, 3, padding=1) if up else nn.Conv2d(c, c, 3, stride=2),
        )

    def forward(self, x):
        return self.conv(
            F.interpolate(x, scale_factor=2.0, mode="nearest")
            if self.up
            else F.pad(x, (0, 1, 0, 1))
        )


class Level(nn.Module):
    def __init__(self, into, out, blocks, attention, resample):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(into if j == 0 else out, out) for j in range(blocks))
        self.attn = nn.ModuleList(SpatialAttention(out) for _ in range(blocks * attention))
        if resample:
            setattr(self, resample, Resample(out, resample == "upsample"))

    def forward(self, x):
        for j, block in enumerate(self.block):
            x = block(x)
            x = self.attn[j](x) if len(self.attn) else x
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Middle(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = (
            ResBlock(c, c),
            SpatialAttention(c),
            ResBlock(c, c),
        )

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, ch, mult, blocks, attention, z):
        super().__init__()
        widths = [ch, *(ch * m for m in mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                widths[i],
                widths[i + 1],
                blocks,
                i in attention,
                "downsample" if i < len(mult) - 1 else "",
            )
            for i in range(len(mult))
        )
        self.mid, self.norm_out = Middle(widths[-1]), nn.GroupNorm(32, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, ch, mult, blocks, attention, z):
        super().__init__()
        widths = [ch * m for m in mult]
        above = [*widths[1:], widths[-1]]
        self.conv_in, self.mid = nn.Conv2d(z, widths[-1], 3, padding=1), Middle(widths[-1])
        self.up = nn.ModuleList(
            Level(above[i], widths[i], blocks + 1, i in attention, "upsample" if i else "")
            for i in range(len(mult))
        )
        self.norm_out, self.conv_out = (
            nn.GroupNorm(32, widths[0], eps=1e-6),
            nn.Conv2d(widths[0], 3, 3, padding=1),
        )

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantiser(nn.Module):
    """`kind`: gumbel (proj, embed), nearest (embedding) or ema (a bare embedding with its
    averages).
    """

    def __init__(self, kind, codes, width):
        super().__init__()
        self.kind = kind
        if kind == "gumbel":
            self.proj, self.embed = nn.Conv2d(width, codes, 1), nn.Embedding(codes, width)
        elif kind == "nearest":
            self.embedding = nn.Embedding(codes, width)
        else:
            self.embedding = nn.Parameter(torch.zeros(codes, width))
            self.register_buffer("cluster_size", torch.ones(codes))
            self.register_buffer("embedding_avg", torch.ones(codes, width))

    @property
    def vectors(self):
        return {
            "gumbel": lambda: self.embed.weight,
            "nearest": lambda: self.embedding.weight,
            "ema": lambda: self.embedding,
        }[self.kind]()

    def forward(self, z):
        """The most likely codes (b, h, w)."""
        if self.kind == "gumbel":
            return self.proj(z).argmax(1)
        flat = z.permute(0, 2, 3, 1)
        return (
            torch.cdist(flat.reshape(1, -1, flat.shape[-1]).double(), self.vectors[None].double())
            .argmin(-1)
            .reshape(flat.shape[:-1])
        )


class Codec(nn.Module):
    def __init__(self, *, kind, codes, width, ch=32, mult=(1, 2), blocks=1, attention=(1,), z=16):
        super().__init__()
        self.encoder, self.decoder = (
            Encoder(ch, mult, blocks, attention, z),
            Decoder(ch, mult, blocks, attention, z),
        )
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, width, 1), nn.Conv2d(width, z, 1)
        self.quantize = Quantiser(kind, codes, width)

    def encode(self, x):
        return self.quantize(self.quant_conv(self.encoder(x)))

    def decode(self, index):
        return self.decoder(self.post_quant_conv(self.quantize.vectors[index].permute(0, 3, 1, 2)))


def tables(T, codes):
    """Buffers of a checkpoint, by the released formulas in float64."""
    i = torch.arange(T, dtype=torch.float64) / (T - 1)
    at, ct = i * (9e-6 - 0.99999) + 0.99999, i * (0.99999 - 9e-6) + 9e-6
    bt = (1 - at - ct) / codes
    one = lambda x, first: x / torch.cat([torch.tensor([first], dtype=torch.float64), x[:-1]])
    a, c = one(at, 1.0), 1 - one(1 - ct, 1.0)
    b = (1 - a - c) / codes
    end = lambda x, last: torch.cat([x, torch.tensor([last], dtype=torch.float64)])
    out = {
        "log_at": a.log(),
        "log_bt": b.log(),
        "log_ct": c.log(),
        "log_1_min_ct": (1 - c).log(),
        "log_cumprod_at": end(at, 1.0).log(),
        "log_cumprod_bt": end(bt, 0.0).log(),
        "log_cumprod_ct": end(ct, 0.0).log(),
        "log_1_min_cumprod_ct": (1 - end(ct, 0.0)).log(),
    }
    return {name: x.float() for name, x in out.items()} | {
        "Lt_history": torch.zeros(T),
        "Lt_count": torch.zeros(T),
    }


def clip(width, layers, scale=0.2, seed=0):
    """A text tower with OpenAI's names."""
    g, e = torch.Generator().manual_seed(seed), width
    new = lambda *shape: scale * torch.randn(shape, generator=g)
    out = {
        "token_embedding.weight": new(49408, e),
        "positional_embedding": new(77, e),
        "ln_final.weight": new(e) + 1,
        "ln_final.bias": new(e),
        "text_projection": new(e, e),
    }
    for i in range(layers):
        b = f"transformer.resblocks.{i}."
        out |= {b + "attn.in_proj_weight": new(3 * e, e), b + "attn.in_proj_bias": new(3 * e)}
        for name, o, n in (
            ("attn.out_proj", e, e),
            ("mlp.c_fc", 4 * e, e),
            ("mlp.c_proj", e, 4 * e),
        ):
            out |= {f"{b}{name}.weight": new(o, n), f"{b}{name}.bias": new(o)}
        for name in ("ln_1", "ln_2"):
            out |= {f"{b}{name}.weight": new(e) + 1, f"{b}{name}.bias": new(e)}
    return out


def checkpoint(network, codec, *, T, codes, clip=None, null=None):
    """A checkpoint of the released training code: the model, and its EMA, which differs everywhere."""
    diffusion = {f"transformer.{k}": v for k, v in network.state_dict().items()} | tables(T, codes)
    diffusion |= {f"condition_emb.{k}": v for k, v in (clip or {}).items()}
    diffusion |= {} if null is None else {"empty_text_embed": null}
    other = {
        k: v + 1 if k.startswith("transformer.") and v.is_floating_point() else v
        for k, v in diffusion.items()
    }
    model = {f"transformer.{k}": v for k, v in other.items()}
    for key, value in codec.state_dict().items():
        one = {
            "encoder": "enc",
            "quant_conv": "enc",
            "decoder": "dec",
            "post_quant_conv": "dec",
        }.get(key.split(".")[0])
        model |= {
            f"content_codec.{side}.{key}": value for side in ([one] if one else ["enc", "dec"])
        }
    return {"last_epoch": 9, "last_iter": 99, "model": model, "ema": diffusion}
