"""Answers from one's own documents: load → split → embed → store → retrieve → ground an answer.

The tables below name what this room can be extended with. See docs/adding-loader.md and docs/adding-splitter.md.
"""

from mofang.registry import Entry, Registry

LOADERS = Registry(
    "loader",
    {
        # A name is a file suffix, lower case, without its dot.
        "txt": Entry("mofang.knowledge.loaders.text:load", "plain text in any encoding; paragraphs, chapter titles"),
        "text": Entry("mofang.knowledge.loaders.text:load", "the same"),
        "md": Entry("mofang.knowledge.loaders.markdown:load", "Markdown; headings, lists, tables, code"),
        "markdown": Entry("mofang.knowledge.loaders.markdown:load", "the same"),
        "html": Entry("mofang.knowledge.loaders.html:load", "a web page; headings, lists, tables, code"),
        "htm": Entry("mofang.knowledge.loaders.html:load", "the same"),
        "pdf": Entry("mofang.knowledge.loaders.pdf:load", "PDF with a text layer; pages, boxes, headings by size"),
    },
)

SPLITTERS = Registry(
    "splitter",
    {
        "sentence": Entry("mofang.knowledge.split.sentence:split", "cuts at sentence ends, never across headings"),
    },
)
