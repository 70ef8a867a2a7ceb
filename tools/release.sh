#!/bin/sh
# Everything that a release publishes, in a new folder: tools/release.sh [FOLDER]
# Wheel and sdist, SBOM of a bare installation, notes (the section of the changelog), Homebrew formula, digests.
set -eu
out=${1:-dist}
cd "$(dirname "$0")/.."
. tools/python.sh
if [ -e "$out" ]; then
    echo "$out: exists; needed: a new folder" >&2
    exit 1
fi

# macOS has no sha256sum
sha256() {
    if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(find_python)
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' mint/core/version.py)

echo "== building $version"
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" install --quiet --disable-pip-version-check build twine cyclonedx-bom
"$work/tools/bin/python" -m build --outdir "$out" . >/dev/null
"$work/tools/bin/twine" check --strict "$out"/*

echo "== installing the wheel alone"
"$python" -m venv "$work/bare"
"$work/bare/bin/pip" install --quiet --disable-pip-version-check "$out"/*.whl
test "$(cd "$work" && bare/bin/mint --version)" = "mint $version"

echo "== SBOM, notes, formula, digests"
"$work/tools/bin/cyclonedx-py" environment --output-reproducible --of JSON -o "$out/sbom.cdx.json" "$work/bare/bin/python"
sed -n "/^## $version/,/^## /p" CHANGELOG.md | grep -v '^## ' >"$out/notes.md"
sdist=$(basename "$out"/*.tar.gz)
digest=$(sha256 "$out/$sdist" | cut -d' ' -f1)
sed "s|\"URL\"|\"${MINT_RELEASE_URL:-URL}/$sdist\"|; s|\"SHA256\"|\"$digest\"|" packaging/homebrew/mint-mlx.rb >"$out/mint-mlx.rb"
(cd "$out" && sha256 -- * >"$work/SHA256SUMS" && mv "$work/SHA256SUMS" .)
ls "$out"
