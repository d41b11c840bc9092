-- Files that the turns of conversations refer to, what they say, and when those leave that came for a time only.
ALTER TABLE files ADD COLUMN expires_at TEXT;           -- NULL: never
CREATE TABLE attached (
    file         TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    conversation TEXT NOT NULL,                         -- no reference: that it is gone is how its files are found
    PRIMARY KEY (file, conversation)
);
CREATE TABLE readings (
    file  TEXT PRIMARY KEY REFERENCES files (id) ON DELETE CASCADE,
    text  TEXT NOT NULL,                                -- as the loader of its format reads it
    notes TEXT NOT NULL                                 -- JSON list of what a person should know about that
);
