"""The demo model's sizes, and the config.json that says them in the official layout."""

from dataclasses import dataclass

EPS = 1e-6


@dataclass(frozen=True)
class Sizes:
    """The demo model's. The vocabulary holds the ranks of its tokenizer and the special tokens."""

    image_size: int = 128
    patch_size: int = 16
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    vision_mlp_ratio: float = 3.0
    queries: int = 64
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    mlp_width: int = 192
    vocab: int = 2048
    trained_tokens: int = 512

    @property
    def grid(self) -> int:
        return self.image_size // self.patch_size

    def config(self, image_start_id: int) -> dict[str, object]:
        """config.json in the official layout."""
        return {
            "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "kv_channels": self.hidden // self.heads, "intermediate_size": 2 * self.mlp_width,
            "vocab_size": self.vocab, "layer_norm_epsilon": EPS, "max_position_embeddings": 2048,
            "seq_length": self.trained_tokens, "rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True,
            "use_dynamic_ntk": True, "use_logn_attn": True, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "visual": {
                "heads": self.vision_heads, "image_size": self.image_size, "image_start_id": image_start_id,
                "layers": self.vision_layers, "mlp_ratio": self.vision_mlp_ratio, "n_queries": self.queries,
                "output_dim": self.hidden, "patch_size": self.patch_size, "width": self.vision_width,
            },
        }  # fmt: skip
