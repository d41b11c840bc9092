"""A document chat with LangChain and Chroma, in which Mofang is the model server: load → split → embed → Chroma → answer.

pip install langchain-openai langchain-chroma langchain-text-splitters
mofang up
python langchain_app.py FOLDER "年假有几天？"
"""

import sys
from pathlib import Path

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter

PROMPT = ChatPromptTemplate.from_template(
    "只根据资料回答，没有就说“资料中没有找到”。\n\n资料：\n{context}\n\n问题：{question}"
)


def main(folder: str, question: str, url: str = "http://127.0.0.1:8642/v1", key: str = "none") -> str:
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix in (".txt", ".md"))
    documents = [Document(path.read_text("utf-8"), metadata={"source": path.name}) for path in files]
    splitter = RecursiveCharacterTextSplitter(
        ["\n\n", "\n", "。", "！", "？", "；", ""], chunk_size=300, chunk_overlap=30
    )
    # Without check_embedding_ctx_length=False it cuts long texts by OpenAI's own tokens, which it would download.
    embeddings = OpenAIEmbeddings(model="auto", base_url=url, api_key=key, check_embedding_ctx_length=False)
    store = Chroma.from_documents(splitter.split_documents(documents), embeddings)
    found = store.similarity_search(question, k=4)
    context = "\n\n".join(f"【{one.metadata['source']}】{one.page_content}" for one in found)
    chat = ChatOpenAI(model="auto", base_url=url, api_key=key, temperature=0)
    return str((PROMPT | chat).invoke({"context": context, "question": question}).content)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
