# Sourced, not run: makes .venv once and leaves PY pointing at its python.
#   . scripts/venv.sh EXTRA...      installs this library, editable, with these extras
# Nothing is installed again while setup.cfg, this file and the extras stay the same.
# PYTHON chooses the interpreter (3.10 to 3.12), VENV the folder.

_find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3.11 python3.10 python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c \
            'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "no Python 3.10, 3.11 or 3.12 with venv found; install one or set PYTHON=/path/to/python" >&2
    return 1
}

# pip install, which says nothing for minutes, with a line every few seconds.
_pip() {
    local code=0 ticker shell=$$
    # the loop also ends with this shell, where Ctrl-C ends both pip and the shell
    (
        while sleep 5 > /dev/null 2>&1 && kill -0 "$shell" 2>/dev/null; do
            echo "  pip is at work: ${SECONDS} s, $(du -sm "$VENV" 2>/dev/null | cut -f1) MB in $VENV" >&2
        done
    ) &
    ticker=$!
    "$PY" -m pip install --quiet --disable-pip-version-check "$@" || code=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    return $code
}

_venv() {
    local extras want stamp
    VENV=${VENV:-.venv}
    if [ -x "$VENV/bin/python" ]; then PY=$VENV/bin/python
    elif [ -x "$VENV/Scripts/python.exe" ]; then PY=$VENV/Scripts/python.exe
    else
        "$(_find_python)" -m venv "$VENV" || return 1
        PY=$VENV/bin/python
        [ -x "$PY" ] || PY=$VENV/Scripts/python.exe
    fi
    extras=$(IFS=,; echo "$*")
    want="$extras $(cat setup.cfg scripts/venv.sh | cksum)"
    stamp=$VENV/.installed
    if [ -e "$stamp" ] && grep -qxF -- "$want" "$stamp"; then return 0; fi
    echo "installing into $VENV, once: about 3 GB to download and 6 to 8 GB on disk, nearly all of it" \
        "torch and its CUDA libraries (less than 1 GB where torch comes without them)" >&2
    _pip --upgrade pip "setuptools>=70.1,<81" wheel || return 1
    case ",$extras," in
        *,all,* | *,gfpgan,*)
            # basicsr comes as source only, and an isolated build would fetch a whole torch of its own
            _pip torch torchvision numpy cython || return 1
            _pip --no-build-isolation "basicsr>=1.4.2" || return 1
            ;;
    esac
    _pip -e ".[$extras]" || return 1
    echo "$want" >> "$stamp"
}

_venv "$@" || exit 1
export PY
