-- How a conversation's answers begin; what people keep to begin conversations with. '' as owner: the machine's own user.
ALTER TABLE conversations ADD COLUMN prefix TEXT NOT NULL DEFAULT '';

CREATE TABLE personas (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,
    name       TEXT NOT NULL,
    system     TEXT NOT NULL DEFAULT '',
    greeting   TEXT NOT NULL DEFAULT '',
    model      TEXT NOT NULL DEFAULT 'auto',
    sampling   TEXT NOT NULL DEFAULT '{}',      -- JSON object, request fields
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
CREATE TABLE presets (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    id         TEXT NOT NULL UNIQUE,
    owner      TEXT NOT NULL,
    name       TEXT NOT NULL,
    sampling   TEXT NOT NULL DEFAULT '{}',      -- JSON object, request fields
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
);
