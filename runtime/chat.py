"""A conversation with one model, turn by turn."""

from collections.abc import Generator as Pieces
from collections.abc import Sequence
from contextlib import closing

from vlm_trt.families.messages import Message, Part, Text
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import DEFAULTS, Options


class Chat:
    """Each turn prefills only what is new."""

    def __init__(self, model: VisionLanguageModel, system: str | None = None) -> None:
        self._model = model
        self.messages: list[Message] = [] if system is None else [Message("system", system)]

    def stream(
        self, parts: str | Sequence[str | Part], options: Options = DEFAULTS
    ) -> Pieces[str | Answer, None, None]:
        """The answer to the user's next turn, piece by piece, and at last the Answer; then it is remembered."""
        return self._model.open(self._turn(Message("user", parts), options))

    def _turn(self, message: Message, options: Options) -> Pieces[str | Answer, None, None]:
        asked = [*self.messages, message]
        with closing(self._model.stream(asked, options=options)) as pieces:
            for piece in pieces:
                if isinstance(piece, Answer):
                    stop_ids = self._model.tokenizer.stop_ids
                    said = piece.ids[:-1] if piece.ids and piece.ids[-1] in stop_ids else piece.ids
                    self.messages = [*asked, Message("assistant", (Text(piece.text),), ids=said)]
                yield piece
