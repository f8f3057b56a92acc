#!/usr/bin/env bash
# Installs the project with its pinned packages into ~/mmjsd-venv, and nothing where that is done. For every node of
# a cluster, which must all have the same environment.
#
#   cluster/setup.sh [PACKAGE ...]    PACKAGE: what this node needs besides, such as boto3 on the head of gpu.yaml
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${MMJSD_VENV:-$HOME/mmjsd-venv}

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: this node has $(python3 --version); choose an image with Python 3.11 or later" >&2
  exit 2
fi
wanted=$(cat "$project/pyproject.toml" "$project/constraints.txt" <(echo "$@") | sha256sum)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
  if ! python3 -c 'import ensurepip' 2>/dev/null; then # Debian and Ubuntu keep it apart
    if ! sudo apt-get --version >/dev/null; then
      echo "error: Python lacks ensurepip, and sudo apt-get is refused; have python3-venv installed" >&2
      exit 2
    fi
    # A machine that has just started may be updating itself, and apt does not wait for that by default.
    until sudo apt-get -qq update; do ((SECONDS < 600)) && sleep 5 || exit 1; done
    sudo DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600 install -y python3-venv
  fi
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --constraint "$project/constraints.txt" --editable "$project" "$@"
  echo "$wanted" >"$venv/installed"
fi
if ! grep -qsF "$venv/bin" ~/.bashrc; then # `ray down` and `ray exec` run the ray that a login finds
  echo "export PATH=\"\$PATH:$venv/bin\"" >>~/.bashrc
fi
if [ -f ~/.ray/auth_token ]; then chmod 600 ~/.ray/auth_token; fi # Ray itself leaves it to be read by all
