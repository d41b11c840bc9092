#!/usr/bin/env bash
# Real Chinese documents for benchmarks, from Debian's documentation packages.
#   fetch.sh [DIR]   → DIR/<package>/… (unpacked, nothing is installed); DIR is this folder when not given
# A package already there is skipped. The texts carry their own free licences (GPL, MPL, CC BY-SA): use them, do not
# commit them (.gitignore leaves this folder's subfolders out).
set -euo pipefail
dir=${1:-$(dirname "$0")}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
packages="libreoffice-help-zh-cn libreoffice-help-en-us debian-reference-zh-cn debian-reference-en manpages-zh debian-edu-doc-zh-cn kicad-doc-zh"
command -v apt-get >/dev/null || { echo "fetch.sh needs apt-get (Debian or Ubuntu)" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
updated=
for package in $packages; do
  [ -d "$dir/$package/usr" ] && continue
  [ -n "$updated" ] || apt-get update -qq >/dev/null 2>&1 || true  # as a plain user: the lists as they are
  updated=yes
  rm -rf "$dir/$package.part"
  (cd "$work" && apt-get download -qq "$package" 2>/dev/null) || { echo "$package: apt-get download failed" >&2; exit 1; }
  dpkg -x "$work/$package"_*.deb "$dir/$package.part"
  rm -rf "$dir/$package"
  mv "$dir/$package.part" "$dir/$package"
  echo "$package: $(find "$dir/$package" -type f | wc -l) files"
done
