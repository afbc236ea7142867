"""Shell completion: a bash script that knows commands, options and config keys, for zsh through bashcompinit."""

from pipeline.cli.keys import sections
from pipeline.cli.options import SHELLS, TopParser
from pipeline.config import config_keys

_SCRIPT = """\
{head}_ltune() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} words=""
    compopt +o nospace 2>/dev/null
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "$previous" in
{values}
        {paths}) COMPREPLY=($(compgen -f -- "$word")); return ;;
        esac
        case "${{COMP_WORDS[1]}}" in
{options}
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ "${{COMPREPLY[*]}}" == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}
complete -o default -F _ltune ltune
"""


def script(parser: TopParser, shell: str) -> str:
    """What `source <(ltune completion bash)` reads."""
    options, values, paths = [], {}, set()
    for name, command in parser.commands.items():
        words = [option for action in command._actions for option in action.option_strings]
        if any(action.dest == "overrides" for action in command._actions) and name != "compare":
            words += sorted({f"{key}=" for key, _, _ in config_keys()})
        if name == "keys":
            words += sections()
        if name == "completion":
            words += SHELLS
        options.append(f'        {name}) words="{" ".join(words)}" ;;')
        for action in command._actions:
            if action.choices and action.option_strings:
                values[action.option_strings[-1]] = " ".join(map(str, action.choices))
            elif action.metavar in ("FILE", "DIR") and action.option_strings:
                paths.add(action.option_strings[-1])
    answer = 'COMPREPLY=($(compgen -W "{}" -- "$word")); return ;;'
    listed = [f"        {name}) {answer.format(words)}" for name, words in values.items()]
    return _SCRIPT.format(
        head="autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else "",
        commands=" ".join([*parser.commands, "--help", "--version"]),
        values="\n".join(listed),
        paths="|".join(sorted(paths)),
        options="\n".join(options),
    )
