# What a machine must have before ami/setup starts: tools that a person installs, packages that apt installs, room.
# Sourced; wants: cache.

# The packages of a purpose, each with what proves that it is there: a program, or a file.
packages_of() {
    echo "gcc gcc" "g++ g++" "make make" "pkg-config pkg-config" "curl curl" "protobuf-compiler protoc" "zlib1g-dev /usr/include/zlib.h" |
        xargs -n 2
    [ "$1" = lint ] || echo "ffmpeg ffmpeg"
    [[ $1 = lint || $1 = chaos ]] || echo "maven mvn"
}

# at_least FOUND WANTED: is version FOUND not lower than WANTED?
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# tool NAME WANTED FOUND HOW: notes a tool that is missing (FOUND empty) or too old.
tool() {
    if [ -z "$3" ]; then
        missing+=("$1 $2 or newer is not installed. $4")
    elif ! at_least "$3" "$2"; then
        missing+=("$1 is $3; $2 or newer is needed. $4")
    fi
}

# version PATTERN COMMAND...: the first match of PATTERN in what the command prints, or nothing.
version() {
    local pattern=$1
    shift
    command -v "$1" >/dev/null || return 0
    "$@" 2>&1 | grep -oE "$pattern" | head -n 1 | grep -oE '[0-9]+(\.[0-9]+)*' || true
}

# check_tools PURPOSE: names every missing or old tool at once, with how to get it, and ends if there is one.
check_tools() {
    missing=()
    local rust="Get it with rustup (https://rustup.rs), then 'rustup update stable'."
    tool rustc 1.95 "$(version 'rustc [0-9.]+' rustc --version)" "$rust"
    tool cargo 1.95 "$(version 'cargo [0-9.]+' cargo --version)" "$rust"
    tool python3 3.11 "$(version 'Python [0-9.]+' python3 --version)" "Debian 12: apt-get install python3 python3-venv."
    if command -v python3 >/dev/null && ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        missing+=("python3 cannot make environments. Debian 12: apt-get install python3-venv.")
    fi
    if [ "$1" = lint ]; then
        tool rustfmt 1.0 "$(version 'rustfmt [0-9.]+' rustfmt --version)" "rustup component add rustfmt."
        tool clippy 0.1 "$(version 'clippy [0-9.]+' cargo clippy --version)" "rustup component add clippy."
    else
        tool go 1.25 "$(version 'go[0-9.]+' go version)" "Get it from https://go.dev/dl and put its bin folder on the PATH."
    fi
    if [[ $1 != lint && $1 != chaos ]]; then
        tool java 17 "$(version 'version "[0-9.]+' java -version)" "Debian 12: apt-get install openjdk-17-jdk-headless."
        # One that is missing is installed with the packages.
        ! command -v mvn >/dev/null || tool mvn 3.8 "$(version 'Apache Maven [0-9.]+' mvn --version)" "Debian 12: apt-get install maven."
    fi
    [ ${#missing[@]} = 0 ] && return
    echo "setup: these tools are missing or too old; install them and run the same command again:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 1
}

# check_room PURPOSE: enough disk for what is not there yet, and enough memory for the largest crate.
check_room() {
    local free_mib memory_mib wanted_mib=3000
    [ "$1" = lint ] || { [ -e "$CARGO_TARGET_DIR/debug" ] || wanted_mib=16000; }
    free_mib=$(df --output=avail --block-size=1M "$cache" | tail -n 1)
    if [ "$free_mib" -lt "$wanted_mib" ]; then
        echo "setup: $cache has $free_mib MiB free; $wanted_mib MiB are needed. Make room, or name another folder: VP_CACHE=DIR." >&2
        exit 1
    fi
    memory_mib=$(awk '/^(MemTotal|SwapTotal):/ { sum += $2 } END { print int(sum / 1024) }' /proc/meminfo)
    if [ "$memory_mib" -lt 9000 ]; then
        echo "setup: this machine has $memory_mib MiB of memory and swap; the compiler needs 9000 MiB. Add swap." >&2
        exit 1
    fi
}

# install_packages PURPOSE: apt-get for what is missing, and only then.
install_packages() {
    local package proof absent=() as=()
    while read -r package proof; do
        case $proof in
            /*) [ -e "$proof" ] || absent+=("$package") ;;
            *) command -v "$proof" >/dev/null || absent+=("$package") ;;
        esac
    done < <(packages_of "$1")
    [ ${#absent[@]} = 0 ] && return
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || { echo "setup: missing packages: ${absent[*]}. Neither root nor sudo: have them installed, then run this again." >&2; exit 1; }
        as=(sudo)
    fi
    command -v apt-get >/dev/null || { echo "setup: missing packages: ${absent[*]}. No apt-get here: install them by hand, then run this again." >&2; exit 1; }
    echo "setup: installing packages: ${absent[*]}"
    "${as[@]}" apt-get update -qq
    "${as[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${absent[@]}" >/dev/null
}
