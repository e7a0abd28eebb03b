"""Writes docs/cli.md from the commands themselves; a test fails when it is stale.

python scripts/make_cli_reference.py
"""

import sys
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "cli.md"
sys.path.insert(0, str(ROOT))

_HEAD = r"""# Command line

Made by `scripts/make_cli_reference.py` from the commands; do not edit.

Every command that has a result prints it on standard output, with `--json` as one JSON document; progress, warnings
and errors go to standard error. Ctrl-C ends any command with `vlm-trt: interrupted` and exit code 130.

Where optimum is installed (extra `optimum`), `optimum-cli export vlm-trt CHECKPOINT BUNDLE` is `vlm-trt export`, with
the same options, errors and exit codes.

A shell completes commands, options, their values and paths after one line in its start-up file:

| shell | line | in |
| --- | --- | --- |
| bash | `eval "$(_VLM_TRT_COMPLETE=bash_source vlm-trt)"` | `~/.bashrc` |
| zsh | `eval "$(_VLM_TRT_COMPLETE=zsh_source vlm-trt)"` | `~/.zshrc` |
| fish | `_VLM_TRT_COMPLETE=fish_source vlm-trt \| source` | `~/.config/fish/completions/vlm-trt.fish` |
"""


def reference() -> str:
    """The text of docs/cli.md."""
    from vlm_trt.cli import main

    parts = [_HEAD]
    parts.append(_section(main, "vlm-trt", None))
    parent = click.Context(main, info_name="vlm-trt")
    for name, command in sorted(main.commands.items()):
        parts.append(_section(command, f"vlm-trt {name}", parent))
        if isinstance(command, click.Group):
            within = click.Context(command, info_name=name, parent=parent)
            members = sorted(command.commands.items())
            parts += [_section(member, f"vlm-trt {name} {of_it}", within) for of_it, member in members]
    return "\n".join(parts)


def _section(command: click.Command, title: str, parent: click.Context | None) -> str:
    name = title.rpartition(" ")[2]
    context = click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=100)
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET}")
