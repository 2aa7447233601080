"""SmolLM2-135M-Instruct from its GGUF file: its tokenizer, and the model as a ranker that can be fine-tuned, one linear head on the
last token of a chat that ends where the answer would begin."""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

TEMPLATE = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"


def tokenizer_of(reader):
    words = lambda key: [bytes(reader.fields[key].parts[part]).decode() for part in reader.fields[key].data]
    vocabulary = {piece: number for number, piece in enumerate(words("tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in words("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([digits, level]), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    return tokenizer


class Facts:
    """A GGUF file's sizes of a model of Llama's shape."""

    def __init__(self, reader):
        number = lambda key: reader.fields[f"llama.{key}"].parts[-1][0].item()
        self.layers, self.width = number("block_count"), number("embedding_length")
        self.heads, self.shared, self.head = number("attention.head_count"), number("attention.head_count_kv"), number("rope.dimension_count")
        self.epsilon, self.base = number("attention.layer_norm_rms_epsilon"), number("rope.freq_base")


def turned(x, cos, sin):
    """Rotary positions, on adjacent pairs as a GGUF file has them."""
    one, two = x[..., 0::2], x[..., 1::2]
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


class Batch:
    """Texts laid after one another, so that no padding is multiplied: `ids`, each token's `place` in its text, and where it stands in
    rows of equal length, which only attention sees."""

    def __init__(self, texts):
        lengths = np.array([len(text) for text in texts])
        self.rows, self.longest = len(texts), int(-(-lengths.max() // 8) * 8)
        place = np.concatenate([np.arange(length) for length in lengths])
        put = lambda array: torch.tensor(array.astype(np.int64)).to("cuda", non_blocking=True)
        self.ids, self.place, self.last = put(np.concatenate(texts)), put(place), put(np.cumsum(lengths) - 1)
        self.index = put(np.repeat(np.arange(len(texts)), lengths) * self.longest + place)

    def attended(self, qkv, heads, shared):
        """Causal attention within each text; the last `shared` heads of keys and of values serve several of queries each."""
        size = qkv.shape[1] // (heads + 2 * shared)
        rows = torch.zeros(self.rows * self.longest, qkv.shape[1], dtype=qkv.dtype, device=qkv.device).index_copy(0, self.index, qkv)
        q, k, v = rows.view(self.rows, self.longest, -1, size).transpose(1, 2).split([heads, shared, shared], 1)
        k, v = (x.repeat_interleave(heads // shared, 1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(self.rows * self.longest, -1)[self.index]


class Ranker(nn.Module):
    """Token ids of chats -> a score each, higher for shorter answers."""

    def __init__(self, path):
        super().__init__()
        reader = GGUFReader(path)
        self.facts = Facts(reader)
        raw = {tensor.name: torch.tensor(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors}
        w = {"words": raw["token_embd.weight"], "norm": raw["output_norm.weight"]}
        for i in range(self.facts.layers):
            part = lambda name: raw[f"blk.{i}.{name}.weight"]
            w[f"{i}/qkv"] = torch.cat([part(f"attn_{name}") for name in "qkv"])
            w[f"{i}/up"] = torch.cat([part("ffn_gate"), part("ffn_up")])
            w[f"{i}/o"], w[f"{i}/down"] = part("attn_output"), part("ffn_down")
            w[f"{i}/norm1"], w[f"{i}/norm2"] = part("attn_norm"), part("ffn_norm")
        self.w = nn.ParameterDict({name: nn.Parameter(value.float()) for name, value in w.items()})
        self.head = nn.Linear(self.facts.width, 1)

    def parameters_of(self, layer):
        """The weights of one layer; those before the first for -1."""
        of = lambda name: int(name.split("/")[0]) if "/" in name else -1 if name == "words" else self.facts.layers - 1
        return [value for name, value in self.w.items() if of(name) == layer]

    def norm(self, x, name):
        return F.rms_norm(x, (self.facts.width,), self.w[name], self.facts.epsilon)

    def pooled(self, batch):
        heads, shared, size = self.facts.heads, self.facts.shared, self.facts.head
        pairs = torch.arange(0, size, 2, device="cuda").float() / size
        angle = batch.place.float()[:, None] * self.facts.base ** -pairs
        x = self.w["words"][batch.ids]
        for i in range(self.facts.layers):
            qkv = F.linear(self.norm(x, f"{i}/norm1"), self.w[f"{i}/qkv"]).view(len(x), -1, size)
            cos, sin = angle.cos()[:, None].to(qkv.dtype), angle.sin()[:, None].to(qkv.dtype)
            turning, still = qkv.split([heads + shared, shared], 1)
            qkv = torch.cat([turned(turning, cos, sin), still], 1).flatten(1)
            x = x + F.linear(batch.attended(qkv, heads, shared), self.w[f"{i}/o"])
            gate, up = F.linear(self.norm(x, f"{i}/norm2"), self.w[f"{i}/up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, self.w[f"{i}/down"])
        return self.norm(x[batch.last], "norm").float()

    def forward(self, batch):
        return self.head(F.dropout(self.pooled(batch), 0.1, self.training)).squeeze(-1).float()
