"""How a document is cut into the pieces that are embedded and searched. The table is mofang.knowledge.SPLITTERS."""
