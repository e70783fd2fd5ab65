#!/bin/sh
# with-build.sh BUILD COMMAND...   runs COMMAND on this checkout's Lua files and the C module in the
#                                  folder BUILD (relative to the checkout)
# with-build.sh --print BUILD      prints the lines that do the same to a shell: eval "$(...)"
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
print=
if [ "$1" = --print ]; then
    print=yes
    shift
fi
build=$1
shift
files="$top/lua/?.lua;$top/lua/?/init.lua"
modules="$top/$build/lua/?.so"

if [ -n "$print" ]; then
    quote() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/'\\\\''/g")"; }
    # ";;" stands for Lua's own paths. A LUA_PATH_5_4 would be preferred to LUA_PATH, so it is set aside.
    # shellcheck disable=SC2016 # for the reading shell to expand
    printf 'export LUA_PATH=%s";${LUA_PATH_5_4:-${LUA_PATH:-;}}"\n' "$(quote "$files")"
    # shellcheck disable=SC2016
    printf 'export LUA_CPATH=%s";${LUA_CPATH_5_4:-${LUA_CPATH:-;}}"\n' "$(quote "$modules")"
    printf 'unset LUA_PATH_5_4 LUA_CPATH_5_4\n'
    exit
fi

export LUA_PATH="$files;${LUA_PATH_5_4:-${LUA_PATH:-;}}"
export LUA_CPATH="$modules;${LUA_CPATH_5_4:-${LUA_CPATH:-;}}"
unset LUA_PATH_5_4 LUA_CPATH_5_4

case $build in
*sanitize*)
    # The interpreter is not built with the sanitizers, so their runtimes have to be there first.
    cc=${CC:-cc}
    export ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
    export UBSAN_OPTIONS="print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
    LD_PRELOAD="$($cc -print-file-name=libasan.so) $($cc -print-file-name=libubsan.so)"
    export LD_PRELOAD
    ;;
esac

exec "$@"
