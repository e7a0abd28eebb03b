"""What options of `serve` may be."""

from pathlib import Path
from typing import Any

import click

from vlm_trt.commands.values import PATH, TEXT, Context, Number, Parameter


class NamedBundle(click.ParamType[tuple[str, Path]]):
    """A bundle by the name that requests call it."""

    name = "name=bundle"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, Path]:
        if not isinstance(value, str):
            return tuple(value)
        name, equals, path = TEXT.convert(value, param, ctx).partition("=")
        if not (name and equals and path):
            self.fail(f"{value!r} names no bundle; write name=folder", param, ctx)
        return name, PATH.convert(path, param, ctx)


class MediaHost(click.ParamType[str]):
    """A host's name, with a port where it is not the scheme's own."""

    name = "host[:port]"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> str:
        text = TEXT.convert(value, param, ctx).lower()
        host, colon, port = text.partition(":")
        if "/" in text or not (host and host.isascii() and all(c.isalnum() or c in ".-" for c in host)):
            self.fail(f"{value!r} is no host's name; write one such as pictures.example.com", param, ctx)
        if colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
            self.fail(f"{value!r} has no such port; write one from 1 to 65535, or none", param, ctx)
        return text


NAMED_BUNDLE, MEDIA_HOST = NamedBundle(), MediaHost()
PORT = click.IntRange(0, 65535)
WAITING, PER_KEY = click.IntRange(0, 100_000), click.IntRange(1, 100_000)
SECONDS, SOME_SECONDS = Number(0, 86_400), Number(0, 86_400, min_open=True)
