-- `lsa completion bash` and `lsa completion zsh`: what the shell evaluates to complete ./lsa's command lines.
-- Options of a script are read from its own usage text, so that they are written once.
local M = {}

local BAD_USAGE = 2

local usage = [[
usage: lsa completion bash|zsh

  eval "$(./lsa completion bash)"      in ~/.bashrc, with the whole path of ./lsa; for zsh in ~/.zshrc, after compinit
]]

local bash = [[
_lsa() {
    local current=${COMP_WORDS[COMP_CWORD]} first=${COMP_WORDS[1]} choices='' plain='' before='' word
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        choices="COMMANDS"
    else
        case $first in
        new)
            choices="policy eviction schedule experiment"
            [ "$COMP_CWORD" -ne 2 ] || plain=1
            [ "$COMP_CWORD" -eq 2 ] || choices=''
            ;;
        completion) choices="bash zsh" plain=1 ;;
        test) choices="--device --operations --filter --help" ;;
        bench) choices="--csv --threads --device --help" ;;
        kernel) choices="--install --prefix --help" ;;
        *.lua) [ ! -r "$first" ] || choices="--help --json --csv --debug $(sed -n 's/^  *\(-[a-z],\)\{0,1\}\(--[a-z][a-z_-]*\).*/\2/p' "$first")" ;;
        esac
    fi
    [ "$COMP_CWORD" -le 2 ] || case ${COMP_WORDS[COMP_CWORD - 1]} in
        --policies | --policy | --select) choices="POLICIES" ;;
        --evictions | --evict) choices="EVICTIONS" ;;
        --model) choices="MODELS" ;;
        --device) choices="cpu cuda" plain=1 ;;
    esac
    case $current in *,*) before=${current%,*}, ;; esac # of a list the last one
    for word in $choices; do
        case $before$word in "$current"*) COMPREPLY+=("$before$word") ;; esac
    done
    case $plain$current in 1* | -*) return ;; esac
    for word in "$current"*; do # not compgen -f, which zsh's stand-in has otherwise
        if [ -d "$word" ]; then
            COMPREPLY+=("$word/")
        elif [ -e "$word" ]; then
            COMPREPLY+=("$word")
        fi
    done
}
complete -o nospace -F _lsa lsa ./lsa
]]

local zsh = [[
autoload -U +X bashcompinit && bashcompinit
]]

local commands = "new test bench doctor docs kernel completion -i -e --help --version --with-checks --with-mpi --with-jupyter --debug --sanitize"

function M.main(arguments)
  local shell = arguments[1]
  if shell == "--help" or shell == "-h" then
    io.write(usage)
    return 0
  end
  if (shell ~= "bash" and shell ~= "zsh") or arguments[2] then
    io.stderr:write(usage)
    return BAD_USAGE
  end
  local registry = require "lsa.registry"
  local words = {COMMANDS = commands, POLICIES = table.concat(registry.names "policies", " "), EVICTIONS = table.concat(registry.names "evictions", " "),
    MODELS = table.concat(require "lsa.model".names(), " ")}
  io.write(shell == "zsh" and zsh or "", (bash:gsub("%f[%u]%u+%f[%U]", words)))
  return 0
end

return M
