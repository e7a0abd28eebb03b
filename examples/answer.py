"""The Python API in a few lines: load a verified bundle once, then answer, stream, and talk.

python examples/answer.py BUNDLE PICTURE
"""

import sys
from pathlib import Path

from vlm_trt import Answer, Chat, Image, Options, Text, load


def main(bundle: str, picture: str) -> None:
    model = load(bundle)
    data = Path(picture).read_bytes()

    # One question about one picture.
    answer = model.generate("What is in the picture?", images=[data], options=Options(greedy=True, max_new_tokens=24))
    print(answer.plain_text, answer.finish_reason, [place.points for place in answer.groundings])

    # The same, piece by piece; the last piece is the whole Answer.
    for piece in model.stream("What is in the picture?", images=[data], options=Options(seed=7, max_new_tokens=24)):
        print(piece if isinstance(piece, str) else f"\n({len(piece.ids)} tokens)", end="")
    print()

    # A conversation: the second turn prefills only what is new.
    chat = Chat(model)
    turns: tuple[list[Image | Text], ...] = (
        [Image(data, "scene.png"), Text("What is this?")],
        [Text("And what colour is it?")],
    )
    for turn in turns:
        for piece in chat.stream(turn, Options(greedy=True, max_new_tokens=16)):
            if isinstance(piece, Answer):
                print(f"{len(piece.prompt_ids)} tokens, {piece.reused_tokens} of them from the cache")


if __name__ == "__main__":
    main(*sys.argv[1:])
