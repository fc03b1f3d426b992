#!/bin/bash
# Builds Caisson's guest kernel, or finds it built: see README.md.
#
# The result depends only on what `input_hash` reads, and lives under that hash in the
# cache, so a changed option is a new directory and an unchanged tree is a cache hit.
set -euo pipefail
export LC_ALL=C TZ=UTC

readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly tarball=${CAISSON_KERNEL_TARBALL:-/usr/src/linux-source-6.12.tar.xz}
readonly cache=${CAISSON_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/caisson}/guest-kernel
# Only for the progress line, until a finished build has counted them.
readonly typical_objects=1760

main() {
    parse_arguments "$@"
    require_inputs
    hash=$(input_hash)
    result=$cache/$hash

    case $action in
    print-path)
        echo "$result/vmlinux"
        [[ -e $result/vmlinux ]]
        ;;
    check-reproducible) check_reproducible ;;
    build)
        if [[ $force = no && -e $result/vmlinux ]]; then
            say "cached"
        else
            build_once
        fi
        echo "$result/vmlinux"
        ;;
    esac
}

usage() {
    cat <<EOF
Usage: build.sh [--force | --print-path | --check-reproducible | --help]

Builds the guest kernel from $tarball
and config/*.config; prints the path of vmlinux.

  --force               build even if the cache has it
  --print-path          only print where it is or would be; exit 1 if not built
  --check-reproducible  build again in another directory, compare with the cached one
  --help                this text

Environment:
  CAISSON_CACHE           cache directory (now: ${cache%/guest-kernel})
  CAISSON_KERNEL_TARBALL  another kernel source
  CAISSON_JOBS            parallel compiler processes (default: one per CPU)
EOF
}

parse_arguments() {
    action=build force=no
    while (($#)); do
        case $1 in
        --force) force=yes ;;
        --print-path | --check-reproducible) action=${1#--} ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "unknown argument: $1" ;;
        esac
        shift
    done
}

# ---- inputs -------------------------------------------------------------------

require_inputs() {
    [[ -r $tarball ]] || die "no kernel source at $tarball: apt-get install linux-source-6.12"
    local tool package missing=()
    while read -r tool package; do
        command -v "$tool" >/dev/null || missing+=("$tool (package $package)")
    done <<<"gcc gcc
ld binutils
make make
flex flex
bison bison
bc bc
xz xz-utils
patch patch
perl perl
flock util-linux"
    # objtool reads and rewrites object files with libelf.
    [[ -e /usr/include/gelf.h ]] || missing+=("gelf.h (package libelf-dev)")
    ((${#missing[@]} == 0)) || die "missing: $(join ', ' "${missing[@]}")"
}

# Sixteen hex digits that name everything the bytes of vmlinux depend on.
input_hash() {
    {
        tarball_sha256
        gcc --version | head -n 1
        ld --version | head -n 1
        (cd "$here" && sha256sum build.sh config/*.config $(patches))
    } | sha256sum | cut -c 1-16
}

# Hashing 150 MB takes most of a second, so it is remembered per (name, size, mtime).
tarball_sha256() {
    local key memo
    key=$(stat -L -c '%n %s %Y %i' "$tarball" | sha256sum | cut -c 1-16)
    memo=$cache/tarball-$key.sha256
    if [[ ! -e $memo ]]; then
        mkdir -p "$cache"
        sha256sum <"$tarball" >"$memo.$$"
        mv "$memo.$$" "$memo"
    fi
    cat "$memo"
}

patches() {
    local patch
    for patch in "$here"/patches/*.patch; do
        [[ ! -e $patch ]] || echo "${patch#"$here"/}"
    done
}

# ---- building -----------------------------------------------------------------

# One builder per hash; whoever waited finds the work done.
build_once() {
    mkdir -p "$cache"
    exec 9>"$cache/$hash.lock"
    if ! flock -n 9; then
        say "another build of $hash is running, waiting for it"
        flock 9
    fi
    if [[ $force = no && -e $result/vmlinux ]]; then
        return
    fi
    rm -rf "$cache/.build-$hash".*   # left by a build that was killed
    new_work_dir
    build_in "$work"
    publish "$work/out"
    rm -rf "$work"
}

new_work_dir() {
    work=$(mktemp -d "$cache/.build-$hash.XXXXXX")
    trap 'rm -rf "$work"' EXIT
}

# Leaves vmlinux, its checksum, the config and System.map in $1/out.
build_in() {
    local src=$1/src out=$1/out started=$SECONDS
    mkdir -p "$src" "$out"
    say "unpacking $(basename "$tarball")"
    tar -xf "$tarball" -C "$src" --strip-components=1
    local patch
    for patch in $(patches); do
        patch -d "$src" -p1 --silent <"$here/$patch" || die "patch does not apply: $patch"
    done

    say "configuring"
    configure "$src"
    compile "$src" "$out/objects"

    strip --strip-all --remove-section=.comment -o "$out/vmlinux" "$src/vmlinux"
    (cd "$out" && sha256sum vmlinux >vmlinux.sha256)
    cp "$src/.config" "$out/config"
    cp "$src/System.map" "$out/System.map"
    say "built in $((SECONDS - started)) s: $(($(stat -c %s "$out/vmlinux") / 1024)) KiB"
}

# Everything off, then what the fragments ask for; anything Kconfig did not grant is an
# error, because a misspelt or unmet option would otherwise vanish without a word.
configure() {
    local src=$1 log=$1/../configure.log
    local wanted=$src/../wanted.config
    cat "$here"/config/*.config >"$wanted"

    local twice
    twice=$(sed -nE 's/^(# )?(CONFIG_[A-Z0-9_]+)[ =].*/\2/p' "$wanted" | sort | uniq -d)
    [[ -z $twice ]] || die "set in more than one place: $(join ', ' $twice)"

    kernel_make "$src" KCONFIG_ALLCONFIG="$(realpath "$wanted")" allnoconfig >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2; die "allnoconfig failed"; }

    local line option refused=()
    while IFS= read -r line; do
        case $line in
        CONFIG_*=*)
            grep -qxF -- "$line" "$src/.config" || refused+=("$line") ;;
        '# CONFIG_'*' is not set')
            option=${line#\# } option=${option% is not set}
            ! grep -q "^$option=" "$src/.config" || refused+=("$line") ;;
        esac
    done <"$wanted"
    ((${#refused[@]} == 0)) || die "options that did not end up in .config:
$(printf '  %s\n' "${refused[@]}")"
}

compile() {
    local src=$1 objects=$2 log=$cache/$hash.log
    local -a status
    set +e
    kernel_make "$src" -j"${CAISSON_JOBS:-$(nproc)}" vmlinux 2>&1 | tee "$log" | show_progress "$objects"
    status=("${PIPESTATUS[@]}")
    set -e
    if ((status[0] != 0)); then
        grep -nE 'error:|Error |undefined reference' "$log" | head -n 20 >&2 || tail -n 20 "$log" >&2
        die "the kernel does not build; whole output: $log"
    fi
    rm -f "$log"
}

# make with the variables that end up in the image pinned: version banner, dates, paths.
# The build is in-tree, so file names are relative already; the prefix map is for the
# few absolute ones that the assembler and objtool see.
kernel_make() {
    local src=$1
    shift
    local epoch
    epoch=$(stat -c %Y "$src/Makefile")   # the release's own date, from the tarball
    env -u MAKEFLAGS -u MFLAGS -u KCFLAGS -u CROSS_COMPILE -u O -u KBUILD_OUTPUT \
        KBUILD_BUILD_TIMESTAMP="$(date -u -d "@$epoch")" \
        KBUILD_BUILD_USER=caisson KBUILD_BUILD_HOST=caisson KBUILD_BUILD_VERSION=1 \
        SOURCE_DATE_EPOCH="$epoch" \
        nice -n 5 make -C "$src" --no-print-directory ARCH=x86_64 LOCALVERSION= \
        KCFLAGS="-ffile-prefix-map=$src=." KAFLAGS="-ffile-prefix-map=$src=." "$@"
}

# Reads make's output; one line that rewrites itself, or one every ten seconds.
show_progress() {
    local count=0 total=$typical_objects line percent last=$SECONDS previous
    previous=$(find "$cache" -mindepth 2 -maxdepth 2 -name objects -printf '%T@ %p\n' 2>/dev/null |
        sort -n | tail -n 1 | cut -d ' ' -f 2-)
    [[ -z $previous ]] || total=$(<"$previous")
    while IFS= read -r line; do
        case $line in
        "  CC "* | "  AS "* | "  LD "* | "  AR "* | "  HOSTCC "*) count=$((count + 1)) ;;
        *) continue ;;
        esac
        percent=$((count * 100 / total))
        ((percent <= 99)) || percent=99
        if [[ -t 2 ]]; then
            printf '\rguest-kernel: %3d%%  %d of ~%d objects ' "$percent" "$count" "$total" >&2
        elif ((SECONDS - last >= 10)); then
            last=$SECONDS
            say "$percent%, $count of ~$total objects"
        fi
    done
    [[ ! -t 2 ]] || printf '\r\033[K' >&2
    echo "$count" >"$1"
}

# A rename, so a reader sees all of it or nothing. A forced rebuild renames file by
# file over the old ones, vmlinux last.
publish() {
    if [[ -d $result ]]; then
        local file
        for file in config System.map objects vmlinux.sha256 vmlinux; do
            mv -f "$1/$file" "$result/$file"
        done
    else
        mv -T "$1" "$result"
    fi
}

# Builds again, in a directory of another name and length, and compares with the cached one.
check_reproducible() {
    build_once
    new_work_dir
    local again=$work/a-second-directory-with-a-longer-name
    build_in "$again"
    local first second
    first=$(sha256sum <"$result/vmlinux")
    second=$(sha256sum <"$again/out/vmlinux")
    if [[ $first != "$second" ]]; then
        mkdir -p "$cache/not-reproducible"
        mv "$again/out/vmlinux" "$cache/not-reproducible/vmlinux"
        die "not reproducible: compare $result/vmlinux and $cache/not-reproducible/vmlinux"
    fi
    echo "reproducible: ${first%% *}"
}

# ---- words --------------------------------------------------------------------

say() { echo "guest-kernel: $*" >&2; }
die() { echo "guest-kernel: error: $*" >&2; exit 1; }
join() { local separator=$1 first=$2; shift 2; printf '%s' "$first" "${@/#/$separator}"; }

main "$@"
