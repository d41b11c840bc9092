-- Keys that the owner gave out. The key itself is nowhere: only its SHA-256, as hex.
CREATE TABLE keys (
    number              INTEGER PRIMARY KEY AUTOINCREMENT,
    id                  TEXT NOT NULL UNIQUE,
    name                TEXT NOT NULL,
    hash                TEXT NOT NULL UNIQUE,
    created_at          TEXT NOT NULL,
    last_used_at        TEXT,
    expires_at          TEXT,                       -- NULL: never
    revoked_at          TEXT,                       -- kept, so that the id in an old log still has a name
    requests_per_minute INTEGER,                    -- NULL: no limit, as in the two below
    tokens_per_minute   INTEGER,
    concurrent          INTEGER,
    models              TEXT NOT NULL DEFAULT '[]'  -- JSON list of names and globs; empty: every model
);
