# shellcheck shell=bash
# Sourced by scripts/quickstart and scripts/test: an environment with the package and one of its extras.
# Everything is quiet unless it fails; a second run with nothing changed takes a moment.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 5
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Print the first Python on this machine that is new enough.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$name" >/dev/null && is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    fail "vq-prior needs Python 3.11 or newer, and there is none on PATH; install one and run this again"
}

# Use the active virtual environment, or .venv in the repository, made if it is not there.
activate_environment() {
    local root="$1" python
    if [[ -z "${VIRTUAL_ENV:-}" ]]; then
        export VIRTUAL_ENV="$root/.venv"
        if [[ ! -x "$VIRTUAL_ENV/bin/python" ]]; then
            python="$(find_python)"
            # A torch that the machine already has is kept: the environment sees it.
            if "$python" -c 'import torch' >/dev/null 2>&1; then
                "$python" -m venv --system-site-packages "$VIRTUAL_ENV"
            else
                "$python" -m venv "$VIRTUAL_ENV"
            fi || fail "no virtual environment could be made at $VIRTUAL_ENV"
            # The pip that comes with an older Python takes twice as long; without a newer one it does.
            PATH="$VIRTUAL_ENV/bin:$PATH" quiet_pip install --upgrade pip 2>/dev/null || true
        fi
    fi
    export PATH="$VIRTUAL_ENV/bin:$PATH"
    hash -r
    is_new_enough python || fail "vq-prior needs Python 3.11 or newer, and $VIRTUAL_ENV has $(python -V 2>&1)"
}

quiet_pip() {
    python -m pip --version >/dev/null 2>&1 || python -m ensurepip >/dev/null || fail "this environment has no pip"
    PIP_ROOT_USER_ACTION=ignore python -m pip -qq --no-input --disable-pip-version-check "$@" </dev/null
}

# Print what an installation depends on: where the package is, what it asks for, and the Python below it.
fingerprint() {
    (cd "$1" && python -I - <<'END'
import hashlib, os, sys
parts = [os.getcwd(), sys.version, *(open(name).read() for name in ("pyproject.toml", "constraints.txt"))]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
END
    )
}

# Print the version of the torch that is there, as its installer wrote it down; nothing if there is none.
present_torch() {
    python -c 'import torch; from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true
}

# prepare_environment ROOT EXTRA: activate an environment in which vq-prior[EXTRA] is installed from ROOT.
prepare_environment() {
    local root="$1" extra="$2" stamp wanted torch constraints
    activate_environment "$root"
    # Without the files that this would forbid, every process compiles all that it imports: three times the start.
    unset PYTHONDONTWRITEBYTECODE
    stamp="$VIRTUAL_ENV/.vq-prior-installed"
    wanted="$(fingerprint "$root")"
    if grep -qsx "$wanted $extra" "$stamp" && [[ -x "$VIRTUAL_ENV/bin/vq-prior" ]]; then
        return
    fi
    echo "installing vq-prior and what it needs (minutes the first time)" >&2
    # --no-compile makes the wait a third: what is imported is compiled on first use, and most of it never is.
    torch="$(present_torch)"
    if [[ -z "$torch" ]]; then
        quiet_pip install --no-compile "$(grep '^torch==' "$root/constraints.txt")" || fail "torch could not be installed"
        torch="$(present_torch)"
        [[ -n "$torch" ]] || fail "torch was installed but cannot be imported"
    fi
    constraints="$(mktemp)"
    { grep -v '^torch==' "$root/constraints.txt"; echo "torch==$torch"; } >"$constraints"
    quiet_pip install --no-compile --constraint "$constraints" --editable "$root[$extra]" \
        || fail "vq-prior could not be installed; the lines above say why"
    rm -f "$constraints"
    # Another clone's installation in the same environment ends here: only lines of this one stay valid.
    { grep -s "^$wanted " "$stamp" || true; echo "$wanted $extra"; } >"$stamp.new"
    mv "$stamp.new" "$stamp"
}
