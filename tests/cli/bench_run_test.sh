#!/usr/bin/env bash
# bench/run installs what its documented options need: bench_run_test.sh SCRIPT
# Package manager and build are stand-ins; nothing is installed.
set -euo pipefail
stubs="$(mktemp -d)"
trap 'rm -rf "$stubs"' EXIT
stub() { printf '#!/bin/sh\n%s\n' "$2" > "$stubs/$1" && chmod +x "$stubs/$1"; }
stub dpkg-query 'exit 1'                      # nothing is installed
stub id 'echo 0'                              # and everything may be
stub apt-get "echo \"\$*\" >> '$stubs/asked'"
stub cmake 'exit 1'                           # then there is no build to wait for
if PATH="$stubs:$PATH" "$1" benchmark --metrics-port 0 > "$stubs/out" 2>&1; then
  echo "a build that failed went unnoticed"
  exit 1
fi
# cmake and g++ build it, json and CLI11 are the program's, Boost's headers the endpoint's.
for package in cmake g++ nlohmann-json3-dev libcli11-dev libboost-dev; do
  grep -qw -- "$package" "$stubs/asked" || { echo "$package is not installed:"; cat "$stubs/asked"; exit 1; }
done
