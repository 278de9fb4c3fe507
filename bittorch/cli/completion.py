"""`bittorch completion`: a script for a shell, whose Tab then completes commands and options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator
from typing import Any

from bittorch.cli.arguments import output_options
from bittorch.cli.console import Console
from bittorch.cli.errors import OK

SHELLS = ("bash", "zsh", "fish")
# What stands before a word decides what it may become: the words of the commands before it, then its own beginning.
BASH = """_bittorch() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command="" word
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$command $word" in
            {commands}) command="$command $word" ;;
        esac
    done
    case "$command $previous" in
{choices}
    esac
    case "$command" in
{options}
    esac
}}
complete -o bashdefault -o default -F _bittorch bittorch
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and options by Tab",
        description='Prints a script for SHELL. bash: eval "$(bittorch completion bash)" in ~/.bashrc; zsh: the same '
        "with zsh in ~/.zshrc; fish: bittorch completion fish > ~/.config/fish/completions/bittorch.fish",
        parents=[output_options()],
        allow_abbrev=False,
    )
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    parser.set_defaults(execute=execute)


def execute(args: argparse.Namespace, console: Console) -> int:
    writers: dict[str, Callable[[argparse.ArgumentParser], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
    script = writers[args.shell](args.program)
    console.write(script)
    console.object({"shell": args.shell, "script": script})
    return OK


def parsers(
    parser: argparse.ArgumentParser, path: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, list[str]]]:
    """Every parser: the words that lead to it, each after a space; itself; the names of those below it."""
    below = {
        name: child
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, child in action.choices.items()
    }
    yield path, parser, list(below)
    for name, child in below.items():
        yield from parsers(child, f"{path} {name}")


def bash(parser: argparse.ArgumentParser) -> str:
    """The script of bash."""
    every = list(parsers(parser))
    commands = "|".join(f'"{path}"' for path, _, _ in every if path)
    choices, options = [], []
    for path, child, below in every:
        words = [option for action in child._actions for option in action.option_strings] + below + _positional(child)
        options.append(f'        "{path}") COMPREPLY=($(compgen -W {_quoted(words)} -- "$current")) ;;')
        for action in child._actions:
            if action.choices and action.option_strings:
                patterns = "|".join(f'"{path} {option}"' for option in action.option_strings)
                reply = f'COMPREPLY=($(compgen -W {_quoted(map(str, action.choices))} -- "$current")); return'
                choices.append(f"        {patterns}) {reply} ;;")
            elif action.option_strings and action.nargs != 0:  # a value that only the user knows, or a file's name
                patterns = "|".join(f'"{path} {option}"' for option in action.option_strings)
                choices.append(f"        {patterns}) return ;;")
    return BASH.format(commands=commands, choices="\n".join(choices), options="\n".join(options))


def zsh(parser: argparse.ArgumentParser) -> str:
    """The script of zsh, which runs that of bash."""
    return f"autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n{bash(parser)}"


def fish(parser: argparse.ArgumentParser) -> str:
    """The script of fish."""
    lines = []
    for path, child, below in parsers(parser):
        words = path.split()
        seen = " and ".join(f"__fish_seen_subcommand_from {word}" for word in words)
        alone = f"not __fish_seen_subcommand_from {' '.join(below)}" if below else ""
        condition = shlex.quote("; and ".join(filter(None, (seen.replace(" and ", "; and "), alone))))
        complete = f"complete -c bittorch -n {condition}"
        for name in (*below, *_positional(child)):
            lines.append(f"{complete} -f -a {shlex.quote(name)}")
        for action in child._actions:
            names = "".join(
                f" -l {option[2:]}" if option.startswith("--") else f" -s {option[1:]}"
                for option in action.option_strings
            )
            values = f" -x -a {_quoted(map(str, action.choices))}" if action.choices else " -r"
            if names:
                about = shlex.quote((action.help or "").replace("%%", "%"))
                lines.append(f"{complete}{names}{'' if action.nargs == 0 else values} -d {about}")
    return "\n".join(lines) + "\n"


def _positional(parser: argparse.ArgumentParser) -> list[str]:
    """Values of arguments that are one of a few."""
    return [
        str(choice)
        for action in parser._actions
        if not action.option_strings and action.choices and not isinstance(action, argparse._SubParsersAction)
        for choice in action.choices
    ]


def _quoted(words: Any) -> str:
    return shlex.quote(" ".join(words))
