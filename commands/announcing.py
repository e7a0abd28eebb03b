"""What a server says once it answers: where it listens, and a first request that works as it is printed."""

import json
import shlex

import click


def announce(url: str, model: str, *, with_key: bool) -> None:
    """On standard output."""
    body = {"model": model, "messages": [{"role": "user", "content": "What can you see in pictures?"}]}
    key = ' -H "Authorization: Bearer $VLM_TRT_API_KEY"' if with_key else ""
    click.echo(f"listening on {url}")
    click.echo(
        f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} "
        f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}"
    )
