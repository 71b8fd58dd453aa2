"""`netagent completion bash|zsh|fish`: a completion script made from the command line itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from netagent.cli.tree import Node, Option, read

DESCRIPTION = (
    "Prints a completion script. bash: source <(netagent completion bash); "
    "zsh: netagent completion zsh > ~/.zfunc/_netagent; "
    "fish: netagent completion fish > ~/.config/fish/completions/netagent.fish."
)

DIRECTORIES = ("DIR", "DIRECTORY")
FILES = ("FILE", "PATH")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell to print it for")


def run(args: argparse.Namespace) -> int:
    print("\n".join({"bash": bash, "zsh": zsh, "fish": fish}[args.shell](read())))
    return 0


def bash(root: Node) -> Iterator[str]:
    """One function: follows the commands typed so far to a path, then offers what can stand there."""
    yield "# bash completion for netagent, printed by `netagent completion bash`"
    yield "_netagent() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} path= i"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        [[ ${COMP_WORDS[i]} == -- ]] && return"
    yield "        case $path/${COMP_WORDS[i]} in"
    if paths := ["/" + "/".join(node.path) for node in root.walk() if node.path]:
        yield f"            {'|'.join(paths)}) path=$path/${{COMP_WORDS[i]}} ;;"
    yield "        esac"
    yield "    done"
    yield '    case "$path:$prev" in'
    for node in root.walk():
        for option in node.options:
            if option.value:
                patterns = "|".join(f"{_path(node)}:{name}" for name in option.names)
                yield f"        {patterns}) {_bash_value(option)}; return ;;"
    yield "    esac"
    yield "    case $path in"
    for node in root.walk():
        yield f'        "{_path(node)}") COMPREPLY=($(compgen -W "{" ".join(_words(node))}" -- "$cur")) ;;'
    yield "    esac"
    yield "}"
    yield "complete -o default -F _netagent netagent"


def zsh(root: Node) -> Iterator[str]:
    """The same walk as for bash, with descriptions."""
    yield "#compdef netagent"
    yield "# zsh completion for netagent, printed by `netagent completion zsh`"
    yield "_netagent() {"
    yield "    local at= prev=${words[CURRENT-1]} i"
    yield "    local -a offers"
    yield "    for ((i = 2; i < CURRENT; i++)); do"
    yield "        [[ ${words[i]} == -- ]] && { _default; return }"
    yield "        case $at/${words[i]} in"
    if paths := ["/" + "/".join(node.path) for node in root.walk() if node.path]:
        yield f"            ({'|'.join(paths)}) at=$at/${{words[i]}} ;;"
    yield "        esac"
    yield "    done"
    yield '    case "${at}:${prev}" in'
    for node in root.walk():
        for option in node.options:
            if option.value:
                patterns = "|".join(f"{_path(node)}:{name}" for name in option.names)
                yield f"        ({patterns}) {_zsh_value(option)}; return ;;"
    yield "    esac"
    yield "    case $at in"
    for node in root.walk():
        offers = [_quote(f"{_colon(command.path[-1])}:{command.help}") for command in node.commands]
        offers += [_quote(choice) for argument in node.arguments for choice in argument.choices]
        offers += [_quote(f"{_colon(name)}:{option.help}") for option in node.options for name in option.names]
        yield f"        ('{_path(node)}') offers=({' '.join(offers)}) ;;"
    yield "    esac"
    yield "    _describe netagent offers || _default"
    yield "}"
    # Autoloaded from fpath the file is the function's body; sourced, it registers the function.
    yield 'if [[ ${funcstack[1]} == _netagent ]]; then _netagent "$@"; else compdef _netagent netagent; fi'


def fish(root: Node) -> Iterator[str]:
    """One `complete` line for each thing that can be typed, under the condition that its command was typed before."""
    yield "# fish completion for netagent, printed by `netagent completion fish`"
    yield "function __netagent_at --description 'True when exactly these commands were typed'"
    yield "    set -l path"
    yield "    for word in (commandline -opc)[2..]"
    yield '        switch "/"(string join / -- $path $word)'
    if paths := ["/" + "/".join(node.path) for node in root.walk() if node.path]:
        yield f"            case {' '.join(paths)}"
        yield "                set -a path $word"
    yield "        end"
    yield "    end"
    yield '    test "$path" = "$argv"'
    yield "end"
    for node in root.walk():
        condition = " ".join(("__netagent_at", *node.path))
        at = f"complete -c netagent -n '{condition}'"
        for command in node.commands:
            yield f"{at} -f -a {command.path[-1]} -d {_fish_quote(command.help)}"
        for argument in node.arguments:
            if argument.choices:
                yield f"{at} -f -a {_fish_quote(' '.join(argument.choices))} -d {_fish_quote(argument.help)}"
        for option in node.options:
            yield f"{at} {_fish_option(option)} -d {_fish_quote(option.help)}"


def _path(node: Node) -> str:
    return "".join(f"/{word}" for word in node.path)


def _words(node: Node) -> list[str]:
    return [
        *(command.path[-1] for command in node.commands),
        *(choice for argument in node.arguments for choice in argument.choices),
        *(name for option in node.options for name in option.names),
    ]


def _bash_value(option: Option) -> str:
    if option.choices:
        return f'COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$cur"))'
    if option.value in DIRECTORIES:
        return 'COMPREPLY=($(compgen -d -- "$cur"))'
    if option.value in FILES:
        return 'COMPREPLY=($(compgen -f -- "$cur"))'
    return "COMPREPLY=()"


def _zsh_value(option: Option) -> str:
    if option.choices:
        return f"offers=({' '.join(map(_quote, option.choices))}); _describe {_quote(option.value)} offers"
    if option.value in DIRECTORIES:
        return "_files -/"
    if option.value in FILES:
        return "_files"
    return f"_message {_quote(option.value)}"


def _fish_option(option: Option) -> str:
    words = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.choices:
        words.append(f"-x -a {_fish_quote(' '.join(option.choices))}")
    elif option.value in DIRECTORIES:
        words.append("-x -a '(__fish_complete_directories)'")
    elif option.value in FILES:
        words.append("-r -F")
    elif option.value:
        words.append("-x")
    else:
        words.append("-f")
    return " ".join(words)


def _quote(text: str) -> str:
    """For bash and zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _colon(text: str) -> str:
    """zsh's _describe splits at the first bare colon."""
    return text.replace(":", "\\:")


def _fish_quote(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
