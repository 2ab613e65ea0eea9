#!/bin/sh
# Makes what deploy/compose.yaml needs of secrets, one for each user of the broker and of the database, and those that
# sign the tracker's links and the names by which returned mail is known:
#
#     sh deploy/make_secrets.sh
#
# deploy/.env gets the passwords, deploy/definitions.json the broker's users with salted hashes. Neither is made
# again where it is there.
set -eu
umask 077
cd "$(dirname "$0")"
if [ -e .env ] || [ -e definitions.json ]; then
    echo "deploy/.env or deploy/definitions.json is there already: remove both to begin anew." >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
for user in upstream listener tracker sender \
    sendoff-confirm sendoff-fanout sendoff-send sendoff-claims sendoff-results sendoff-tracking sendoff-stats \
    sendoff-schedule sendoff-events sendoff-returned sendoff-webhooks sendoff-console sendoff-ops
do
    openssl rand -hex 24 > "$folder/$user"
    echo "BROKER_$(echo "$user" | tr a-z- A-Z_)=$(cat "$folder/$user")" >> "$folder/.env"
done
for role in superuser owner worker reader; do
    echo "DATABASE_$(echo "$role" | tr a-z A-Z)=$(openssl rand -hex 24)" >> "$folder/.env"
done
for signed in TRACKER BOUNCE; do
    echo "${signed}_SECRET=$(openssl rand -hex 32)" >> "$folder/.env"
done
python3 rabbitmq/set_passwords.py "$folder" > definitions.json
chmod 644 definitions.json # the broker runs as a user of its own
mv "$folder/.env" .env
