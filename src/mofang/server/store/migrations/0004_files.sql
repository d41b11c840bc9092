-- Files that came through /v1/files, and the knowledge bases that they were put into (/v1/vector_stores).
CREATE TABLE files (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,                   -- id of a key; '': the machine's own user
    name       TEXT NOT NULL,
    purpose    TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    created_at TEXT NOT NULL
);
CREATE TABLE attachments (
    base       TEXT NOT NULL,
    file       TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    document   TEXT NOT NULL,                   -- the document's name in the base
    status     TEXT NOT NULL,                   -- in_progress, completed, failed
    error      TEXT,                            -- JSON {"code", "message"}
    created_at TEXT NOT NULL,
    PRIMARY KEY (base, file)
);
