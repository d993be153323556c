#!/usr/bin/env bash
# Makes a Docker image of this machine's own PostgreSQL, for machines that reach no registry:
#     .ci/postgres-image.sh [TAG]        (default: ork-state-postgres:local)
# It takes what the official image takes of its environment: POSTGRES_PASSWORD, and listens on port 5432.
set -euo pipefail

tag=${1:-ork-state-postgres:local}
binaries=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
version=$(basename "$(dirname "$binaries")")
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

mkdir -p "$root"/{bin,etc,tmp,run,var/lib/postgresql}
chmod 1777 "$root/tmp"

# The programs, at the paths they have here, and every library that they load, the dynamic linker among them.
programs=("$binaries"/{postgres,initdb} /bin/{sh,cat,mkdir,chown,chmod} /usr/bin/setpriv)
modules=("/usr/lib/postgresql/$version/lib"/{auto_explain,dict_snowball,plpgsql}.so)
libraries=$(ldd "${programs[@]}" "${modules[@]}" | grep -o '/[^ ]*' | grep -v ':$' | sort -u)
# shellcheck disable=SC2086
tar -chf - "${programs[@]}" "${modules[@]}" $libraries \
    "/usr/share/postgresql/$version" /usr/share/zoneinfo/UTC 2>/dev/null | tar -xf - -C "$root"

cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/:/bin/sh
postgres:x:999:999:postgres:/var/lib/postgresql:/bin/sh
END
printf 'root:x:0:\npostgres:x:999:\n' >"$root/etc/group"

cat >"$root/entrypoint" <<END
#!/bin/sh
set -e
data=/var/lib/postgresql/data
user="setpriv --reuid=999 --regid=999 --clear-groups"
if [ ! -e "\$data" ]; then
    mkdir -p "\$data" /run/postgresql
    chown 999:999 "\$data" /run/postgresql /var/lib/postgresql
    echo "\$POSTGRES_PASSWORD" >/tmp/password
    chmod 644 /tmp/password
    \$user $binaries/initdb -D "\$data" -U postgres --pwfile=/tmp/password \\
        --auth-host=scram-sha-256 --auth-local=trust --encoding=UTF8 --locale=C
    echo 'host all all all scram-sha-256' >>"\$data/pg_hba.conf"
fi
exec \$user $binaries/postgres -D "\$data" -c listen_addresses='*' -c max_connections=200 -c unix_socket_directories=/tmp -c fsync=off
END
chmod +x "$root/entrypoint"

tar -C "$root" -cf - . | docker import --change 'ENTRYPOINT ["/entrypoint"]' --change 'EXPOSE 5432' - "$tag" >/dev/null
echo "made the image $tag of PostgreSQL $version"
