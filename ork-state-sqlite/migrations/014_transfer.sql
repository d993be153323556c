-- What another store holds is taken in by records, which are kept here, apart from all else, until the last of them has come. `record` is one
-- in its encoded form: an object with one key, the kind; the payloads in it are strings that hold JSON.

CREATE TABLE import_progress (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    records INTEGER NOT NULL,
    digest TEXT NOT NULL
) STRICT;

CREATE TABLE import_records (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
