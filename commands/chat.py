"""`vlm-trt chat`: turn by turn, streaming, with pictures and videos."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import PromptError, UsageError, VlmTrtError
from vlm_trt.commands.generate import load_with, look_of, show_end
from vlm_trt.commands.interrupt import forget
from vlm_trt.commands.shown import read_images, read_shown, read_videos
from vlm_trt.commands.terminal import printable, say, standard_input
from vlm_trt.commands.typed_paths import complete_with, completed, typed_paths
from vlm_trt.families.clips import Video
from vlm_trt.families.messages import Image, Look, Part, Text
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.model import Answer, VisionLanguageModel

HELP = """/image PATH   add a picture to the next turn; tab completes the path, blanks stand in quotes or as they are
/video PATH   add a video likewise
/reset        forget the conversation
/help         this text
/quit         leave (or Ctrl-D)"""


def run(bundle: Path, images: Sequence[Path], videos: Sequence[Path], system: str | None, **rest: Any) -> None:
    standard_input()
    look, rest = look_of(**rest)
    pending = read_shown(images, videos, look)
    model, options = load_with(bundle, look, **rest)
    if not model.manifest.model.generation.chat_format.converses:
        raise UsageError(f"{bundle} is of a base model, which answers one text and does not chat; use generate")
    complete_with(completed_lines)  # arrow keys and a history at the prompt, too
    chat = Chat(model, system)
    say(f"{model.manifest.model.family} in {model.engine.precision} on {model.engine.backend.name}; /help for help")
    while True:
        line = _typed()
        if line is None:
            return
        command, _, argument = line.partition(" ")
        match command:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/help":
                click.echo(HELP)
            case "/reset":
                chat, pending = Chat(model, system), []
                click.echo("The conversation is forgotten.")
            case "/image" | "/video":
                pending += _named(command, argument.strip(), look)
            case _ if command.startswith("/"):
                click.echo(f"{command} is no command; /help lists them, and a turn may not start with a slash")
            case _:
                if _turn(model, chat, [*pending, Text(line)], options):
                    pending = []


def completed_lines(line: str) -> list[str]:
    """All that a line may become when the tab key is pressed: a command, or one with its path."""
    command, blank, path = line.partition(" ")
    if blank:
        return [f"{command} {one}" for one in completed(path)] if command in ("/image", "/video") else []
    return [one for one in ("/help", "/image ", "/quit", "/reset", "/video ") if line and one.startswith(line)]


def _typed() -> str | None:
    """The user's next line, None at the end; a pipe sees no prompt between the answers."""
    try:
        stdin = standard_input()
        if stdin.isatty():
            return str(click.prompt("You", prompt_suffix="> ", default="", show_default=False)).strip()
        line = stdin.readline()
        return line.strip() if line else None
    except click.Abort:
        click.echo()
        return None
    except UnicodeDecodeError as error:
        raise PromptError(f"what was typed is no UTF-8 text ({error.reason}); convert it") from None


def _named(command: str, typed: str, look: Look) -> Sequence[Image | Video]:
    """The pictures or videos at the paths typed, or nothing and a line that says why."""
    found: Sequence[Image | Video]
    try:
        paths = typed_paths(typed, command)
        found = read_images(paths, look) if command == "/image" else read_videos(paths)
    except UsageError as error:
        click.echo(printable(str(error)))
        return []
    for one in found:
        click.echo(f"{printable(one.name)} goes with your next turn.")
    return found


def _turn(model: VisionLanguageModel, chat: Chat, parts: Sequence[Part], options: Any) -> bool:
    """Whether the turn was answered; one that was not leaves conversation and pictures as they were."""
    try:
        with closing(chat.stream(parts, options)) as pieces:
            for piece in pieces:
                if isinstance(piece, Answer):
                    click.echo()
                    show_end(piece, model)
                else:
                    click.echo(printable(piece), nl=False)
    except VlmTrtError as error:
        click.echo(printable(str(error)))
        return False
    except KeyboardInterrupt:
        forget()
        click.echo("\n(stopped; this turn is forgotten)")
        return False
    return True
