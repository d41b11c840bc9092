-- The tools that a conversation's answers may ask for.
ALTER TABLE conversations ADD COLUMN tools TEXT NOT NULL DEFAULT '[]';     -- JSON list of names
