#!/usr/bin/env bash
# Install jetson-agent as a daemon: a virtual environment, a user without rights, two systemd units.
# Run it again to update; it keeps settings and results.
set -euo pipefail
# The agent's user has to read programs and settings, whatever the one who installs them is used to.
umask 022

usage() {
  cat <<'TEXT'
Usage: sudo infra/jetson/install.sh --tracking-uri URI [options]

  --tracking-uri URI   MLflow server; needed the first time
  --credentials FILE   username=.. and password=.., or token=..; copied to where only root reads it
  --ca-file FILE       certificate of your own CA, for https
  --source PATH        checkout, wheel or name of the package to install [this checkout]
  --lock-clocks        pin the clocks at every start (jetson-clocks-lock.service)
  --python PROGRAM     Python 3.10 or newer [python3]
  --no-start           install, but start nothing
  --uninstall          remove programs and units; settings, user and results stay
  --help

Environment: pip reads its own (PIP_NO_INDEX=1 PIP_FIND_LINKS=DIR for a board without a network).
DESTDIR puts everything below another root, and what needs the running system is only told.

Example:
  sudo infra/jetson/install.sh --tracking-uri https://mlflow.example.org \
    --credentials board-1.txt --ca-file our-ca.pem --lock-clocks
TEXT
}

fail() {
  echo "install.sh: $1" >&2
  exit "${2:-1}"
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=${DESTDIR:-}
prefix=/opt/jetson-agent
settings=/etc/jetson-agent
units=/etc/systemd/system
user=jetson-agent

uri='' credentials='' ca='' python=python3
source=$(cd "$here/../.." && pwd)
clocks=no start=yes uninstall=no
while (($#)); do
  case $1 in
  --tracking-uri | --credentials | --ca-file | --source | --python)
    (($# > 1)) || fail "$1 needs a value; see --help" 2
    case $1 in
    --tracking-uri) uri=$2 ;;
    --credentials) credentials=$2 ;;
    --ca-file) ca=$2 ;;
    --source) source=$2 ;;
    --python) python=$2 ;;
    esac
    shift
    ;;
  --lock-clocks) clocks=yes ;;
  --no-start) start=no ;;
  --uninstall) uninstall=yes ;;
  --help | -h)
    usage
    exit 0
    ;;
  *) fail "unknown option $1; see --help" 2 ;;
  esac
  shift
done

# What changes the running system and not only files; below another root it is left to you.
on_system() {
  if [[ -n $root ]]; then echo "left to you: $*"; else "$@"; fi
}

[[ -n $root || $EUID == 0 ]] || fail "run it as root: sudo $0 ..."

if [[ $uninstall == yes ]]; then
  for unit in jetson-agent.service jetson-clocks-lock.service; do
    if [[ -e $root$units/$unit ]]; then on_system systemctl disable --now "$unit" || true; fi
    rm -f "$root$units/$unit"
  done
  rm -rf "$root$units/jetson-agent.service.d" "$root$prefix" "$root$prefix"-[0-9]*
  on_system systemctl daemon-reload
  echo "removed; $settings, /var/lib/jetson-agent and the user $user are still there"
  exit 0
fi

# Everything that can be wrong is found before anything is changed.
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  fail "$python is older than 3.10 or missing: install python3, or name one with --python"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments: sudo apt-get install python3-venv"
for file in "$credentials" "$ca"; do
  [[ -z $file || -r $file ]] || fail "$file cannot be read"
done
[[ -n $uri || -e $root$settings/agent.env ]] || fail "say where the MLflow server is: --tracking-uri URI" 2
# Not repeated: there may be a password in it.
[[ $uri != *@* ]] || fail "leave user and password out of the address; put them into --credentials FILE" 2
address='^(https?://[][A-Za-z0-9._~:/?#%&=+-]+)?$'
[[ $uri =~ $address ]] || fail "$uri is no address of an MLflow server, such as http://tracker:5000" 2
[[ ! -e $root$prefix || -L $root$prefix ]] ||
  fail "$prefix is there and not made by this script: move it away first"
[[ -e $root/etc/nv_tegra_release ]] ||
  echo "install.sh: this is no Jetson (there is no /etc/nv_tegra_release); going on all the same" >&2

# A new environment beside the old one: an update that fails leaves the old one as it was.
# System packages are visible, because TensorRT's Python package is one.
release="$prefix-$(date -u +%Y%m%dT%H%M%S%NZ)"
work=$(mktemp -d)
trap 'rm -rf "$work" "$root$release"' EXIT
mkdir -p "$root/opt"
"$python" -m venv --system-site-packages "$root$release"
if [[ -d $source ]]; then
  # A copy, so that the build leaves nothing of root's in the checkout.
  for part in pyproject.toml README.md jetson_agent sharedenc sweeps; do
    [[ -e $source/$part ]] || fail "$source is no checkout of this project: it has no $part"
    cp -R "$source/$part" "$work/"
  done
  source=$work
elif [[ -e $source ]]; then
  source=$(realpath "$source")
fi
"$root$release/bin/python" -m pip install --quiet --disable-pip-version-check "${source}[agent]" ||
  fail "pip could not install the agent; nothing is changed"
"$root$release/bin/jetson-agent" --version
if [[ -n $credentials$ca ]]; then
  if [[ -n $credentials ]]; then install -m 600 "$credentials" "$work/credentials"; fi
  # As the agent will read them; a word of what is wrong, and never a value.
  "$root$release/bin/python" - "${credentials:+$work/credentials}" "$ca" <<'PYTHON' || fail "nothing is changed" 2
import sys
from pathlib import Path
from jetson_agent.credentials import check_ca_file, read_credentials
from jetson_agent.errors import AgentError
try:
    if sys.argv[1]:
        read_credentials(Path(sys.argv[1]))
    if sys.argv[2]:
        check_ca_file(Path(sys.argv[2]))
except AgentError as error:
    sys.exit(f"install.sh: {error}")
PYTHON
fi

# The GPU's device nodes belong to these groups; the unit names both, so both have to be there.
for group in video render; do
  if [[ -n $root ]] || ! getent group "$group" >/dev/null; then
    on_system groupadd --system --force "$group"
  fi
done
if [[ -n $root ]] || ! getent passwd "$user" >/dev/null; then
  on_system useradd --system --user-group --no-create-home --home-dir /var/lib/jetson-agent \
    --shell /usr/sbin/nologin "$user"
fi
on_system usermod --append --groups video,render "$user"

install -d -m 755 "$root$settings" "$root$units"
if [[ ! -e $root$settings/agent.env ]]; then
  install -m 644 "$here/agent.env.example" "$root$settings/agent.env"
fi
set_value() { # NAME VALUE: one line of agent.env, whatever stood there; its mode stays as it is
  local file=$root$settings/agent.env
  install -m 600 /dev/null "$file.new"
  chmod --reference="$file" "$file.new"
  chown --reference="$file" "$file.new"
  { grep -v "^#\?$1=" "$file" || true; } >"$file.new"
  printf '%s=%s\n' "$1" "$2" >>"$file.new"
  mv "$file.new" "$file"
}
if [[ -n $uri ]]; then set_value MLFLOW_TRACKING_URI "$uri"; fi
if [[ -n $ca ]]; then
  install -m 644 "$ca" "$root$settings/ca.pem"
  set_value MLFLOW_TRACKING_SERVER_CERT_PATH "$settings/ca.pem"
fi
if [[ -n $credentials ]]; then
  install -m 600 "$work/credentials" "$root$settings/credentials"
  # systemd hands the file to the agent alone; the agent's user cannot read it otherwise.
  install -d -m 755 "$root$units/jetson-agent.service.d"
  printf '[Service]\nLoadCredential=mlflow:%s/credentials\n' "$settings" \
    >"$root$units/jetson-agent.service.d/credentials.conf"
fi
install -m 644 "$here/jetson-agent.service" "$here/jetson-clocks-lock.service" "$root$units/"

# From here on it is the new one that runs.
ln -sfn "${release##*/}" "$root$prefix.next"
mv -T "$root$prefix.next" "$root$prefix"
trap 'rm -rf "$work"' EXIT

on_system systemctl daemon-reload
if [[ $clocks == yes ]]; then on_system systemctl enable jetson-clocks-lock.service; fi
on_system systemctl enable jetson-agent.service
if [[ $start == yes ]]; then
  if [[ $clocks == yes ]]; then on_system systemctl restart jetson-clocks-lock.service; fi
  on_system systemctl restart jetson-agent.service
fi
# Older environments; the one that ran until now is only removed now.
for old in "$root$prefix"-[0-9]*; do
  [[ $old == "$root$release" ]] || rm -rf "$old"
done

cat <<TEXT
jetson-agent is installed in $prefix.
  what is missing   sudo -u $user $prefix/bin/jetson-agent doctor --state-dir /var/lib/jetson-agent
  what it does      systemctl status jetson-agent; journalctl -u jetson-agent -f
  settings          $settings/agent.env, then systemctl restart jetson-agent
TEXT
if [[ -n $credentials ]]; then
  echo "  password          $settings/credentials has a copy: $credentials can go"
fi
