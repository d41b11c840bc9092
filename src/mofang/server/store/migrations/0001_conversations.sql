-- Conversations as trees of messages; the answers (generations) that write them.
-- `number` keeps the order of creation; `id` is what clients see. Times are ISO 8601, UTC.

CREATE TABLE conversations (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    title      TEXT NOT NULL DEFAULT '',
    system     TEXT NOT NULL DEFAULT '',
    model      TEXT NOT NULL DEFAULT 'auto',
    knowledge  TEXT NOT NULL DEFAULT '[]',      -- JSON list of names
    sampling   TEXT NOT NULL DEFAULT '{}',      -- JSON object, request fields
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE INDEX conversations_by_update ON conversations (updated_at);

CREATE TABLE messages (
    number          INTEGER PRIMARY KEY AUTOINCREMENT,
    id              TEXT NOT NULL UNIQUE,
    conversation_id TEXT REFERENCES conversations (id) ON DELETE CASCADE,   -- NULL: an answer outside conversations
    parent_id       TEXT REFERENCES messages (id),
    generation_id   TEXT REFERENCES generations (id) DEFERRABLE INITIALLY DEFERRED,
    role            TEXT NOT NULL,
    content         TEXT NOT NULL DEFAULT '',
    reasoning       TEXT NOT NULL DEFAULT '',
    extra           TEXT NOT NULL DEFAULT '{}', -- JSON: parts, name, tool_calls, tool_call_id
    sources         TEXT NOT NULL DEFAULT '[]', -- JSON list of Source
    usage           TEXT,                       -- JSON, OpenAI's shape
    timings         TEXT,                       -- JSON
    model           TEXT,
    status          TEXT NOT NULL,              -- as in generations; "done" for what people wrote
    created_at      TEXT NOT NULL
);
CREATE INDEX messages_by_conversation ON messages (conversation_id, number);
CREATE INDEX messages_by_parent ON messages (parent_id);

CREATE TABLE generations (
    number           INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    conversation_id  TEXT REFERENCES conversations (id) ON DELETE CASCADE,
    message_id       TEXT NOT NULL,
    user_message_ids TEXT NOT NULL DEFAULT '[]',
    model            TEXT NOT NULL,
    status           TEXT NOT NULL,             -- queued, running, done, stopped, error
    finish_reason    TEXT,
    error            TEXT,                      -- JSON, OpenAI's error shape
    events           BLOB,                      -- zlib of the JSON list of events; NULL while running
    created_at       TEXT NOT NULL,
    finished_at      TEXT
);
CREATE INDEX generations_by_status ON generations (status);
CREATE INDEX generations_by_conversation ON generations (conversation_id);
