"""GPTQ: a model's linear layers in 2 to 8 bits, each chosen so that the layer still answers what it answered.

solve     the algorithm, for one matrix      format    its files: packing, reading, writing (numpy, no torch)
layers    a model, one decoder layer at a time          worker    `mofang export gptq`, a run
"""
