# How ami/setup runs a step: skipped when its stamp holds, one line of progress with its time, its output kept in a log.
# Sourced; wants: clone, cache, started.

# fresh TARGET: an empty folder beside TARGET, to be put in its place by `swap`.
fresh() {
    local new
    new=$(dirname "$1")/.new-$(basename "$1")
    rm -rf "$new"
    mkdir -p "$new"
    printf '%s' "$new"
}

# swap NEW TARGET: the two renames after which TARGET is NEW; what ran from the old folder keeps its open files.
swap() {
    local old
    old=$(dirname "$2")/.old-$(basename "$2")
    rm -rf "$old"
    mkdir -p "$(dirname "$2")"
    if [ -e "$2" ]; then mv "$2" "$old"; fi
    mv "$1" "$2"
    rm -rf "$old"
}

# fingerprint COMMAND INPUT...: a hash of the input files' contents, of the command, and of the function it calls.
fingerprint() {
    local command=$1
    shift
    {
        echo "$command"
        declare -f "${command%% *}" environment jars
        (cd "$clone" && find "$@" -type f -print0 | LC_ALL=C sort --zero-terminated | xargs -0 sha256sum)
    } | sha256sum | cut -d' ' -f1
}

# say NAME TEXT: one line, with the time since the start.
say() { printf 'setup: %4d s  %-10s %s\n' $((SECONDS - started)) "$1" "$2"; }

# beat NAME LOG: every half minute what the step wrote last, so that a long one is seen to go on.
beat() {
    while sleep 30; do say "$1" "... $(tail -n 1 "$2" | sed 's/^ *//' | cut -c 1-80)"; done
}

# always NAME COMMAND: runs the command and reports.
always() {
    local name=$1 command=$2 began=$SECONDS log=$cache/logs/setup-$1.log beating
    say "$name" "..."
    : >"$log"
    beat "$name" "$log" &
    beating=$!
    # A subshell with its own errexit: inside a condition the outer one would be ignored.
    set +e
    (set -e; eval "$command") >"$log" 2>&1 </dev/null
    local status=$?
    kill $(descendants $beating) $beating 2>/dev/null || true
    wait $beating 2>/dev/null || true
    set -e
    if [ $status -ne 0 ]; then
        say "$name" "FAILED after $((SECONDS - began)) s; the end of $log:"
        tail -n 30 "$log" | sed 's/^/    /'
        return 1
    fi
    say "$name" "done in $((SECONDS - began)) s"
}

# step NAME TARGET COMMAND INPUT...: runs the command unless TARGET is there and was made from the same inputs.
step() {
    local name=$1 target=$2 command=$3 stamp=$cache/stamps/$1 wanted
    shift 3
    wanted=$(fingerprint "$command" "$@")
    if [ -e "$target" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    always "$name" "$command" || exit 1
    echo "$wanted" >"$stamp"
}

# end_children: ends what this script started, the steps running in the background included.
end_children() {
    trap - INT TERM
    echo "setup: interrupted; the next run goes on from here" >&2
    local pid
    for pid in $(descendants $$); do kill -TERM "$pid" 2>/dev/null || true; done
    wait || true
}

# descendants PID: every process below PID, children before their own.
descendants() {
    local child
    for child in $(ps -o pid= --ppid "$1"); do
        echo "$child"
        descendants "$child"
    done
}
