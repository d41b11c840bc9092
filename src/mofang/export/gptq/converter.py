"""llama.cpp's converter over a GPTQ folder, keeping what was quantized to the bit: a child process's program.

The converter reads GPTQ, but writes its weights rounded anew. Here they are read by our own reader, and each matrix that
is blocks of llama.cpp's already (mofang.export.lossless), after all that the converter did to its rows, is written as
those. Other matrices become `--outtype`; with `--kept` they stay what they are, in the smallest type that holds them.
Run as `python converter.py TOOLS PRE|- [--kept] [the converter's own arguments]`. Its last line counts weights.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mofang.export import converter, lossless
from mofang.export.gptq import format


def main() -> None:
    tools, pre, *arguments = sys.argv[1:]
    sys.path.insert(0, tools)
    import gguf
    import torch
    from conversion import base  # type: ignore[import-not-found]

    keep = "--kept" in arguments
    arguments = [each for each in arguments if each != "--kept"]
    folder = Path(arguments[0])
    stated = format.config(folder)
    read = Counter[str]()

    def dequantized(model: Any) -> None:
        """In the model's table of tensors each quantized matrix takes the place of its parts."""
        lazy = base.LazyTorchTensor
        for name in [name for name in model.model_tensors if name.endswith(".qweight")]:
            stem = name.removesuffix(".qweight")
            parts: list[Any] = [model.model_tensors.pop(f"{stem}.{part}", None) for part in format.PARTS]

            def whole(parts: list[Any] = parts, stem: str = stem) -> Any:
                qweight, qzeros, scales, g_idx = (part and part() for part in parts)
                n_in = qweight.shape[0] * 32 // stated.bits
                if g_idx is None:
                    g_idx = torch.arange(n_in) // (stated.group_size if stated.group_size > 0 else n_in)
                shape = (qweight.shape[1], n_in)
                read[stem] = shape[0] * shape[1]

                def values(*given: Any) -> Any:
                    layer = format.Layer(*(each.numpy() for each in given))
                    return torch.from_numpy(layer.weight(stated))

                meta = lazy.meta_with_dtype_and_shape(torch.float32, shape)
                return lazy(meta=meta, args=(qweight, qzeros, scales, g_idx), func=values)

            model.model_tensors[f"{stem}.weight"] = whole

    prepare, written = base.ModelBase.prepare_tensors, Counter[str]()
    quantize = gguf.quants.quantize

    def prepared(model: Any) -> None:
        modify, forced = model.modify_tensors, model.tensor_force_quant
        ready: dict[str, Any] = {}

        def modified(data: Any, name: str, bid: int | None) -> Any:
            for new_name, tensor in modify(data, name, bid):
                values = base.LazyTorchTensor.to_eager(tensor) if tensor.ndim > 1 else tensor
                ready["values"] = values
                yield new_name, values
                ready.clear()

        def typed(name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            wanted = forced(name, new_name, bid, n_dims)
            if n_dims < 2 or not isinstance(wanted, bool) or not new_name.endswith(".weight"):
                return wanted
            values = ready["values"].float().numpy()
            found = lossless.encode(values)
            if found is None:
                return gguf.GGMLQuantizationType[lossless.kept(values)] if keep else wanted
            ready["blocks"] = found[1]
            written[found[0].name] += values.size
            return gguf.GGMLQuantizationType[found[0].name]

        def quantized(data: Any, kind: Any) -> Any:
            return ready.pop("blocks") if "blocks" in ready else quantize(data, kind)

        model.modify_tensors, model.tensor_force_quant, gguf.quants.quantize = modified, typed, quantized
        prepare(model)
        if written:
            model.ftype = gguf.LlamaFileType[f"MOSTLY_{written.most_common(1)[0][0]}"]
        print(f"mofang: {sum(read.values())} quantized weights, {sum(written.values())} kept", flush=True)
        if sum(written.values()) < sum(read.values()):
            sys.exit("mofang: quantized weights would be rounded anew")

    base.ModelBase.dequant_model = dequantized
    base.ModelBase.prepare_tensors = prepared
    converter.start(tools, pre, arguments)


if __name__ == "__main__":
    main()
