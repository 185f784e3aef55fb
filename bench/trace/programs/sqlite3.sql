-- A table of blobs that is filled, thinned out, updated with longer blobs, copied and dropped.
CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, body BLOB);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<20000)
INSERT INTO t SELECT i, hex(randomblob(4+i%20)), zeroblob(16+(i*7919)%1500) FROM n;
CREATE INDEX by_name ON t(name);
DELETE FROM t WHERE id%3=0;
UPDATE t SET body=zeroblob(16+(id*104729)%3000) WHERE id%2=0;
CREATE TABLE u AS SELECT name, length(body) AS n FROM t ORDER BY name;
DROP TABLE t;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<40000)
INSERT INTO u SELECT hex(randomblob(30)), i FROM n;
SELECT count(*), sum(n), group_concat(name) FROM u;
