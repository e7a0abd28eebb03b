"""Messages → token ids, as LLaVA-1.5's published chat template has it: `USER: <image>\\nquestion ASSISTANT:`.

Template and user text between two control tokens are encoded together, as the original encodes them, with control
tokens off; pictures and exact answers are parts beside it.
"""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Room, exact_ids, fitted, joined_texts, text_alone
from vlm_trt.families.tokenizer_json import JsonTokenizer

BEGINNING = "<s>"
PLACEHOLDER = "<image>"

# Text, a picture, or an answer's exact ids.
Stretch = str | Image | tuple[int, ...]


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of a conversation.

    Args:
        messages: an optional system message, then turns, the last one the user's.
        tokenizer: of the checkpoint.
        model: its tokens per picture and its history window.
        max_tokens: positions the prompt may have.
    Returns:
        As much of the conversation as fits, the oldest turns left out.
    Raises:
        PromptError: the messages are no conversation, hold a region, or the last turn does not fit.
    Source: the chat template of llava-hf/llava-1.5-7b-hf.
    """
    room = Room(max_tokens, tokenizer.longest_token, model.tile_tokens)

    def piece(kept: Sequence[Message]) -> Piece:
        written = [stretch for message in kept for stretch in _written(message)]
        return _encoded([*written, "ASSISTANT:"], tokenizer, model.tile_tokens)

    return fitted(messages, room, model.generation.max_window_tokens, piece)


def continue_text(text: str, tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text to be continued.

    Raises:
        PromptError: it does not fit.
    """
    return text_alone(text, (tokenizer.id_of(BEGINNING),), tokenizer, max_tokens)


def _written(message: Message) -> list[Stretch]:
    """A message as the template writes it: the role, its pictures, its texts, a blank behind each."""
    role = "" if message.role == "system" else f"{message.role.upper()}:"
    if (ids := exact_ids(message)) is not None:
        return [role, ids, " "]
    if any(isinstance(part, Region) for part in message.parts):
        raise PromptError("LLaVA has no notation for regions; describe the place in words, or send the part cut out")
    written: list[Stretch] = [role and f"{role} "]
    for part in message.parts:
        if isinstance(part, Image):
            written += [part, "\n"]
    texts = [part.text for part in joined_texts(message.parts) if isinstance(part, Text)]
    return [*written, *(f"{text} " for text in texts)]


def _encoded(written: Sequence[Stretch], tokenizer: JsonTokenizer, picture_tokens: int) -> Piece:
    """The ids of all of it, neighbouring texts encoded as one."""
    piece, text, behind_answer = Piece((tokenizer.id_of(BEGINNING),)), "", False
    for stretch in (*written, ()):  # at last nothing, so that the last text is encoded
        if isinstance(stretch, str):
            text += stretch
            continue
        if behind_answer and tokenizer.drops_first_blank:
            # Encoding writes the blank between the answer and what follows; the answer's first word has its own.
            piece += Piece(tuple(tokenizer.encode(text.removeprefix(" "))))
        elif text:
            piece += Piece(tuple(tokenizer.encode(text, later=len(piece.ids) > 1)))
        if isinstance(stretch, Image):
            piece += Piece.picture(stretch, (tokenizer.id_of(PLACEHOLDER),) * picture_tokens)
        else:
            piece += Piece(stretch)
        text, behind_answer = "", isinstance(stretch, tuple)
    return piece
