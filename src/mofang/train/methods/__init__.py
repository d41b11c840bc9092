"""One file a training method; the list is mofang.recipes.METHODS, whose recipes name their worker."""
