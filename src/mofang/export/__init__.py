"""From one form of a model to another: each file is the worker of one exporter in mofang.recipes.EXPORTERS."""
