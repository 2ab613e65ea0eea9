#!/bin/sh
# Gives each role of roles.sql its password. The image of Postgres runs it once, after roles.sql.
set -eu
psql --no-psqlrc --set=ON_ERROR_STOP=1 --dbname="$POSTGRES_DB" --username="$POSTGRES_USER" <<'SQL'
\getenv owner DATABASE_OWNER
\getenv worker DATABASE_WORKER
\getenv reader DATABASE_READER
ALTER ROLE sendoff_owner PASSWORD :'owner';
ALTER ROLE sendoff_worker PASSWORD :'worker';
ALTER ROLE sendoff_reader PASSWORD :'reader';
SQL
