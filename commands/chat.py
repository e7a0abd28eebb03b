"""`vlm-trt chat`: turn by turn, streaming, with pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from bundle.errors import UsageError
from commands.generate import load_with, read_images, show_groundings
from commands.terminal import printable, say
from models.messages import Image, Part, Text
from runtime.model import Answer, Chat

HELP = """/image PATH   add a picture to the next turn
/reset        forget the conversation
/help         this text
/quit         leave (or Ctrl-D)"""


def run(bundle: Path, images: Sequence[Path], system: str | None, **rest: Any) -> None:
    pending = read_images(images)
    model, options = load_with(bundle, **rest)
    if model.manifest.model.generation.chat_format == "raw":
        raise UsageError(f"{bundle} is of the base model, which continues one text and does not chat; use generate")
    chat = Chat(model, system)
    say(f"{model.manifest.model.family} in {model.engine.precision} on {model.engine.backend.name}; /help for help")
    while True:
        try:
            line = click.prompt("You", prompt_suffix="> ", type=str, default="", show_default=False).strip()
        except click.Abort:
            click.echo()
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
            case "/image":
                pending += _picture(argument.strip())
            case _ if command.startswith("/"):
                click.echo(f"{command} is no command; /help lists them, and a turn may not start with a slash")
            case _:
                _turn(chat, [*pending, Text(line)], options)
                pending = []


def _picture(path: str) -> list[Image]:
    """The picture at that path, or nothing and a line that says why."""
    try:
        found = read_images([Path(path).expanduser()])
    except UsageError as error:
        click.echo(str(error))
        return []
    click.echo(f"{found[0].name} goes with your next turn.")
    return found


def _turn(chat: Chat, parts: Sequence[Part], options: Any) -> None:
    """One answer; a turn that cannot be answered leaves the conversation as it was."""
    try:
        for piece in chat.stream(parts, options):
            if isinstance(piece, Answer):
                click.echo()
                show_groundings(piece)
            else:
                click.echo(printable(piece), nl=False)
    except UsageError as error:
        click.echo(str(error))
    except KeyboardInterrupt:
        click.echo("\n(stopped; this turn is forgotten)")
