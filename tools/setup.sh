#!/bin/sh
# setup.sh PURPOSE: brings in what PURPOSE needs and this machine lacks.
#
#   build      a C compiler, Lua 5.4 and its headers
#   demo       build, and luaposix
#   test       demo, and busted, luacheck, LuaRocks, clang-format
#   sanitize   test, and the compiler's sanitizer runtimes
#   bench      demo, and those peers of the benchmarks that can be had (none of them is a must)
#
# It looks for the things themselves, not for packages, so whatever was installed in another way
# counts, and a call that finds everything only looks. Exits 1, with the list of what to install,
# when something is missing and neither root nor sudo is at hand.
set -eu

purpose=${1:-build}
lua=${LUA:-lua5.4}
cc=${CC:-cc}
posix_version=36 # the first packaged luaposix with a Lua 5.4 build
next_release=trixie # of Debian: the first release to package it

say() { printf 'opero: %s\n' "$*" >&2; }
quiet() { "$@" >/dev/null 2>&1; }

# --- what is missing -----------------------------------------------------------------------

packages= # to be installed from the distribution, by its names for them
posix=    # "missing" when luaposix is: it may take other ways

need() { # need PACKAGE CHECK...
    package=$1
    shift
    quiet "$@" || packages="$packages $package"
}

has_lua_header() {
    [ -n "${LUA_INCDIR:-}" ] && [ -f "$LUA_INCDIR/lua.h" ] && return
    quiet pkg-config --exists lua5.4 && return
    for dir in /usr/include/lua5.4 /usr/local/include/lua5.4 /usr/local/include /usr/include; do
        [ -f "$dir/lua.h" ] && grep -q 'LUA_VERSION_MINOR[[:space:]]*"4"' "$dir/lua.h" && return
    done
    return 1
}

has_module() { "$lua" -e "require '$1'"; }
has_file() { [ -f "$1" ]; }

for_build() {
    need make command -v make
    need gcc command -v "$cc"
    need lua5.4 command -v "$lua"
    need liblua5.4-dev has_lua_header
}

for_demo() {
    for_build
    quiet has_module posix.unistd || posix=missing
}

for_test() {
    for_demo
    need lua-busted has_module busted.core
    need lua-check command -v luacheck
    need luarocks command -v luarocks
    need pkg-config command -v pkg-config
    need g++ command -v c++
    need clang-format command -v clang-format
}

for_sanitize() {
    for_test
    if quiet command -v "$cc"; then # gcc brings them along in the Debian family
        need libasan has_file "$("$cc" -print-file-name=libasan.so)"
        need libubsan has_file "$("$cc" -print-file-name=libubsan.so)"
    fi
}

# By package: some of them serve another Lua or another Python than the first one in the path.
for_peers() {
    for package in lua-luv lua-cqueues lua-socket lua-copas lua-logging python3 python3-tenacity; do
        need "$package" dpkg -s "$package"
    done
}

case $purpose in
build) for_build ;;
demo | bench) for_demo ;;
test) for_test ;;
sanitize) for_sanitize ;;
*)
    say "unknown purpose '$purpose': build, demo, test, sanitize or bench"
    exit 2
    ;;
esac

# --- installing ----------------------------------------------------------------------------

root() { # root COMMAND...: run it as root
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

# sudo may ask for a password only where somebody can answer.
can_be_root() {
    [ "$(id -u)" = 0 ] && return
    quiet command -v sudo && { [ -t 0 ] || quiet sudo -n true; }
}

apt_get() {
    root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null
}

lists_are_fresh=
refresh_lists() {
    [ -z "$lists_are_fresh" ] || return 0
    # A foreign source that does not answer is no reason to stop: what is installed next decides.
    apt_get update || say "apt-get update was not complete; going on with what it has"
    lists_are_fresh=yes
}

install_packages() {
    refresh_lists
    apt_get install -y --no-install-recommends "$@"
}

posix_is_packaged() {
    version=$(apt-cache policy lua-posix 2>/dev/null | awk '$1 == "Candidate:" { print $2 }')
    [ -n "$version" ] && [ "$version" != "(none)" ] &&
        quiet dpkg --compare-versions "$version" ge "$posix_version"
}

# This release's lua-posix knows no Lua 5.4, the next one's does and asks for nothing newer. It is
# fetched from the archive this machine uses anyway, through a package list and a state folder of
# their own, so that apt's own view of the machine stays as it is.
posix_from_next_release() (
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # shellcheck disable=SC2016 # the fields are apt-get's to expand
    archive=$(apt-get indextargets --format '$(REPO_URI)|$(CODENAME)|$(ORIGIN)' |
        awk -F'|' -v codename="$codename" '$2 == codename && $3 == "Debian" { print $1; exit }')
    [ -n "$archive" ] || return 1

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    echo "deb [signed-by=$keyring] $archive $next_release main" >"$work/next.list"
    apart() {
        apt-get -q -o "Dir::Etc::SourceList=$work/next.list" -o Dir::Etc::SourceParts=/dev/null \
            -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache" \
            -o APT::Sandbox::User="$(id -un)" "$@" </dev/null
    }
    # `cd` may not reach out of the subshell, and `set -e` does not hold in a tested function.
    apart update && cd "$work" && apart download lua-posix && chmod -R a+rX "$work" &&
        install_packages "$work"/lua-posix_*.deb
)

posix_from_luarocks() {
    quiet command -v luarocks || install_packages luarocks || return 1
    root luarocks --lua-version 5.4 install luaposix
}

install_posix() {
    if quiet command -v apt-get; then
        refresh_lists
        posix_is_packaged && install_packages lua-posix && return
        say "the packaged lua-posix has no Lua 5.4 build; trying Debian $next_release's"
        posix_from_next_release && return
    fi
    say "trying LuaRocks for luaposix"
    posix_from_luarocks
}

list_missing() {
    [ -z "$packages" ] || printf '    apt-get install%s\n' "$packages"
    if [ -n "$posix" ]; then
        if posix_is_packaged; then
            printf '    apt-get install lua-posix\n'
        else
            printf '    lua-posix, version %s or later: from Debian %s when this release has an older one,\n' \
                "$posix_version" "$next_release"
            printf '    or by luarocks --lua-version 5.4 install luaposix\n'
        fi
    fi
}

stop() { # stop WHY
    {
        printf "opero: 'make %s' needs what is missing here, and %s.\n" "$purpose" "$1"
        printf 'To be installed as root (names as in Debian):\n'
        list_missing
        printf 'Or let root run: %s %s\n' "$0" "$purpose"
    } >&2
    exit 1
}

if [ -n "$packages$posix" ]; then
    can_be_root || stop "there is neither root nor sudo to install it"
    if [ -n "$packages" ]; then
        quiet command -v apt-get || stop "there is no apt-get to install it"
        say "installing$packages"
        # shellcheck disable=SC2086 # a list of words
        install_packages $packages || stop "apt-get could not install it"
        packages=
    fi
    if [ -n "$posix" ]; then
        say "installing luaposix"
        install_posix || stop "luaposix could not be had"
        quiet has_module posix.unistd || stop "the luaposix installed does not load in $lua"
    fi
fi

if [ "$purpose" = bench ]; then
    for_peers
    if [ -n "$packages" ]; then
        if can_be_root && quiet command -v apt-get; then
            say "installing peers to compare with:$packages"
            for package in $packages; do
                install_packages "$package" || say "going on without $package"
            done
        else
            say "not installed, so not compared with:$packages"
        fi
    fi
fi
