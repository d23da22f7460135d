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
    local current=${COMP_WORDS[COMP_CWORD]} first=${COMP_WORDS[1]} words= plain=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="COMMANDS"
    else
        case $first in
        new)
            words="policy eviction schedule experiment"
            [ "$COMP_CWORD" -ne 2 ] || plain=1
            [ "$COMP_CWORD" -eq 2 ] || words=
            ;;
        completion) words="bash zsh" plain=1 ;;
        test) words="--device --operations --filter --help" ;;
        bench) words="--csv --threads --help" ;;
        kernel) words="--install --prefix --help" ;;
        *.lua) [ ! -r "$first" ] || words="--help --json --csv --debug $(sed -n 's/^  *\(-[a-z],\)\{0,1\}\(--[a-z][a-z_-]*\).*/\2/p' "$first")" ;;
        esac
    fi
    local word
    for word in $words; do
        case $word in "$current"*) COMPREPLY+=("$word") ;; esac
    done
    case $plain$current in 1* | -*) return ;; esac
    while IFS= read -r word; do
        [ -d "$word" ] && word=$word/
        COMPREPLY+=("$word")
    done < <(compgen -f -- "$current")
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
  io.write(shell == "zsh" and zsh or "", (bash:gsub("COMMANDS", commands)))
  return 0
end

return M
