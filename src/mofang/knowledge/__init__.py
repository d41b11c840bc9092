"""Answers from one's own documents: load → split → embed → store → retrieve → ground an answer.

The tables below name what this room can be extended with. See docs/adding-loader.md, adding-splitter.md, adding-store.md.
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
        "pdf": Entry(
            "mofang.knowledge.loaders.pdf:load", "PDF; pages, boxes, headings by size; scans by a reader below"
        ),
        "docx": Entry("mofang.knowledge.loaders.docx:load", "Word; headings, numbered lists, tables, footnotes"),
        "docm": Entry("mofang.knowledge.loaders.docx:load", "the same"),
        "xlsx": Entry("mofang.knowledge.loaders.xlsx:load", "Excel; sheet!row, header rows, questions with answers"),
        "xlsm": Entry("mofang.knowledge.loaders.xlsx:load", "the same"),
        "pptx": Entry("mofang.knowledge.loaders.pptx:load", "PowerPoint; slides, their titles, tables and notes"),
        "csv": Entry("mofang.knowledge.loaders.csv:load", "CSV in any encoding; rows, questions with answers"),
        "tsv": Entry("mofang.knowledge.loaders.csv:load", "the same, parted by tabs"),
        "jsonl": Entry("mofang.knowledge.loaders.jsonl:load", "JSON Lines; questions with answers, texts, records"),
        "epub": Entry("mofang.knowledge.loaders.epub:load", "books; chapters in the order of reading"),
    },
)

READERS = Registry(
    "ocr",
    {
        # Read the pictures of pages that have no text layer.
        "rapidocr": Entry(
            "mofang.knowledge.loaders.ocr:RapidReader", "RapidOCR, on this machine", extra="ocr", library="rapidocr"
        ),
    },
)

SPLITTERS = Registry(
    "splitter",
    {
        "sentence": Entry("mofang.knowledge.split.sentence:split", "cuts at sentence ends, never across headings"),
    },
)

STORES = Registry(
    "store",
    {
        # A base names one when it is created; connections are settings.
        "builtin": Entry("mofang.knowledge.stores.builtin:open_store", "in memory and mapped files, HNSW when large"),
        "chroma": Entry(
            "mofang.knowledge.stores.chroma:open_store", "Chroma, embedded or its server", "chroma", "chromadb"
        ),
        "pgvector": Entry(
            "mofang.knowledge.stores.pgvector:open_store", "PostgreSQL with pgvector", "pgvector", "psycopg"
        ),
        "opensearch": Entry(
            "mofang.knowledge.stores.opensearch:open_store",
            "OpenSearch: k-NN and BM25 over our words",
            "opensearch",
            "opensearchpy",
        ),
        "langchain": Entry(
            "mofang.knowledge.stores.langchain:open_store", "any LangChain VectorStore", "langchain", "langchain_core"
        ),
    },
)
