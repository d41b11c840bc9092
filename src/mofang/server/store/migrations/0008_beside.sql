-- A second model that answers each question beside the conversation's own; '': none.
ALTER TABLE conversations ADD COLUMN beside TEXT NOT NULL DEFAULT '';
