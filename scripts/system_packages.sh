#!/usr/bin/env bash
# Chromium, for the tests that look at the trace page. Never fatal: without it they are skipped, aloud.
set -u

for browser in chromium chromium-browser google-chrome; do
  command -v "$browser" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
  echo "No Chromium here: the tests of the trace page in a browser will be skipped."
  exit 0
fi
echo "Installing Chromium for the tests of the trace page ..."
export DEBIAN_FRONTEND=noninteractive
if ! { timeout 300 apt-get install -qq -y --no-install-recommends chromium ||
  { timeout 120 apt-get update -qq && timeout 300 apt-get install -qq -y --no-install-recommends chromium; }; } \
  >/dev/null 2>&1 </dev/null; then
  echo "Chromium could not be installed: the tests of the trace page in a browser will be skipped."
fi
exit 0
