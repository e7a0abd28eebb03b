"""Makes qwen.tiktoken: byte pairs learnt from the demo model's own sentences and the project's licence.

    python -m examples.demo_model.make_vocabulary

Deterministic: the same sentences give the same ranks. The special tokens follow the ranks, as in the official one.
"""

import base64
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import regex  # comes with tiktoken

from vlm_trt.evaluation.scenes.questions import Asker, draw_language
from vlm_trt.evaluation.scenes.scene import WORDS, sample_scene
from vlm_trt.families.qwen_vl.tokenizer import PATTERN

ROOT = Path(__file__).parent.parent.parent
TARGET = Path(__file__).parent / "qwen.tiktoken"
RANKS = 2048 - 217  # with the special tokens the vocabulary has 2048
SENTENCES = 20_000


def corpus(sentences: int) -> str:
    """Questions and answers about training scenes, and general English from the licence."""
    random = np.random.default_rng(7)
    lines = [(ROOT / "LICENSE").read_text(encoding="utf-8"), "You are a helpful assistant.\n", "\n".join(WORDS)]
    for i in range(sentences):
        scenes = tuple(sample_scene(random, "train") for _ in range(1 + (i % 5 == 0)))
        question = Asker(random, scenes, draw_language(random)).ask()
        turns = (*question.history, (question.prompt, question.answer))
        lines += [f"{asked}\n{answered}" for asked, answered in turns]
    return "\n".join(lines)


def learn_ranks(text: str, size: int) -> list[bytes]:
    """Tokens in rank order: all bytes, then the commonest pair of tokens again and again.

    Source: Sennrich et al. 2016, section 3.2, over bytes and inside the pieces of Qwen's pattern.
    """
    pieces = Counter(piece.encode() for piece in regex.findall(PATTERN, text))
    words = {tuple(bytes([byte]) for byte in piece): count for piece, count in pieces.items()}
    ranks = [bytes([byte]) for byte in range(256)]
    while len(ranks) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        ranks.append(best[0] + best[1])
        words = {merged(word, best): count for word, count in words.items()}
    return ranks


def merged(word: tuple[bytes, ...], pair: tuple[bytes, bytes]) -> tuple[bytes, ...]:
    """The word with every such pair made one token."""
    out: list[bytes] = []
    for token in word:
        if out and (out[-1], token) == pair:
            out[-1] += token
        else:
            out.append(token)
    return tuple(out)


def main() -> None:
    ranks = learn_ranks(corpus(SENTENCES), RANKS)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(ranks)))
    print(f"{len(ranks)} ranks in {TARGET}")


if __name__ == "__main__":
    main()
