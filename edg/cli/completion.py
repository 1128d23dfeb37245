"""`edg completion SHELL`: a script with which a shell completes commands, flags and their values.

It is made from the parsers of the commands. argcomplete would start Python at every TAB, 0.2 s each time;
this script needs neither Python nor the package. To use it:

    bash   eval "$(edg completion bash)"              in ~/.bashrc
    zsh    eval "$(edg completion zsh)"               in ~/.zshrc, after compinit
    fish   edg completion fish > ~/.config/fish/completions/edg.fish
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from edg.core.arguments import PATHS, Parser

FILES, FOLDERS = "files", "folders"


@dataclass(frozen=True)
class Flag:
    """names: --solver, ...; () for what stands without a flag. values: the words that may follow, FILES,
    FOLDERS, or () for any text. wants: whether something must follow."""

    names: tuple[str, ...]
    help: str
    values: tuple[str, ...] | str
    wants: bool


def add_arguments(parser: Parser) -> None:
    parser.add_argument("shell", choices=tuple(SHELLS), help="shell to print the script for")


def completion(args: argparse.Namespace) -> int:
    print(SHELLS[args.shell](known()), end="")
    return 0


def known() -> dict[str, tuple[str, list[Flag]]]:
    """Command -> (what it does, its flags)."""
    from edg.cli.main import COMMANDS, parser_of

    return {name: (command.help, list(_flags(parser_of(name)))) for name, command in COMMANDS.items()}


def _flags(parser: Parser) -> Iterator[Flag]:
    for action in parser._actions:
        if action.help != argparse.SUPPRESS:
            wants = action.nargs not in (0, "?")
            yield Flag(tuple(action.option_strings), action.help or "", _values(action), wants)


def _values(action: argparse.Action) -> tuple[str, ...] | str:
    text = f"{action.metavar or ''} {action.dest}".lower()
    if action.choices is not None:
        return tuple(map(str, action.choices))
    if action.type not in (None, *PATHS) or action.nargs == 0:
        return ()
    if "dir" in text or "folder" in text:
        return FOLDERS
    hints = ("file", "yaml", "path", "recipe", "config")
    return FILES if any(hint in text for hint in hints) or not action.option_strings else ()


# ---- bash --------------------------------------------------------------------------------------------------

BASH = r"""_edg() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" command="${COMP_WORDS[1]}"
    local flags="" values="" kind="" IFS=$' \n'
    if [[ $word == "=" ]]; then word=""
    elif [[ $before == "=" ]]; then before="${COMP_WORDS[COMP_CWORD-2]}"; fi
    if (( COMP_CWORD == 1 )); then
        COMPREPLY=($(compgen -W "%(commands)s" -- "$word"))
        return
    fi
    case "$command" in
%(flags)s
    esac
    case "$command $before" in
%(values)s
    esac
    if [[ $kind ]]; then
        IFS=$'\n'
        COMPREPLY=($(compgen "$kind" -- "$word"))
        compopt -o filenames 2>/dev/null
    elif [[ $values ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$word"))
    elif [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$word"))
    fi
}
complete -o default -F _edg edg
"""


def bash(commands: dict[str, tuple[str, list[Flag]]]) -> str:
    flags, values = [], []
    for name, (_, found) in commands.items():
        flags.append(f'        {name}) flags="{" ".join(n for flag in found for n in flag.names)}" ;;')
        for flag in found:
            cases = "|".join(f'"{name} {option}"' for option in flag.names or (name,))
            kind = {FILES: 'kind="-f"', FOLDERS: 'kind="-d"'}.get(flag.values if flag.values else "")
            if flag.values and (flag.names or not kind):
                values.append(f"        {cases}) {kind or _bash_words(flag.values)} ;;")
    lines = {"commands": " ".join(commands), "flags": "\n".join(flags), "values": "\n".join(values)}
    return BASH % lines


def _bash_words(words: tuple[str, ...]) -> str:
    return f'values="{" ".join(words)}"'


# ---- zsh ---------------------------------------------------------------------------------------------------

ZSH = """#compdef edg
_edg() {
    local -a commands=(
%s
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command="${words[2]}"
    shift words
    (( CURRENT-- ))
    case "$command" in
%s
    esac
}
if [[ "$funcstack[1]" == _edg ]]; then _edg "$@"; else compdef _edg edg; fi
"""


def zsh(commands: dict[str, tuple[str, list[Flag]]]) -> str:
    names = [f"        {_quoted(f'{_colons(name)}:{help}')}" for name, (help, _) in commands.items()]
    cases = [f"        {name}) _arguments {_zsh_flags(flags)} ;;" for name, (_, flags) in commands.items()]
    return ZSH % ("\n".join(names), "\n".join(cases))


def _zsh_flags(flags: list[Flag]) -> str:
    texts = []
    for flag in flags:
        action = {FILES: "_files", FOLDERS: "_files -/", (): " "}.get(flag.values)
        action = f"({' '.join(flag.values)})" if action is None else action
        help = _colons(flag.help).replace("[", r"\[").replace("]", r"\]")
        value = (
            "" if not flag.wants and not flag.values else f":{flag.names[0] if flag.names else ' '}:{action}"
        )
        texts += [_quoted(f"*{name}[{help}]{value}") for name in flag.names] or [_quoted(f"*: :{action}")]
    return " ".join(texts)


def _colons(text: str) -> str:
    return text.replace(":", r"\:")


# ---- fish --------------------------------------------------------------------------------------------------


def fish(commands: dict[str, tuple[str, list[Flag]]]) -> str:
    lines = [
        f"complete -c edg -f -n __fish_use_subcommand -a {name} -d {_quoted(help, fish=True)}"
        for name, (help, _) in commands.items()
    ]
    for name, (_, flags) in commands.items():
        seen = f"complete -c edg -n '__fish_seen_subcommand_from {name}'"
        lines += [f"{seen} {_fish_flag(flag)}" for flag in flags]
    return "\n".join(lines) + "\n"


def _fish_flag(flag: Flag) -> str:
    names = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in flag.names]
    if flag.values == FILES:
        takes = "-r -F"
    elif flag.values == FOLDERS:
        takes = "-x -a '(__fish_complete_directories)'"
    elif flag.values:
        takes = f"-x -a '{' '.join(flag.values)}'"
    else:
        takes = "-x" if flag.wants and names else "-f"
    if not names:
        takes = takes.replace("-r -F", "-F").replace("-x -a", "-f -a")
    return " ".join([*names, takes, f"-d {_quoted(flag.help, fish=True)}"])


def _quoted(text: str, fish: bool = False) -> str:
    """In single quotes, for sh and zsh, or for fish."""
    if fish:
        return "'" + text.replace("\\", "\\\\").replace("'", r"\'") + "'"
    return "'" + text.replace("'", "'\\''") + "'"


SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
