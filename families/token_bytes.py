"""Tokens as vocabularies write them → the bytes they stand for."""

import re
from collections.abc import Sequence
from functools import cache

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level(token: str) -> bytes:
    """Bytes of a token in GPT-2's alphabet; of one with other characters, as added tokens may be, its own."""
    alphabet = _alphabet()
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def replaced(token: str, replacements: Sequence[tuple[str, str]], *, byte_fallback: bool) -> bytes:
    """Bytes of a token of SentencePiece's kind: `▁` is a blank, `<0x0A>` a byte."""
    for old, new in replacements:
        token = token.replace(old, new)
    if byte_fallback and (byte := _FALLBACK.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.encode()


@cache
def _alphabet() -> dict[str, int]:
    """Character → byte: printable bytes are themselves, the others follow from U+0100 on.

    Source: GPT-2's published encoder, `bytes_to_unicode`.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
