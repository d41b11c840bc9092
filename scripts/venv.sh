#!/usr/bin/env bash
# Make the virtual environment, or say in both languages what the system lacks and what to type.
set -euo pipefail
say() { printf '%s\n' "$@" >&2; }

if ! command -v "$PYTHON" >/dev/null; then
  say "没有找到 $PYTHON。请安装 Python 3.11 或更新的版本，例如：sudo apt-get install python3 python3-venv" \
      "$PYTHON not found. Install Python 3.11 or newer, for example: sudo apt-get install python3 python3-venv"
  exit 1
fi
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  say "模坊需要 Python 3.11 或更新的版本，$PYTHON 是 $("$PYTHON" -V 2>&1)。另有一个时：PYTHON=python3.11 make run" \
      "Mofang needs Python 3.11 or newer; $PYTHON is $("$PYTHON" -V 2>&1). If there is another one: PYTHON=python3.11 make run"
  exit 1
fi
version=$("$PYTHON" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")')
if ! "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; then
  say "这个 Python 没有 venv 模块。Debian、Ubuntu 上请运行：sudo apt-get install python$version-venv" \
      "This Python has no venv module. On Debian or Ubuntu run: sudo apt-get install python$version-venv"
  exit 1
fi
"$PYTHON" -m venv "$VENV"
