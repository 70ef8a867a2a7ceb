# Sourced by the scripts beside it: a Python to make virtual environments with.

find_python() {
    for python in python3.11 python3.12 python3.13 python3; do
        if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    echo "No Python 3.11 or later with venv was found; needed: one on the PATH. Install it and run this again." >&2
    return 1
}
