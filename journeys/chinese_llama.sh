#!/usr/bin/env bash
# 给几乎不懂中文的底座补上中文：训练中文词表、扩充、接着预训练、指令微调、导出，最后前后对比。
# Chinese for a base that hardly knows any: learn a vocabulary, extend, go on pre-training, tune, export, compare.
#
#   make journey-chinese                                     Debian 的中文文档，预训练 25 分钟
#   MINUTES=60 TEXTS=我的文档 HELD_OUT=没学过的文档 make journey-chinese    自己的文档（网页、PDF、Word……）
#
# 每一步都是一条您自己也会输入的命令。结果放在 artefacts/journey-chinese 里，不动您的 ~/.mofang。
# Each step is a command that you would type yourself. Results go to artefacts/journey-chinese; ~/.mofang is left alone.
# TEXTS: what is learned; HELD_OUT: documents that are only measured on; SIZE: new tokens; BASE: the model.
set -euo pipefail
cd "$(dirname "$0")/.."

export MOFANG_HOME="${MOFANG_HOME:-$PWD/artefacts/journey-chinese}" MOFANG_PORT="${MOFANG_PORT:-18642}"
export PATH="$PWD/.venv/bin:$PATH"
BASE="${BASE:-smollm2-135m-instruct}" MINUTES="${MINUTES:-25}" SIZE="${SIZE:-8000}"
out="$MOFANG_HOME/journey"
mkdir -p "$out"
began=$SECONDS
step() { printf '\n── %s　[%d s]\n' "$1" $((SECONDS - began)); }

step "安装训练依赖 / install the training extra"
python -c "import torch, transformers, peft" 2>/dev/null || make --no-print-directory training

if [ -z "${TEXTS:-}" ]; then
  step "取回文档：Debian 的中文手册 / bring documents: Debian's Chinese manuals"
  bash bench/corpora/fetch.sh "$MOFANG_HOME/documents"
  in="$MOFANG_HOME/documents"
  python journeys/man_text.py "$in/manpages-zh/usr/share/man/zh_CN" "$in/manual-pages"
  TEXTS="$in/libreoffice-help-zh-cn $in/kicad-doc-zh $in/debian-edu-doc-zh-cn $in/manual-pages"
  HELD_OUT="$in/debian-reference-zh-cn"
fi

step "文档变成文本 / documents into text"
# shellcheck disable=SC2086  # several folders in one variable
rm -f "$out/learned.jsonl" "$out/held_out.jsonl"  # of an earlier walk
mofang data text $TEXTS --language zh -o "$out/learned.jsonl" 2>/dev/null
mofang data text $HELD_OUT --language zh -o "$out/held_out.jsonl" 2>/dev/null
python journeys/chinese_table.py excerpts "$out"

step "取回底座，变成能训练的 / bring the base, in a form that can be trained"
mofang models info "$BASE" --json >/dev/null 2>&1 || mofang models pull "$BASE"
mofang models info base --json >/dev/null 2>&1 || mofang models import "$BASE" --name base
mofang export gguf base --type q8_0 --name before --overwrite

step "学一个中文词表，加在底座的后面 / learn a Chinese vocabulary, appended to the base's"
mofang tokenizer extend base "$out/learned.jsonl" --size "$SIZE" --out "$out/tokenizer"
mofang tokenizer measure base "$out/held_out.jsonl" --against "$out/tokenizer" --json >"$out/tokens.json"
mofang export resize base --tokenizer "$out/tokenizer" --name extended --overwrite

step "接着预训练 ${MINUTES} 分钟 / go on pre-training"
mofang train pretrain --base extended --data "$out/learned.jsonl" --eval-data "$out/excerpts.jsonl" \
  --tune full --max-length 512 --batch-size 4 --learning-rate 5e-4 --warmup-ratio 0.1 \
  --epochs 100 --max-minutes "$MINUTES" --eval-every 1000000 --name chinese --json >"$out/pretrain.json"
mofang runs show chinese

step "指令微调 / tune on instructions"
mofang train sft --base chinese --data journeys/data/mofang_zh.jsonl --epochs 1 --name assistant --json >"$out/sft.json"
mofang export gguf assistant --type q8_0 --name after --overwrite
mofang export check after --n-tokens 128

step "同样的文字，前后各读一遍 / the same text, read before and after"
sets=$(printf ' --set %s' "$out"/excerpt-*.txt)
# shellcheck disable=SC2086
mofang eval before after $sets --n-tokens 4096 --json >"$out/bits.json"

step "生成速度 / decoding speed"
for model in before after; do
  mofang engine bench "$model" --contexts 128 --json >"$out/speed-$model.json"
done

step "前后对比 / before and after"
python journeys/chinese_table.py table "$out" --seconds $((SECONDS - began))
