"""Messages → token ids, as LLaVA-1.5's published chat template has it: `USER: <image>\\nquestion ASSISTANT:`.

Template and user text between two control tokens are encoded together, as the original encodes them, with control
tokens off; pictures and exact answers are parts beside it.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Room, exact_ids, joined_texts, split_conversation, text_alone
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
    system, turns, query = split_conversation(messages)
    head = [] if system is None else [system]
    room = Room(max_tokens, tokenizer.longest_token, model.connector.tokens)
    room.require_possible([*head, query])

    def piece(keep: int) -> Piece:
        kept = [message for turn in turns[len(turns) - keep :] for message in turn]
        written = [stretch for message in (*head, *kept, query) for stretch in _written(message)]
        return _encoded([*written, "ASSISTANT:"], tokenizer, model.connector.tokens)

    room.require_fit(piece(0))
    least, possible = 0, 0
    for turn in reversed(turns):
        least += sum(1 + room.least_tokens(message) for message in turn)  # 1: the role
        if least > max_tokens:
            break
        possible += 1
    longest = min(max_tokens, model.generation.max_window_tokens)
    keep = _most(possible, lambda keep: len(piece(keep).ids) <= longest)
    return piece(keep).prompt(model.connector.tokens, dropped_turns=len(turns) - keep)


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
            piece += Piece((tokenizer.id_of(PLACEHOLDER),) * picture_tokens, ((0, stretch),))
        else:
            piece += Piece(stretch)
        text, behind_answer = "", isinstance(stretch, tuple)
    return piece


def _most(possible: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `possible` that fits; from small ones on, as large ones take longer to try."""
    low, high = 0, 1
    while high <= possible and fits(high):
        low, high = high, 2 * high
    between = range(low + 1, min(high, possible + 1))
    return low + bisect_left(between, True, key=lambda number: not fits(number))
