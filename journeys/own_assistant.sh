#!/usr/bin/env bash
# 从一个底座模型到自己的助手：导入、教、合并、导出、检查、服务、提问、问文档，最后前后对比。
# From a base model to your own assistant: import, teach, merge, export, check, serve, ask, ask documents, compare.
#
#   make journey
#
# 每一步都是一条您自己也会输入的命令。结果放在 artefacts/journey 里，不动您的 ~/.mofang。
# Each step is a command that you would type yourself. Results go to artefacts/journey; your ~/.mofang is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

export MOFANG_HOME="${MOFANG_HOME:-$PWD/artefacts/journey}" MOFANG_PORT="${MOFANG_PORT:-18642}"
export PATH="$PWD/.venv/bin:$PATH"
base=qwen2.5-coder-0.5b-instruct
out="$MOFANG_HOME/journey"
mkdir -p "$out"
began=$SECONDS
step() { printf '\n── %s　[%d s]\n' "$1" $((SECONDS - began)); }

step "安装训练依赖 / install the training extra"
make --no-print-directory training

step "取回底座和向量模型 / bring base and embedding model"
for model in "$base" multilingual-e5-small; do
  mofang models info "$model" --json >/dev/null 2>&1 || mofang models pull "$model"
done

step "看一条样例会变成什么 / what an example becomes"
mofang data preview journeys/data/mofang_zh.jsonl --base "$base"

step "教之前先考一次 / questions before teaching"
mofang eval "$base" --set identity_zh --set common_zh --set text_zh --json >"$out/before.json"

step "教：LoRA 微调 / teach: LoRA"
mofang train sft recipes/own_assistant.yaml --json >"$out/run.json"
run=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["id"])' "$out/run.json")
mofang runs show "$run"

step "合并，并核对与“底座加适配器”一致 / merge, and check against base and adapter"
mofang export merge "$run" --overwrite

step "导出 GGUF，并与来源比较 / export to GGUF, and compare with its source"
mofang export gguf "$run" --type q8_0 --overwrite
mofang export check "$run" --n-tokens 128

step "教之后再考一次 / the same questions after teaching"
mofang eval "$run" --set identity_zh --set common_zh --set text_zh --json >"$out/after.json"

step "服务：OpenAI 兼容接口 / serve an OpenAI-compatible API"
mofang serve >"$out/serve.log" 2>&1 &
server=$!
trap 'kill -INT $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
python journeys/ask.py "$run" "请问您是哪位？"

step "把 docs/ 当知识库，带出处地问 / docs/ as a knowledge base, asked with sources"
mofang kb add mofang-docs docs/*.md >/dev/null
mofang kb ask mofang-docs "网关默认用哪个端口？" --model "$run" --json >"$out/kb.json"
python journeys/ask.py --show "$out/kb.json"

step "前后对比 / before and after"
mofang runs show "$run" --json >"$out/show.json"
python journeys/compare.py "$out" --seconds $((SECONDS - began))
