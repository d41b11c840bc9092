-- Whose things are. '' and a base without a row: the machine's own user. Keys are ended, not deleted; should a row of
-- `keys` ever go, what it owned falls back to the machine's own user.
CREATE TABLE bases (
    name  TEXT PRIMARY KEY,                                     -- of a knowledge base, as its folder
    owner TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE
);
CREATE TABLE readers (
    base TEXT NOT NULL,
    key  TEXT NOT NULL REFERENCES keys (id) ON DELETE CASCADE,
    PRIMARY KEY (base, key)
);
ALTER TABLE conversations ADD COLUMN owner TEXT NOT NULL DEFAULT '';
ALTER TABLE generations ADD COLUMN owner TEXT NOT NULL DEFAULT '';
