-- What version 1 of the coordinator's tables looked like, with one request that
-- is done and one that waits. Never changed: databases like it may be anywhere.
PRAGMA user_version = 1;
CREATE TABLE requests(
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  client TEXT NOT NULL,
  idempotency_key TEXT,
  request BLOB NOT NULL,
  traceparent TEXT NOT NULL,
  detached INTEGER NOT NULL,
  model TEXT NOT NULL,
  seed INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL,
  max_tokens INTEGER NOT NULL,
  created_us INTEGER NOT NULL,
  deadline_us INTEGER,
  state INTEGER NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0,
  deaths INTEGER NOT NULL DEFAULT 0,
  numerics_id TEXT NOT NULL DEFAULT '',
  job TEXT NOT NULL DEFAULT '',
  rank INTEGER NOT NULL DEFAULT -1,
  incarnation INTEGER NOT NULL DEFAULT 0,
  params BLOB,
  first_token_us INTEGER,
  ended_us INTEGER,
  finish BLOB);
CREATE UNIQUE INDEX requests_by_key ON requests(client, idempotency_key)
  WHERE idempotency_key IS NOT NULL;
CREATE INDEX requests_unfinished ON requests(seq) WHERE ended_us IS NULL;
CREATE INDEX requests_by_end ON requests(ended_us)
  WHERE ended_us IS NOT NULL;
CREATE TABLE tokens(
  seq INTEGER NOT NULL,
  first INTEGER NOT NULL,
  num INTEGER NOT NULL,
  delta BLOB NOT NULL,
  PRIMARY KEY(seq, first)) WITHOUT ROWID;
CREATE TABLE models(
  name TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  identity BLOB NOT NULL,
  PRIMARY KEY(name, fingerprint)) WITHOUT ROWID;
CREATE TABLE facts(name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
-- GenerateRequest{text: "Once"}, Finish{reason: STOP}
INSERT INTO requests VALUES(1, 'r1-0123456789abcdef', 'ann', 'key',
  X'12044F6E6365', '', 1, 'tiny', 42, 1, 16, 1700000000000000, NULL, 3, 1, 0,
  'n1', 'job', 0, 77, NULL, 1700000001000000, 1700000002000000, X'0801');
INSERT INTO requests VALUES(2, 'r2-0123456789abcdef', 'ann', NULL,
  X'12044F6E6365', '', 1, 'tiny', 43, 1, 16, 1700000003000000, NULL, 1, 0, 0,
  '', '', -1, 0, NULL, NULL, NULL, NULL);
-- TokenDelta{token_ids: [7, 8], texts: ["a", "b"]}
INSERT INTO tokens VALUES(1, 0, 2, X'220207082A01612A0162');
INSERT INTO facts VALUES('time_us', 1700000004000000);
